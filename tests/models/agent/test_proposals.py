"""Proposals vary what serves a preference, and recipes that they make up take part only once they are chosen."""

import numpy as np
import pytest

from models.agent.actor import new_actor
from models.agent.phases import new_judge
from models.agent.proposals import LEVELS, Proposer
from models.candidate import Candidate
from models.merge.recipe import dump_recipes, parse_recipes, recipe_name
from models.search.environment import PathSpace
from tests.models.lab import EXPERTS, new_trial, recipe_space

WANTED = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])


@pytest.fixture
def proposer():
    return new_proposer(True)


def new_proposer(depth):
    """Over what a trial has scored of a small family."""
    trial, space, rng = new_trial(depth=depth, uneven=True), recipe_space(), np.random.default_rng(0)
    trial.spend_on([trial.add(space.recipe(point)) for point in space.sample(5, rng)], "recipe")
    paths = PathSpace((*EXPERTS, *list(trial.recipes)[:2]), 6)
    some = list(dict.fromkeys(paths.random_path(rng) for _ in range(12)))
    trial.spend_on([one for one in some if one not in trial.archive], "random", 10)
    judge = new_judge(trial, space)
    judge.learn(trial.archive, rng)
    return Proposer(trial, judge, space, paths)


def test_parents_are_what_is_expected_to_serve_each_preference_best(proposer):
    found = proposer.parents(WANTED, 3)
    known = [entry.candidate for entry in proposer.trial.archive.entries]
    costs = proposer.judge.costs(known)
    for some, wanted in zip(found, WANTED, strict=True):
        u = proposer.trial.reward.utility(costs, np.array([one.depth for one in known]), wanted)
        assert some == [known[i] for i in np.argsort(-u, kind="stable")[:3]]


def test_new_recipes_take_the_place_of_a_parents_recipe_or_stand_alone(proposer):
    proposer.levels = ("recipe",)
    parents = proposer.parents(WANTED, 4)
    known = set(proposer.trial.recipes)
    found = proposer.propose(WANTED, parents, 60, np.random.default_rng(0))
    assert len(found) == 60
    shapes = {tuple(layer for _, layer in one.path) for some in parents for one in some} | {tuple(range(6))}
    for one in found:
        assert tuple(layer for _, layer in one.path) in shapes
        assert one in proposer.judge.describer
        assert len(set(one.models) - known - {*EXPERTS, "base"}) <= 1
    changed = [one for one in found if set(one.models) & set(proposer.made)]
    assert 30 < len(changed) == len(proposer.made) < 60  # the others are as their parents
    recipes = [make() for make in proposer.made.values()]
    for recipe in recipes:
        assert parse_recipes(dump_recipes([recipe]), "recipe.yaml") == [recipe]
    assert len({recipe_name(recipe) for recipe in recipes} - known) > 20  # a few children are their parents again
    assert set(proposer.trial.recipes) == known


def test_with_an_actor_half_of_the_recipes_are_its_own(proposer):
    proposer.actor, proposer.levels = new_actor(proposer.trial, recipe_space()), ("recipe",)
    proposer.propose(WANTED, proposer.parents(WANTED, 4), 80, np.random.default_rng(0))
    recipes = [make() for make in proposer.made.values()]
    layered = [any(isinstance(model.parameters["weight"], list) for model in one.models) for one in recipes]
    assert not any(layered)  # the actor has learned nothing yet
    untrained = [one for one in recipes if one.merge_method == "task_arithmetic"]
    assert len(untrained) > 30


@pytest.mark.parametrize("levels", [("recipe",), ("path",), LEVELS])
def test_what_is_on_offer_can_be_varied_too(proposer, levels):
    rng = np.random.default_rng(0)
    proposer.levels = ("recipe",)
    offers = proposer.propose(WANTED, proposer.parents(WANTED, 4), 30, rng)
    proposer.levels = levels
    found = proposer.propose(WANTED[:1], [offers], 40, rng)
    assert len(found) > 20
    entered = [proposer.enter(one) for one in found]
    proposer.forget()
    assert all(np.isfinite(proposer.trial.lab.scores(one)).all() for one in entered)


def test_offers_are_parents_where_they_are_expected_to_serve_better(proposer):
    rng = np.random.default_rng(0)
    offers = proposer.propose(WANTED, proposer.parents(WANTED, 4), 200, rng)
    found = proposer.parents(WANTED, 3, offers)
    known = [entry.candidate for entry in proposer.trial.archive.entries] + offers
    costs = proposer.judge.costs(known)
    for some, wanted in zip(found, WANTED, strict=True):
        u = proposer.trial.reward.utility(costs, np.array([one.depth for one in known]), wanted)
        assert some == [known[i] for i in np.argsort(-u, kind="stable")[:3]]
    assert any(one in offers for some in found for one in some)


def test_a_recipe_takes_part_once_it_is_chosen_and_only_then(proposer):
    made = proposer.propose(WANTED, proposer.parents(WANTED, 1), 8, np.random.default_rng(0))
    one = next(one for one in made if set(one.models) & set(proposer.made))
    new = next(model for model in one.models if model in proposer.made)
    with pytest.raises(KeyError):
        proposer.trial.lab.scores(one)
    known = set(proposer.trial.recipes)
    entered = proposer.enter(one)
    assert new not in entered.models
    (added,) = set(proposer.trial.recipes) - known
    recipe = proposer.made[new]()
    assert added == recipe_name(recipe) and added in entered.models
    assert np.isfinite(proposer.trial.lab.scores(entered)).all()
    before = dict(proposer.trial.recipes)
    proposer.enter(one)
    assert proposer.trial.recipes == before


def test_edits_are_legal_paths_over_the_pool_and_the_parents_own_models(proposer):
    late = list(proposer.trial.recipes)[4]
    assert late not in proposer.paths.models
    proposer.levels = ("path",)
    found = proposer.propose(WANTED, [[Candidate.identity(late, 6)]], 60, np.random.default_rng(0))
    found = [one for one in found if not one.is_identity(6)]
    assert len(found) > 15
    assert any(late in one.models for one in found)
    for one in found:
        assert PathSpace((late, *proposer.paths.models), 6).contains(one)
    models = {model for one in found for model in one.models}
    assert models & set(EXPERTS)


def test_the_same_generator_proposes_the_same(proposer):
    parents = proposer.parents(WANTED, 3)
    first = proposer.propose(WANTED, parents, 20, np.random.default_rng(3))
    proposer.forget()
    assert proposer.propose(WANTED, parents, 20, np.random.default_rng(3)) == first


@pytest.mark.parametrize("depth", [True, False])
def test_layers_go_one_by_one_each_the_one_that_is_expected_to_cost_least(depth):
    proposer = new_proposer(depth)
    wanted = WANTED if depth else WANTED[:, :3] / WANTED[:, :3].sum(axis=1, keepdims=True)
    judge, paths, reward = proposer.judge, proposer.paths, proposer.trial.reward
    starts = [some[0] for some in proposer.parents(wanted, 1)]
    found = set(proposer.deletions(wanted, starts))
    left = 0
    for preference, here in zip(wanted, starts, strict=True):
        goal = 3 if depth else here.depth - 2
        while here.depth > goal:
            children = [paths.candidate((*here.path[:i], *here.path[i + 1 :])) for i in range(here.depth)]
            children = [one for one in children if paths.legal_orders([[layer for _, layer in one.path]])[0]]
            u = reward.utility(judge.costs(children), np.array([one.depth for one in children]), preference)
            here = children[int(u.argmax())]
            assert here in found
            left += 1
    assert left >= len(wanted)
