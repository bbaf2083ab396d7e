"""Children of recipes stay within bounds, and are recipes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.agent.variation import CHANGED, SWITCH, offspring, with_recipe
from models.candidate import Candidate
from models.merge.methods import search_space
from models.merge.recipe import dump_recipes, parse_recipes
from tests.models.lab import recipe_space


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_offspring_stay_inside_the_bounds_and_are_legal_recipes(stops, seed):
    rng = np.random.default_rng(seed)
    space = recipe_space(stops=stops)
    first, second = space.sample(2, rng)
    for _ in range(6):
        child = offspring(space, first, second, rng)
        assert child["method"] in space.methods
        assert all(low <= child[key] <= high for key, (low, high) in space.bounds.items())
        assert child.keys() == first.keys()
        recipe = space.recipe(child)
        assert parse_recipes(dump_recipes([recipe]), "recipe.yaml") == [recipe]
        for one in search_space(recipe.merge_method):
            blocks = [model.parameters for model in recipe.models] if one.per_model else [recipe.parameters]
            assert all(one.low <= value <= one.high for block in blocks for value in np.atleast_1d(block[one.name]))
        first, second = second, child


def test_most_children_have_a_parents_method_and_some_of_its_numbers():
    space, rng = recipe_space(), np.random.default_rng(0)
    first, second = (space.point("ties", np.full(len(space.bounds), at)) for at in (0.3, 0.6))
    second["method"] = "linear"
    children = [offspring(space, first, second, rng) for _ in range(2000)]
    foreign = np.mean([child["method"] not in ("ties", "linear") for child in children])
    assert abs(foreign - SWITCH / 2) < 0.02  # half of the methods to switch to are the parents' own
    kept = np.mean([np.isclose(space.unit(child), space.unit(first)) for child in children])
    assert abs(kept - 0.5 * (1 - CHANGED)) < 0.03  # no blend in half of the children


def test_parents_of_a_method_that_the_space_lacks_have_children_of_one_that_it_has():
    space, rng = recipe_space(), np.random.default_rng(0)
    foreign = {"method": "della", **space.sample(1, rng)[0], "epsilon": 0.1} | {"method": "della"}
    assert {offspring(space, foreign, foreign, rng)["method"] for _ in range(100)} == set(space.methods)


def test_parents_stay_as_they_were():
    space, rng = recipe_space(), np.random.default_rng(0)
    first, second = space.sample(2, rng)
    before = dict(first), dict(second)
    for _ in range(20):
        offspring(space, first, second, rng)
    assert (first, second) == before


def test_a_path_keeps_its_layers_when_a_recipe_takes_the_place_of_another():
    path = Candidate("old", (("old", 0), ("a", 1), ("old", 2)))
    assert with_recipe(path, "old", "new") == Candidate("new", (("new", 0), ("a", 1), ("new", 2)))
    assert with_recipe(path, "a", "new") == Candidate("old", (("old", 0), ("new", 1), ("old", 2)))
    assert with_recipe(path, "other", "new") == path
