"""What a candidate would add to a front: hypervolume in random directions, or the utility under one preference."""

import math
from itertools import permutations

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.agent.judge import Targets, complete_best, greedy
from models.agent.phases import new_judge
from models.candidate import Candidate
from models.front import REFERENCE, Scale, utility
from models.search.environment import PathSpace
from models.search.reward import Reward
from tests.models.lab import EXPERTS, new_trial, recipe_space


def reward_of(objectives):
    """One whose costs are its scores, turned round."""
    names = tuple(f"task{k}" for k in range(objectives))
    return Reward(Scale(names, (0.0,) * objectives, (-1.0,) * objectives), 4)


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_over_directions_is_the_hypervolume_up_to_a_constant(objectives, seed):
    """The constant is π^(K/2) / (2^K Γ(K/2 + 1)): Zhang & Golovin 2020, Lemma 5."""
    rng = np.random.default_rng(seed)
    costs = rng.uniform(-0.1, 1.3, (8, objectives))
    targets = Targets(reward_of(objectives), np.eye(objectives), 20_000, rng)
    values = targets.values(costs, np.zeros(8)).max(axis=0)
    constant = math.pi ** (objectives / 2) / (2**objectives * math.gamma(objectives / 2 + 1))
    expected = moocore.hypervolume(costs, ref=np.full(objectives, REFERENCE))
    error = constant * values.std() / np.sqrt(len(values))
    assert abs(constant * values.mean() - expected) < 4 * error
    assert error < 0.03 * expected  # or the test would say nothing


def test_beyond_the_reference_point_nothing_counts():
    targets = Targets(reward_of(2), np.eye(2), 50, np.random.default_rng(0))
    assert (targets.values(np.array([[1.2, 0.0], [1.1, 1.1]]), np.zeros(2)) == 0).all()
    assert (targets.values(np.array([[1.0, 0.0]]), np.zeros(1)) > 0).all()


def test_one_preference_asks_for_its_utility_and_several_for_hypervolume():
    wanted = np.array([[0.5, 0.3, 0.2, 0.0]])
    trial = new_trial()
    targets = Targets(trial.reward, wanted, 128, np.random.default_rng(0))
    costs = np.random.default_rng(1).random((3, 5, 4))
    found = targets.values(costs, np.full(5, 6))
    assert found.shape == (3, 5, 1)
    for s in range(3):
        np.testing.assert_allclose(found[s, :, 0], utility(costs[s], wanted[0]))
    several = Targets(trial.reward, np.tile(wanted, (2, 1)), 128, np.random.default_rng(0))
    assert several.values(costs, np.full(5, 6)).shape == (3, 5, 128)


def test_where_depth_is_no_objective_it_costs_utility_as_the_reward_says():
    targets = Targets(reward_of(2), np.array([[0.5, 0.5]]), 1, np.random.default_rng(0))
    same = np.full((2, 2), 0.5)
    found = targets.values(same, np.array([4, 2]))[:, 0]
    assert found[1] - found[0] == pytest.approx(0.02 * 2 / 4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_the_first_place_goes_to_what_brute_force_finds(seed, candidates, directions, below_zero):
    rng = np.random.default_rng(seed)
    values, best = rng.random((1, candidates, directions)) - below_zero, rng.random(directions) - below_zero
    gains = [np.maximum(best, row).mean() - best.mean() for row in values[0]]
    spread = rng.random(candidates)
    wanted = int(np.argmax(gains)) if max(gains) > 0 else int(spread.argmax())
    assert greedy(values, best, 1, spread) == [wanted]


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 4))
def test_each_place_adds_most_to_those_before_it_under_its_own_sample(seed, count, first):
    rng = np.random.default_rng(seed)
    values, best, spread = rng.random((3, 8, 5)), 0.7 * rng.random(5), rng.random(8)
    chosen = greedy(values, best, count, spread, first)
    assert len(chosen) == len(set(chosen)) == min(count, 8)
    for place, one in enumerate(chosen):
        sample, before = values[(first + place) % 3], chosen[:place]
        reached = np.vstack([best, sample[before]]).max(axis=0)
        gains = {i: np.maximum(sample[i] - reached, 0).mean() for i in range(8) if i not in before}
        if max(gains.values()) > 0:
            assert gains[one] == max(gains.values())
        else:
            assert spread[one] == max(spread[i] for i in gains)


def test_greedy_comes_near_the_best_batch():
    """Submodular: at least 1 - 1/e of what the best batch of three gains."""
    rng = np.random.default_rng(0)
    values, best = rng.random((1, 9, 12)) ** 3, np.zeros(12)
    chosen = values[0, greedy(values, best, 3, np.zeros(9))].max(axis=0).mean()
    optimum = max(values[0, list(some)].max(axis=0).mean() for some in permutations(range(9), 3))
    assert chosen >= (1 - 1 / math.e) * optimum


@pytest.fixture(scope="module")
def judged():
    """A trial that has scored recipes and paths, some on a part of the items and some that failed, and its judge."""
    trial, space, rng = new_trial(60, uneven=True, fails=(4, "nan")), recipe_space(), np.random.default_rng(0)
    trial.spend_on([trial.add(space.recipe(point)) for point in space.sample(12, rng)], "recipe")
    paths = PathSpace((*EXPERTS, *trial.recipes), 6)
    some = list(dict.fromkeys(paths.random_path(rng) for _ in range(30)))
    trial.spend_on(some, "random", 10)
    judge = new_judge(trial, space)
    judge.learn(trial.archive, rng)
    return trial, judge, paths


def test_it_learns_from_all_that_did_not_fail_by_how_much_was_scored(judged):
    trial, judge, _ = judged
    archive = trial.archive
    failed = [entry for entry in archive.entries if entry.scores is None]
    sound = [entry for entry in archive.entries if entry.scores is not None]
    assert len(failed) > 5
    assert np.isfinite(archive.task_scores(archive.scored(1))).all()
    assert len(judge.surrogate.target) == len(sound)
    assert judge.surrogate.share.tolist() == [1 if entry.items == 30 else 60 / 30 for entry in sound]
    assert np.isfinite(judge.expect([entry.candidate for entry in failed])[0]).all()


def test_expected_costs_are_those_of_expected_scores_and_of_the_depth_that_is_known(judged):
    trial, judge, paths = judged
    rng = np.random.default_rng(5)
    fresh = [paths.random_path(rng) for _ in range(6)]
    costs = judge.costs(fresh)
    expected = trial.reward.costs(judge.expect(fresh)[0], [one.depth for one in fresh])
    np.testing.assert_array_equal(costs, expected)
    np.testing.assert_allclose(costs[:, 3], [min((0.5 - one.depth / 6) / (0.5 - 1), 1.1) for one in fresh])
    drawn = judge.draw(fresh, 300, np.random.default_rng(0))
    assert drawn.shape == (300, 6, 4)
    assert (drawn[..., 3] == costs[:, 3]).all()
    assert drawn.max() <= REFERENCE


def test_what_is_best_so_far_is_taken_from_what_is_fully_scored_as_expected(judged):
    trial, judge, _ = judged
    targets = Targets(trial.reward, np.eye(4), 40, np.random.default_rng(0))
    whole = trial.complete()
    assert {trial.archive.entries[i].items for i in whole} == {30}
    best = complete_best(judge, trial.archive, whole, targets)
    costs = judge.costs([trial.archive.entries[i].candidate for i in whole])
    np.testing.assert_allclose(best, targets.values(costs, trial.archive.depths(whole)).max(axis=0))
    assert best.shape == (40,)


def test_a_recipe_that_nobody_has_merged_yet_can_be_judged(judged):
    _, judge, _ = judged
    recipe = recipe_space().make("task_arithmetic", {name: {"weight": 0.7} for name in EXPERTS})
    judge.describer.add("new", recipe)
    (mean,), (deviation,) = judge.expect([Candidate.identity("new", 6)])
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()
