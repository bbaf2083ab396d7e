"""Items: each has one split, which follows from its content alone; several tasks take turns by their weights."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput
from models.files import validate
from tasks.objectives.items import SPLITS, chosen, digest, interleaved, last_distinct, place, split_of
from tasks.schema.profile import Profile, Splits

DOCS = st.lists(
    st.dictionaries(st.sampled_from(["question", "answer", "id", "doc_id"]), st.text(max_size=4), min_size=1),
    max_size=60,
)


@st.composite
def shares(draw):
    search = draw(st.floats(0, 1))
    selection = draw(st.floats(0, 1)) * (1 - search)
    return Splits(search=search, selection=selection, test=1 - search - selection)


@given(DOCS, shares())
def test_every_item_is_in_exactly_one_split(docs, shares):
    contents = [digest(doc) for doc in docs]
    found = [index for split in SPLITS for index in chosen(contents, split, shares)]
    assert sorted(found) == list(range(len(docs)))


@given(DOCS, shares())
def test_what_two_splits_hold_differs_in_content(docs, shares):
    contents = [digest(doc) for doc in docs]
    held = [{contents[index] for index in chosen(contents, split, shares)} for split in SPLITS]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]


@given(DOCS, DOCS, shares())
def test_the_split_of_an_item_does_not_depend_on_the_others(docs, others, shares):
    contents, more = [digest(doc) for doc in docs], [digest(doc) for doc in others]
    for split in SPLITS:
        alone = [contents[index] for index in chosen(contents, split, shares)]
        together = contents + more
        joint = [together[index] for index in chosen(together, split, shares) if index < len(contents)]
        assert joint == alone


@given(st.dictionaries(st.text(min_size=1), st.text()), st.text(), st.text())
def test_numbers_of_items_are_no_content(doc, one, other):
    doc = {"question": "q", **doc}
    assert digest(doc | {"id": one, "doc_id": one}) == digest(doc | {"id": other, "doc_id": other})


def test_the_shares_are_kept_and_the_order_is_that_of_the_hashes():
    contents = [digest({"question": number}) for number in range(4000)]
    for split, share in Splits().model_dump().items():
        own = chosen(contents, split, Splits())
        assert len(own) / 4000 == pytest.approx(share, abs=0.03)
        assert [place(contents[index]) for index in own] == sorted(place(contents[index]) for index in own)
        assert all(split_of(contents[index], Splits()) == split for index in own)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_every_prefix_of_items_is_balanced(weights):
    taken = [0] * len(weights)
    for number, task in enumerate(islice(interleaved(weights), 200), start=1):
        taken[task] += 1
        for count, weight in zip(taken, weights, strict=True):
            assert abs(count - number * weight / sum(weights)) < 1 + 1e-9


def test_the_last_items_are_set_apart_with_all_that_equal_them():
    assert last_distinct(list("abcbdd"), 2) == {"d", "b"}
    assert last_distinct(list("ab"), 5) == {"a", "b"}


def test_shares_sum_to_one():
    profile = {"made": "tiny", "experts": {}, "objectives": [{"name": "one", "task": "one"}]}
    with pytest.raises(BadInput, match="splits: the shares of search, selection and test must sum to 1"):
        validate(Profile, profile | {"splits": {"search": 0.5}}, "p.yaml")


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({}, "name one `task`, or several under `tasks`"),
        ({"task": "one", "tasks": [{"task": "two"}]}, "name one `task`, or several under `tasks`"),
        ({"tasks": [{"task": "one"}], "shots": 2}, "shots: belongs to each of the `tasks`; move it there"),
        ({"task": "one", "direction": "up"}, "direction"),
        ({"task": "one", "scale": 0}, "scale"),
        ({"tasks": [{"task": "one", "weight": 0}]}, "weight"),
        ({"task": "one", "data": {"file": "x"}}, "data.file: unknown key"),
    ],
)
def test_an_objective_says_one_thing(objective, message):
    profile = {"made": "tiny", "experts": {}, "objectives": [{"name": "one"} | objective]}
    with pytest.raises(BadInput, match=message):
        validate(Profile, profile, "p.yaml")
