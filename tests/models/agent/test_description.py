"""A description says what a candidate is made of, whatever its models are called."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.agent.description import Describer
from models.candidate import Candidate
from models.merge.space import RecipeSpace
from models.search.environment import PathSpace
from tests.models.lab import EXPERTS, recipe_space

LAYERS = 5


def describer(**recipes):
    found = Describer(recipe_space(), LAYERS)
    for name, recipe in recipes.items():
        found.add(name, recipe)
    return found


def arithmetic(**weights):
    return recipe_space().make("task_arithmetic", {name: {"weight": weight} for name, weight in weights.items()})


def plain(name):
    return Candidate.identity(name, LAYERS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_content_has_equal_descriptions_whatever_it_is_called(seed):
    rng = np.random.default_rng(seed)
    space = recipe_space(stops=int(rng.integers(1, 4)))
    first, second = (space.recipe(point) for point in space.sample(2, rng))
    here, there = describer(x=first, y=second), describer(q=second, p=first, x=second)
    names = {"x": "p", "y": "q", **{name: name for name in EXPERTS}}
    paths = PathSpace(("x", "y", *EXPERTS), LAYERS)
    drawn = [paths.random_path(rng) for _ in range(5)]
    renamed = [Candidate(names[one.host], tuple((names[m], layer) for m, layer in one.path)) for one in drawn]
    np.testing.assert_array_equal(here(drawn), there(renamed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_another_order_of_the_methods_is_another_order_of_features_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    space = recipe_space()
    turned = RecipeSpace(space.methods[::-1], space.base, space.experts)
    recipe = space.recipe(space.sample(1, rng)[0])
    found = []
    for one in (space, turned):
        here = Describer(one, LAYERS)
        here.add("x", recipe)
        found.append(np.sort(here([Candidate("x", (("x", 0), ("a", 1), ("x", 4)))])[0]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_a_constant_gradient_is_described_as_the_plain_recipe(seed, stops):
    space = recipe_space()
    recipe = space.recipe(space.sample(1, np.random.default_rng(seed))[0])
    models = [
        one.model_copy(update={"parameters": {key: [value] * stops for key, value in one.parameters.items()}})
        for one in recipe.models
    ]
    here = describer(plain=recipe, layered=recipe.model_copy(update={"models": models}))
    a, b = here([plain("plain"), plain("layered")])
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_the_same_layers_from_two_recipes_of_equal_content_are_one_model():
    here = describer(x=arithmetic(a=0.5, b=0.2, c=0.1), y=arithmetic(a=0.5, b=0.2, c=0.1))
    whole, mixed = here([plain("x"), Candidate("x", tuple(("xy"[layer % 2], layer) for layer in range(LAYERS)))])
    changed = np.flatnonzero(whole != mixed)
    assert changed.tolist() == [len(whole) - 3]  # how often the model changes


def test_what_features_say():
    here = describer(x=arithmetic(a=0.6, b=0.2, c=0.0))
    names = ("missing", "repeated")
    path = Candidate("x", (("x", 0), ("x", 1), ("b", 3), ("b", 3), ("x", 4)))
    row = here([path])[0]
    assert dict(zip(names, row[: 2 * LAYERS].reshape(2, LAYERS).tolist(), strict=True)) == {
        "missing": [0, 0, 1, 0, 0],
        "repeated": [0, 0, 0, 1, 0],
    }
    deviation, mean = row[2 * LAYERS : 5 * LAYERS].reshape(LAYERS, 3), row[5 * LAYERS : 5 * LAYERS + 3]
    np.testing.assert_allclose(mean, [0.6 * 3 / 4, (0.2 * 3 + 1) / 4, 0])  # over the layers that are passed
    np.testing.assert_allclose((deviation + mean)[[0, 3]], [[0.6, 0.2, 0], [0, 1, 0]], atol=1e-12)
    assert (deviation[2] == 0).all()
    np.testing.assert_allclose(row[-6:], [0.6, 0.2, 0, 2 / 5, 1 / 5, 5 / 5])  # host; changes, steps back, depth


def test_base_and_experts_need_no_recipe():
    here = describer()
    rows = here([plain("base"), plain("b")])
    mean = rows[:, 5 * LAYERS : 5 * LAYERS + 3]
    np.testing.assert_array_equal(mean, [[0, 0, 0], [0, 1, 0]])
    assert plain("b") in here
    assert plain("x") not in here


def test_weights_of_a_method_that_normalises_them_count_by_their_shares():
    own = {"a": {"weight": 0.2}, "b": {"weight": 0.1}, "c": {"weight": 0.1}}
    here = describer(x=recipe_space().make("linear", own), y=arithmetic(a=0.2, b=0.1, c=0.1))
    x, y = here([plain("x"), plain("y")])[:, 5 * LAYERS : 5 * LAYERS + 3]
    np.testing.assert_allclose(x, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(y, [0.2, 0.1, 0.1])


def test_a_method_that_the_space_lacks_looks_like_none():
    space = recipe_space()
    here = Describer(RecipeSpace(("linear", "task_arithmetic"), "base", space.experts), LAYERS)
    here.add("x", space.make("ties", {name: {"weight": 0.4} for name in EXPERTS}, {"density": 0.3}))
    assert np.isfinite(here([plain("x")])).all()
    kind = here([plain("x")])[0][5 * LAYERS + 3 : 5 * LAYERS + 5]
    np.testing.assert_array_equal(kind, [0, 0])


@pytest.mark.parametrize("experts", ["ab", "abcd"])
def test_every_feature_has_a_group_and_no_group_is_empty(experts):
    space = RecipeSpace(("linear", "ties"), "base", {name: name for name in experts})
    here = Describer(space, LAYERS)
    row = here([plain("a")])
    assert row.shape == (1, len(here.groups))
    assert sorted(set(here.groups)) == list(range(here.groups.max() + 1))
    assert here([]).shape == (0, len(here.groups))
