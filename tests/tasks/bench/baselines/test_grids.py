"""The grids hold what the papers tune, and a cut of them is spread evenly."""

from collections import Counter

import numpy as np
import pytest

from models.merge.methods import METHODS
from tasks.bench.baselines.grids import coarse_to_fine, grids, search_grids
from tests.models.lab import RULES, new_trial, recipe_space

pytestmark = pytest.mark.lab


def test_coarse_to_fine_halves_what_is_left():
    line = np.arange(9.0)[:, None]
    assert coarse_to_fine(line, np.array([0.0])).tolist()[:3] == [0, 8, 4]
    assert set(coarse_to_fine(line, np.array([0.0]))[:5]) == {0, 2, 4, 6, 8}
    square = np.array([(x, y) for x in range(5) for y in (0, 100)])
    order = coarse_to_fine(square, np.array([0, 0]))
    assert sorted(order) == list(range(10))
    assert {tuple(square[i]) for i in order[:4]} == {(0, 0), (4, 0), (0, 100), (4, 100)}


def test_the_first_of_each_method_is_what_its_authors_recommend():
    space = recipe_space()
    plain = space.plain_merges()
    by_method = {grid.method: grid.recipes(space) for grid in grids(3)}
    assert set(by_method) <= set(METHODS)
    assert by_method["linear"] == [plain["uniform average"]]
    assert by_method["task_arithmetic"][0] == plain["task arithmetic"]
    assert by_method["dare_ties"][0] == plain["DARE-TIES"]
    first = by_method["ties"][0]
    assert first.models[0].parameters == {"weight": 1.0, "density": 0.2}
    assert first.parameters["lambda"] == 1.0
    assert {name: len(found) for name, found in by_method.items()} == {
        "linear": 1,
        "task_arithmetic": 20,
        "ties": 69,
        "dare_ties": 18,
        "pcb": 52,
        "consensus": 50,
    }


def test_a_cut_budget_leaves_every_method_its_turn():
    trial = new_trial(26)
    search_grids(trial, recipe_space(), RULES, np.random.default_rng(0))
    found = [trial.recipes[one.candidate.host] for one in trial.archive.entries[4:]]
    assert Counter(one.merge_method for one in found) == {
        "linear": 1,
        **dict.fromkeys(("task_arithmetic", "ties", "dare_ties", "pcb", "consensus"), 5),
    }
    weights = sorted(one.models[0].parameters["weight"] for one in found if one.merge_method == "task_arithmetic")
    assert weights[0] == 0.05
    assert weights[-1] == 1.0
    assert max(np.diff(weights)) < 0.4


def test_the_whole_grid_is_tried_once():
    trial = new_trial(500)
    search_grids(trial, recipe_space(), RULES, np.random.default_rng(0))
    assert len(trial.archive) == 4 + 210
