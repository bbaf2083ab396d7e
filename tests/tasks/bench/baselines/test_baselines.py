"""Every baseline keeps to its budget, repeats itself bit for bit, scores nothing twice, and gets somewhere."""

import numpy as np
import pytest

from models.front import hypervolume
from tasks.bench.baselines import BASELINES
from tests.models.lab import RULES, new_trial, recipe_space

pytestmark = pytest.mark.lab

EVERY = pytest.mark.parametrize("name", BASELINES)


def run(name, trial, seed=0):
    assert BASELINES[name].run(trial, recipe_space(), RULES, np.random.default_rng(seed)) is None
    return trial


def reached(trial):
    whole = [trial.archive.entries[i].candidate for i in trial.complete()]
    return hypervolume(trial.costs(whole))


@EVERY
@pytest.mark.parametrize("depth", [True, False])
def test_it_spends_its_budget_and_no_more(name, depth):
    told = []
    trial = new_trial(80, depth)
    trial.on_spent = told.append
    before = reached(trial)
    run(name, trial)
    assert sum(told) == trial.spent <= trial.budget
    assert trial.left < trial.whole
    assert trial.spent == trial.whole * (len(trial.lab.calls) + len(trial.lab.measured))
    assert reached(trial) > before + 0.05


@EVERY
def test_it_scores_no_candidate_twice(name):
    trial = run(name, new_trial(80))
    assert len(set(trial.lab.calls)) == len(trial.lab.calls)
    assert len(set(trial.lab.measured)) == len(trial.lab.measured)
    assert all(entry.items == trial.archive.full for entry in trial.archive.entries)


@EVERY
def test_the_same_seed_gives_the_same_archive_and_leaves_numpy_alone(name):
    first = run(name, new_trial(60)).archive.entries
    np.random.seed(5)
    state = np.random.get_state()[1].tolist()
    assert run(name, new_trial(60)).archive.entries == first
    assert np.random.get_state()[1].tolist() == state
    if name != "grids":
        assert run(name, new_trial(60), seed=1).archive.entries != first


@EVERY
@pytest.mark.parametrize("how", [None, "nan"])
@pytest.mark.parametrize("every", [1, 3])
def test_failures_break_nothing(name, how, every):
    trial = run(name, new_trial(60, fails=(every, how)))
    assert trial.spent <= trial.budget
    if every > 1:
        assert trial.left < trial.whole


@EVERY
@pytest.mark.parametrize("candidates", [0, 1, 2, 5, 30])
def test_a_small_budget_will_do(name, candidates):
    trial = run(name, new_trial(candidates))
    assert trial.spent <= trial.budget
    assert trial.left < trial.whole


@EVERY
def test_only_those_that_say_so_change_the_depth(name):
    trial = run(name, new_trial(120))
    depths = {entry.candidate.depth for entry in trial.archive.entries}
    assert (depths != {6}) == BASELINES[name].paths


@EVERY
def test_it_says_what_it_is(name):
    one = BASELINES[name]
    assert one.name == name
    assert one.title
    assert "\n" not in one.settings
    assert one.settings


def test_every_path_of_the_path_searches_is_legal_over_experts_and_anchors():
    for name in ("random-paths", "ea-paths", "nsga2-paths", "de-paths"):
        trial = run(name, new_trial(100))
        paths = [one.candidate for one in trial.archive.entries if one.kind in ("path", "random")]
        models = {model for path in paths for model in path.models}
        assert len(paths) > 30
        assert len(models - {"a", "b", "c"}) <= 3
        assert models - {"a", "b", "c"} <= set(trial.recipes)


def test_layered_recipes_start_from_plain_ones_and_hold_gradients_then():
    trial = run("layered-recipes", new_trial(100))
    recipes = [trial.recipes[one.candidate.host] for one in trial.archive.entries[4:]]
    layered = [any(isinstance(one.parameters.get("weight"), list) for one in recipe.models) for recipe in recipes]
    assert not any(layered[:40])
    assert sum(layered[40:]) > 40


def test_a_gradient_of_one_value_is_the_plain_recipe():
    space = recipe_space()
    layered = space.with_stops(3)
    for point in space.sample(20, np.random.default_rng(0)):
        plain = space.recipe(point)
        assert layered.recipe(layered.read(plain)) == plain
    slope = layered.read(plain) | {"weight.a@0": 0.1, "weight.a@1": 0.2, "weight.a@2": 0.3}
    assert layered.recipe(slope).models[0].parameters["weight"] == [0.1, 0.2, 0.3]
