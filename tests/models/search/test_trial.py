"""A trial charges what it scores, and spends no more than its budget."""

import numpy as np
import pytest

from models.front import REFERENCE
from models.search.environment import PathSpace
from tests.models.lab import EXPERTS, FULL, new_trial, recipe_space

PATHS = PathSpace(EXPERTS, 6)


def fresh(count, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        path = PATHS.random_path(rng)
        if not path.is_identity(6):
            found[path] = None
    return list(found)


def test_base_and_experts_are_free():
    trial = new_trial(3)
    assert trial.spent == 0
    assert [entry.charged for entry in trial.archive.entries] == [0] * 4
    assert trial.whole == 60
    assert trial.left == trial.budget == 3 * 60 + 7


def test_a_candidate_is_charged_for_the_items_that_each_task_has():
    trial = new_trial(3)
    one = fresh(1)
    assert trial.spend_on(one, "edit", 15) == 1
    assert (trial.spent, trial.archive[one[0]].charged, trial.archive[one[0]].at) == (15 + 15 + 10, 40, 40)
    assert trial.spend_on(one, "edit") == 1
    assert (trial.spent, trial.archive[one[0]].charged) == (60, 60)
    assert trial.lab.spans == [(one[0], 0, 15), (one[0], 15, FULL)]
    assert trial.archive[one[0]].scores == pytest.approx(trial.lab.scores(one[0]))


def test_what_is_scored_already_costs_nothing():
    trial = new_trial(3)
    some = fresh(2)
    trial.spend_on(some, "edit")
    told = []
    trial.on_spent = told.append
    assert trial.spend_on(some, "edit", 10) == 2
    assert (trial.spent, told, len(trial.lab.calls)) == (120, [], 2)


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_it_scores_as_many_as_the_budget_allows_from_the_first(budget):
    trial = new_trial(budget)
    some = fresh(6)
    assert trial.spend_on(some, "random") == budget
    assert [entry.candidate for entry in trial.archive.entries[4:]] == some[:budget]
    assert trial.spent == budget * 60 <= trial.budget
    assert [entry.at for entry in trial.archive.entries[4:]] == [60 * (i + 1) for i in range(budget)]


def test_candidates_keep_their_kind_and_round_whatever_they_lack():
    trial = new_trial(9)
    some = fresh(4)
    trial.spend_on(some[1:3], ["edit", "layered"], 10, number=2)
    told = []
    trial.on_spent = told.append
    trial.spend_on(some, ["recipe"] * 4, number=3)
    assert {one: (trial.archive[one].kind, trial.archive[one].round) for one in some} == {
        some[0]: ("recipe", 3),
        some[1]: ("edit", 2),
        some[2]: ("layered", 2),
        some[3]: ("recipe", 3),
    }
    assert told == [2 * 60, 2 * 30]
    assert sum(entry.charged for entry in trial.archive.entries) == trial.spent == 4 * 60


def test_a_failure_is_charged_and_has_the_worst_costs_there_are():
    trial = new_trial(3, fails=(2, None))
    some = fresh(2)
    trial.spend_on(some, "edit")
    assert trial.spent == 120
    costs = trial.costs(some)
    assert np.isfinite(costs).all()
    assert (costs[1, :3] == REFERENCE).all()
    assert trial.complete().tolist() == [0, 1, 2, 3, 4]


def test_a_recipe_takes_part_under_the_name_of_its_content():
    trial = new_trial(3)
    recipe = recipe_space().plain_merges()["TIES"]
    first, second = trial.add(recipe), trial.add(recipe)
    assert first == second
    assert first.is_identity(6)
    assert trial.recipes == {first.host: recipe}
    assert trial.spent == 0
