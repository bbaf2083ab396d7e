"""Greedy deletion is what trying every layer would choose; block influence takes layers in the order that it says."""

import itertools

import numpy as np
import pytest

from models.candidate import Candidate
from models.front import RHO
from models.search.deletion import delete_greedily, task_costs, without
from models.search.environment import PathSpace
from tasks.bench.baselines.deletion import delete_by_influence
from tests.models.lab import FULL, new_trial, recipe_space

pytestmark = pytest.mark.lab

PREFERENCE = np.array([0.5, 0.3, 0.2])


def started(candidates=400, **changes):
    trial = new_trial(candidates, **changes)
    recipe = recipe_space().plain_merges()["task arithmetic"]
    start = trial.add(recipe)
    trial.spend_on([start], "recipe")
    return trial, start


def brute_force(trial, start, preference):
    """The path after every step, by scoring all removals at each."""
    here, found = start, []
    while here.depth > 1:
        children = [without(here, step) for step in here.path]
        scores = np.array([trial.lab.scores(one) for one in children])
        costs = trial.reward.scale.relative(trial.reward.scores(scores, [one.depth for one in children]))[:, :3]
        weighted = costs * preference
        u = -weighted.max(axis=1) - RHO * weighted.sum(axis=1)
        here = children[int(u.argmax())]
        found.append(here)
        if (costs[u.argmax()] > 1.1).any():
            break
    return found


@pytest.mark.parametrize(("layers", "seed"), itertools.product([5, 8, 12], range(4)))
def test_greedy_deletion_is_brute_force_step_by_step_at_less_cost(layers, seed):
    trial, start = started(layers=layers, seed=seed)
    wanted = brute_force(trial, start, PREFERENCE)
    trial.lab.calls.clear()
    assert delete_greedily(trial, start, PREFERENCE, {}, FULL) == wanted
    assert layers <= len(trial.lab.calls) <= sum(range(layers - len(wanted) + 1, layers + 1))
    assert len(trial.lab.calls) < layers + 3 * len(wanted)


def test_what_is_seen_of_one_recipe_saves_trials_with_the_next():
    trial, start = started(layers=12)
    known = {}
    delete_greedily(trial, start, PREFERENCE, known, FULL)
    removed = [without(start, step) for step in start.path]
    increases = task_costs(trial, removed) - task_costs(trial, [start])
    np.testing.assert_allclose([known[frozenset(), layer] for layer in range(12)], increases)
    other = trial.add(recipe_space().make("task_arithmetic", {name: {"weight": 0.5} for name in "abc"}))
    trial.spend_on([other], "recipe")
    trial.lab.calls.clear()
    found = delete_greedily(trial, other, PREFERENCE, known, FULL)
    assert found == brute_force(trial, other, PREFERENCE)
    assert len(trial.lab.calls) < 12 + len(found)
    trial.lab.calls.clear()
    assert delete_greedily(trial, other, PREFERENCE, known, FULL) == found
    assert trial.lab.calls == []


def test_without_depth_as_an_objective_it_stops_where_a_deletion_gains_nothing():
    trial, start = started(layers=8, depth=False)
    delete_greedily(trial, start, PREFERENCE, {}, FULL)
    assert {one.candidate.depth for one in trial.archive.entries} == {8, 7}


def test_block_influence_deletes_the_least_influential_up_to_half_of_the_layers():
    trial, start = started(layers=8)
    influence = np.array([0.5, 0.1, 0.4, 0.1, 0.2, 0.6, 0.05, 0.3])
    delete_by_influence(trial, start, influence)
    order = [6, 1, 3, 4]
    wanted = [without(start, *(start.path[i] for i in order[: n + 1])) for n in range(4)]
    found = [one.candidate for one in trial.archive.entries if one.kind == "deletion"]
    assert found == wanted[: len(found)]
    costs = trial.relative(found)
    assert len(found) == 4 or (costs[-1] > 1.1).any()
    assert not (costs[:-1] > 1.1).any()


def test_measuring_influence_is_charged_as_a_candidate():
    trial, start = started(3)
    spent = trial.spent
    assert trial.influence(start).shape == (6,)
    assert trial.spent == spent + trial.whole
    trial.spent = trial.budget - trial.whole + 1
    with pytest.raises(ValueError, match="item evaluations are left"):
        trial.influence(start)


def test_depth_does_not_hide_what_a_deletion_costs():
    trial, start = started(layers=6)
    children = [without(start, step) for step in start.path]
    trial.spend_on(children, "deletion")
    costs = task_costs(trial, children)
    assert costs.shape == (6, 3)
    scores = np.array([(*trial.lab.scores(one), 5 / 6) for one in children])
    np.testing.assert_allclose(costs, trial.reward.scale.relative(scores)[:, :3])


def test_a_path_without_layers_keeps_its_host():
    one = Candidate("h", (("a", 0), ("b", 1), ("a", 2)))
    assert without(one, ("b", 1)) == Candidate("h", (("a", 0), ("a", 2)))


def test_layers_go_by_the_first_items_as_far_as_is_legal_and_the_start_is_seen_on_those_items_too():
    trial, start = started(layers=8)
    trial, recipe = new_trial(400, layers=8), recipe_space().plain_merges()["task arithmetic"]
    start = trial.add(recipe)
    for items in (10, FULL):
        trial.spend_on([start], "recipe", items)
    legal = PathSpace(("a",), 8).legal_orders
    found = delete_greedily(
        trial, start, PREFERENCE, {}, 10, 5, lambda some: legal([[layer for _, layer in one.path] for one in some])
    )
    assert [one.depth for one in found] == [7, 6, 5]
    tried = [one for one in trial.archive.entries if one.kind == "deletion"]
    assert {one.items for one in tried} == {10}
    assert legal([[layer for _, layer in one.candidate.path] for one in tried]).all()
    on_first = trial.reward.scale.relative(trial.reward.scores(trial.lab.scores(start, 0, 10)[None], [8]))[:, :3]
    np.testing.assert_allclose(task_costs(trial, [start], 10), on_first)
    assert not np.allclose(task_costs(trial, [start]), on_first)
