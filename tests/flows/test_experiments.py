"""Settings of one run: checked by the schema, named by what differs."""

import pytest

from flows.experiments import differences, with_settings
from models.errors import BadInput
from tasks.schema import Params, SearchParams


@pytest.fixture
def root(tmp_path):
    (tmp_path / "params.yaml").write_text("profiles: [tiny]\nsearch: {budget: 50}\n")
    return tmp_path


def test_settings_change_what_they_name_and_nothing_else(root):
    before = with_settings(root, [])
    after = with_settings(root, ["search.budget=70", "search.rungs=[8, 16]", "seed=3"])
    assert differences(before, after) == {"seed": 3, "search.budget": 70, "search.rungs": [8, 16]}
    assert after.search.rungs == (8, 16)


def test_keys_that_the_file_leaves_out_can_be_set(root):
    assert with_settings(root, ["train.steps=7"]).train.steps == 7


def test_equal_parameters_do_not_differ():
    assert differences(Params(), Params(search=SearchParams())) == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.budgt=3", r"-S: search\.budgt: unknown key"),
        ("nothing.budget=3", r"-S: nothing: unknown key"),
        ("search.budget.more=3", r"-S search\.budget\.more=3: search\.budget\.more: unknown key"),
        ("search.budget=-3", r"-S: search\.budget: .* greater than or equal to 1"),
        ("search.budget=many", r"-S: search\.budget: .* integer"),
        ("search.budget", r"-S search\.budget: write it as key=value"),
        ("profiles=[other]", r"-S profiles=\[other\]: a run has one profile; name it with --profile"),
        ("=3", r"-S =3: write it as key=value"),
        ("search.rungs=[8", r"-S search\.rungs=\[8: '\[8' is no YAML value"),
    ],
)
def test_what_the_schema_refuses_is_bad_input(root, setting, message):
    with pytest.raises(BadInput, match=message):
        with_settings(root, [setting])
