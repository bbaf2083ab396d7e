"""The recipe search can use every method that merges a whole family, and leaves the others out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.core.mixed import MixedVariableSampling
from pymoo.core.problem import Problem

from models.errors import BadInput
from models.merge.methods import METHODS, search_space
from models.merge.recipe import dump_recipes, parse_recipes, recipe_name
from models.merge.source import open_recipes
from models.merge.space import PLACES, RecipeSpace
from models.sources.checkpoint import open_checkpoint

FAMILIES = sorted(name for name, method in METHODS.items() if method.takes_families)
SEARCHED = [name for name in FAMILIES if search_space(name)]
SPACES = st.builds(
    lambda methods, experts, stops: RecipeSpace(
        tuple(methods), "base", {one: f"/m/{one}" for one in experts}, 5, stops
    ),
    st.lists(st.sampled_from(SEARCHED), min_size=1, max_size=5, unique=True),
    st.sampled_from(["ab", "abc", "abcd"]),
    st.integers(1, 6),
)


def space_of(methods, experts="abc", **changes):
    return RecipeSpace(tuple(methods), "base", {name: name for name in experts}, **changes)


def points(space, count):
    problem = Problem(vars=space.variables, n_obj=1)
    return MixedVariableSampling().do(problem, count, random_state=np.random.default_rng(0)).get("X")


def own_keys(space, method):
    return [key for one in search_space(method) for key in space.keys(one)]


def test_every_method_of_families_gives_recipes_that_merge(make_family, tmp_path):
    folders = {name: str(folder) for name, folder in make_family(tmp_path, experts=3, layers=1).items()}
    base = folders.pop("base")
    seen = set()
    for stops in (1, 3):
        space = RecipeSpace(tuple(METHODS), base, folders, 3, stops)
        for point in points(space, 150):
            recipe = space.recipe(point)
            assert parse_recipes(dump_recipes([recipe]), "recipe.yaml") == [recipe]
            if (recipe.merge_method, stops) in seen:
                continue
            seen.add((recipe.merge_method, stops))
            merged = open_recipes([recipe], lambda name: open_checkpoint(Path(name)))
            for name in merged.names():
                assert torch.isfinite(merged.tensor(name)).all()
    assert seen == {(name, stops) for name in FAMILIES for stops in (1, 3)}


def test_values_stay_in_the_range_of_their_method():
    """DELLA's range of densities is narrower than that of the others, with which it shares the variable."""
    space = space_of(["ties", "della"])
    assert space.bounds["density"] == (0.1, 1.0)
    for point in points(space, 100):
        recipe = space.recipe(point)
        for one in search_space(recipe.merge_method):
            blocks = [model.parameters for model in recipe.models] if one.per_model else [recipe.parameters]
            assert all(one.low <= block[one.name] <= one.high for block in blocks)


@settings(max_examples=80, deadline=None)
@given(SPACES, st.integers(0, 2**32 - 1))
def test_read_gives_the_point_of_a_recipe_back(space, seed):
    """Up to rounding, and up to the method's own range where the shared one is wider."""
    for point in space.sample(4, np.random.default_rng(seed)):
        recipe = space.recipe(point)
        found = space.read(recipe)
        assert found.keys() == point.keys()
        for one in search_space(point["method"]):
            for key in space.keys(one):
                assert found[key] == pytest.approx(np.clip(point[key], one.low, one.high), abs=0.51 * 10**-PLACES)
        for key in set(point) - {"method", *own_keys(space, point["method"])}:
            assert found[key] == sum(space.bounds[key]) / 2
        assert space.recipe(found) == recipe


@settings(max_examples=40, deadline=None)
@given(SPACES, st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_a_plain_recipe_reads_as_a_constant_gradient_and_gives_the_same_recipe(space, seed, stops):
    plain, layered = space.with_stops(1), space.with_stops(stops)
    for point in plain.sample(3, np.random.default_rng(seed)):
        recipe = plain.recipe(point)
        again = layered.recipe(layered.read(recipe))
        assert again == recipe
        assert recipe_name(again) == recipe_name(recipe)


def test_a_gradient_is_read_at_the_stops_of_the_space():
    layered = space_of(["task_arithmetic"], "ab", stops=3)
    own = {"a": {"weight": [0.0, 0.4, 1.0]}, "b": {"weight": 0.5}}
    recipe = layered.make("task_arithmetic", own)
    point = layered.with_stops(5).read(recipe)
    np.testing.assert_allclose([point[f"weight.a@{stop}"] for stop in range(5)], [0, 0.2, 0.4, 0.7, 1])
    np.testing.assert_allclose([point[f"weight.b@{stop}"] for stop in range(5)], 0.5)
    assert layered.with_stops(1).read(recipe)["weight.a"] == pytest.approx(0.4)


def test_what_a_recipe_leaves_to_its_whole_or_to_its_method_is_read_too():
    space = space_of(["ties", "linear"], "ab")
    document = {"merge_method": "ties", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}]}
    (recipe,) = parse_recipes(str({**document, "parameters": {"weight": 0.3}}), "recipe.yaml")
    point = space.read(recipe)
    assert (point["weight.a"], point["weight.b"]) == (0.3, 0.3)
    assert point["density"] == next(one.default for one in search_space("ties") if one.name == "density")


def test_points_lie_in_the_unit_cube_and_come_back_from_it():
    space = space_of(["ties", "della", "dare_ties"], stops=2)
    drawn = space.sample(31, np.random.default_rng(0))
    unit = np.array([space.unit(point) for point in drawn])
    assert unit.shape == (31, len(space.bounds))
    # a Latin hypercube: one value in each of 31 equal cells, in every dimension; and every method equally often
    assert (np.sort((unit * 31).astype(int), axis=0) == np.arange(31)[:, None]).all()
    assert sorted(sum(point["method"] == one for point in drawn) for one in space.methods) == [10, 10, 11]
    for point, row in zip(drawn, unit, strict=True):
        assert space.point(point["method"], row) == {
            key: value if key == "method" else pytest.approx(value) for key, value in point.items()
        }


def test_methods_of_a_certain_number_of_models_are_left_out():
    space = space_of(["slerp", "nuslerp", "passthrough", "linear"], "ab")
    assert space.methods == ("linear",)
    assert list(space.variables["method"].options) == ["linear"]
    assert set(space.variables) == {"method", "weight.a", "weight.b"}


@pytest.mark.parametrize("methods", [["slerp"], ["model_stock", "karcher"]])
def test_nothing_to_search_is_refused(methods):
    with pytest.raises(BadInput, match=r"params\.yaml: sample\.methods: .* leave nothing to search"):
        space_of(methods, "ab")


def test_plain_merges_are_points_of_the_space_and_random_ones_have_its_seed():
    space = space_of(["linear", "task_arithmetic", "ties", "dare_ties"], seed=7)
    for recipe in space.plain_merges().values():
        assert ("seed" in recipe.parameters) == METHODS[recipe.merge_method].random
        assert recipe.parameters.get("seed", 7) == 7
        again = space.read(space.recipe(space.read(recipe)))
        assert again == {k: v if k == "method" else pytest.approx(v, abs=1e-4) for k, v in space.read(recipe).items()}


@pytest.mark.parametrize("stops", [1, 3])
def test_weights_that_are_all_zero_are_all_the_least_so_that_they_can_be_normalised(stops):
    space = space_of(["linear"]).with_stops(stops)
    point = space.point("linear", np.zeros(len(space.bounds)))
    weights = [one.parameters["weight"] for one in space.recipe(point).models]
    assert weights == [10.0**-PLACES] * 3
    some = dict(point) | {key: 0.5 for key in point if key.startswith("weight.a")}
    assert [one.parameters["weight"] for one in space.recipe(some).models] == [0.5, 0.0, 0.0]
