import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candidate import Candidate
from models.search.environment import PathRules, PathSpace
from tests.models.lab import every_path


@st.composite
def spaces(draw, longest_base=9):
    rules = PathRules(
        draw(st.sampled_from(["default", "default", "none"])),
        start=draw(st.sampled_from([2, 2, 0, 5])),
        end=draw(st.sampled_from([2, 2, 1, 5])),
        forward=draw(st.integers(1, 5)),
        backward=draw(st.integers(0, 8)),
        repeats=draw(st.integers(1, 3)),
        stretch=draw(st.sampled_from([1.0, 1.25, 1.5])),
    )
    models = tuple("abcd"[: draw(st.integers(1, 4))])
    return PathSpace(models, draw(st.integers(1, longest_base)), rules)


def follows_the_rules(space, path):
    """The rules of method.md, written out for one whole path."""
    rules, layers = space.rules, [layer for _, layer in path]
    if not 0 < len(path) <= int(rules.stretch * space.layers):
        return False
    if rules.mask == "none":
        return True
    jumps = [after - before for before, after in itertools.pairwise(layers)]
    return (
        layers[0] <= rules.start
        and layers[-1] >= space.layers - rules.end
        and all(-rules.backward <= jump <= rules.forward for jump in jumps)
        and max(layers.count(layer) for layer in layers) <= rules.repeats
    )


@pytest.mark.parametrize("mask", ["default", "none"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_the_masks_lead_to_exactly_the_legal_paths(mask, repeats):
    space = PathSpace(("a", "b"), 4, PathRules(mask, forward=2, backward=1, repeats=repeats, stretch=1.0))
    steps = list(itertools.product(space.models, range(4)))
    wanted = {
        path for n in range(1, 5) for path in itertools.product(steps, repeat=n) if follows_the_rules(space, path)
    }
    found = [space.decode(actions).path for actions in every_path(space)]
    assert len(found) == len(set(found))
    assert set(found) == wanted


@given(spaces(), st.integers(0, 2**32 - 1))
def test_no_legal_walk_ends_without_stop_and_all_that_it_makes_is_legal(space, seed):
    rng = np.random.default_rng(seed)
    actions = np.full((8, space.longest + 1), -1)
    for t in range(space.longest + 1):
        legal = space.legal(actions[:, :t])
        open_ = ~(actions[:, :t] == space.stop).any(axis=1)
        assert legal[open_].any(axis=1).all()
        assert not legal[~open_].any()
        for row in np.flatnonzero(open_):
            actions[row, t] = rng.choice(np.flatnonzero(legal[row]))
    assert ((actions == space.stop).sum(axis=1) == 1).all()
    assert space.are_legal(actions).all()
    assert all(follows_the_rules(space, space.decode(row).path) for row in actions)


@given(spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_random_paths_and_edits_are_legal_and_encode_back_to_themselves(space, seed):
    rng = np.random.default_rng(seed)
    path = space.random_path(rng)
    edits = space.edits(path, rng, 12)
    assert len(set(edits)) == len(edits) <= 12
    assert path not in edits
    for candidate in [path, *edits, *(space.identity(model) for model in space.models)]:
        assert space.contains(candidate)
        assert follows_the_rules(space, candidate.path)
    encoded = space.encode([path, *edits])
    assert encoded.shape == (1 + len(edits), space.longest + 1)
    assert [space.decode(row) for row in encoded] == [path, *edits]


def test_edits_swap_skip_repeat_and_put_back():
    space = PathSpace(("a", "b"), 6)
    start = Candidate("a", tuple(("a", layer) for layer in (0, 1, 2, 4, 5)))
    found = space.edits(start, np.random.default_rng(0), 80)
    assert len(found) == 80
    assert any("b" in one.models for one in found)
    assert {3, 4, 5, 6, 7} <= {one.depth for one in found}
    assert space.identity("a") in found


def test_a_neighbourhood_that_is_exhausted_gives_what_there_is():
    space = PathSpace(("a",), 1, PathRules(stretch=1.0))
    assert space.edits(space.identity("a"), np.random.default_rng(0), 5) == []


def test_the_host_gives_most_layers_and_ties_go_to_the_first():
    space = PathSpace(("a", "b"), 4)
    assert space.host([("b", 0), ("a", 1), ("a", 2)]) == "a"
    assert space.host([("b", 0), ("a", 1), ("a", 2), ("b", 3)]) == "b"
    assert space.identity("b") == Candidate.identity("b", 4)


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("x", (("x", 0), ("x", 1), ("x", 2), ("x", 3))),
        Candidate("a", (("a", 0), ("a", 4))),
        Candidate("b", (("a", 0), ("a", 1), ("a", 2), ("a", 3))),
        Candidate("a", (("a", 3),)),
        Candidate("a", (("a", 0), ("a", 1))),
        Candidate("a", ()),
        Candidate("a", tuple(("a", layer) for layer in (0, 1, 2, 0, 1, 2, 3))),
    ],
)
def test_what_is_no_path_of_the_space_is_not_contained(candidate):
    assert not PathSpace(("a", "b"), 4).contains(candidate)


def test_a_path_may_not_stray_so_far_that_it_cannot_come_back_in_time():
    space = PathSpace(("a",), 8, PathRules(forward=2, stretch=1.0))
    # seven layers used, one left, and layer 6 is the first at which a path may stop
    prefix = np.array([[0, 1, 2, 3, 4, 3, 4]])
    assert np.flatnonzero(space.legal(prefix)[0]).tolist() == [6]
