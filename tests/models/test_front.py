import itertools

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pymoo.decomposition.aasf import AASF
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from models.errors import BadInput
from models.front import (
    REFERENCE,
    Scale,
    choose,
    greedy,
    hypervolume,
    nondominated,
    serve,
    utility,
)

COSTS = st.integers(1, 12).flatmap(
    lambda n: st.integers(2, 4).flatmap(
        lambda k: arrays(float, (n, k), elements=st.integers(-4, 22).map(lambda x: x / 20))
    )
)


def dominates(a, b):
    return (a <= b).all() and (a < b).any()


def test_costs_run_from_ideal_to_nadir_in_either_direction():
    scale = Scale(("math", "layers"), (0.9, 0.5), (0.1, 1.0))
    np.testing.assert_allclose(scale.costs([[0.9, 0.5], [0.1, 1.0], [0.5, 0.75]]), [[0, 0], [1, 1], [0.5, 0.5]])


def test_costs_are_clipped_above_and_not_below():
    scale = Scale(("math", "layers"), (0.9, 0.5), (0.1, 1.0))
    np.testing.assert_allclose(scale.costs([[-1.0, 0.25]]), [[1.1, -0.5]])
    np.testing.assert_allclose(scale.relative([[-1.0, 0.25]]), [[2.375, -0.5]])


@pytest.mark.parametrize("nadir", [0.5, float("nan")])
def test_an_objective_without_range_is_bad_input(nadir):
    with pytest.raises(BadInput, match="objective math"):
        Scale(("math",), (0.5,), (nadir,))


@given(COSTS)
def test_hypervolume_equals_pymoo_and_moocore(costs):
    reference = np.full(costs.shape[1], REFERENCE)
    fraction = hypervolume(costs) * REFERENCE ** costs.shape[1]
    assert fraction == pytest.approx(HV(ref_point=reference)(costs), abs=1e-12)
    assert fraction == pytest.approx(moocore.hypervolume(costs, ref=reference), abs=1e-12)


def test_hypervolume_of_known_points():
    assert hypervolume(np.zeros((1, 3))) == pytest.approx(1)
    assert hypervolume(np.full((1, 3), REFERENCE)) == 0
    assert hypervolume(np.empty((0, 3))) == 0
    assert hypervolume(np.array([[0.55]])) == pytest.approx(0.5)
    assert hypervolume(np.full((1, 2), -0.1)) > 1


@given(COSTS)
def test_nondominated_equals_brute_force_pymoo_and_moocore(costs):
    brute = [i for i, a in enumerate(costs) if not any(dominates(b, a) for b in costs)]
    assert nondominated(costs).tolist() == brute
    assert np.flatnonzero(moocore.is_nondominated(costs, keep_weakly=True)).tolist() == brute
    assert sorted(NonDominatedSorting().do(costs, only_non_dominated_front=True)) == brute


def test_no_costs_have_an_empty_front():
    assert len(nondominated(np.empty((0, 3)))) == 0


def best_mean(utilities, kept):
    return utilities[list(kept)].max(axis=0).mean()


@given(COSTS, st.integers(1, 6))
def test_greedy_takes_the_one_that_adds_most_each_time(costs, count):
    u = utility(costs, np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]), size=20))
    kept = greedy(u, count)
    assert len(set(kept)) == len(kept) <= count
    for place, one in enumerate(kept):
        before = kept[:place]
        gains = [best_mean(u, [*before, i]) for i in range(len(u))]
        assert gains[one] == pytest.approx(max(gains))
    if len(kept) < min(count, len(u)):  # nothing else adds anything
        assert best_mean(u, kept) == pytest.approx(best_mean(u, range(len(u))))


@given(COSTS)
@settings(max_examples=30)
def test_greedy_reaches_what_is_promised_of_the_best_subset(costs):
    u = utility(costs, np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]), size=20))
    have = np.full(20, u.min())
    gain = max(best_mean(u, subset) for subset in itertools.combinations(range(len(u)), min(3, len(u)))) - u.min()
    kept = greedy(u, 3, have)
    assert (best_mean(u, kept) if kept else u.min()) - u.min() >= (1 - 1 / np.e) * gain - 1e-9


def test_greedy_counts_what_is_there_already():
    u = np.array([[0.9, 0.1], [0.5, 0.6], [0.8, 0.0]])
    assert greedy(u, 3) == [1, 0]
    assert greedy(u, 3, have=np.array([1.0, 0.0])) == [1]
    assert greedy(u, 3, have=np.ones(2)) == []


def test_utility_against_hand_calculation():
    costs = np.array([[0.2, 0.8], [-0.1, 0.4]])
    # λ = (¼, ¾): max(0.05, 0.6) and max(-0.025, 0.3); sums 0.65 and 0.275
    np.testing.assert_allclose(utility(costs, np.array([0.25, 0.75])), [-0.6 - 0.0325, -0.3 - 0.01375])


def test_a_weight_of_zero_ignores_the_objective_even_beyond_the_ideal():
    costs = np.array([[-0.2, 1.0], [-0.1, 0.0]])
    np.testing.assert_allclose(utility(costs, np.array([1.0, 0.0])), [0.21, 0.105])


@given(COSTS)
def test_utility_equals_pymoo_where_every_weight_counts(costs):
    weights = np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]))
    # pymoo's weights divide, ours multiply
    oracle = AASF(rho=0.05)(costs, weights=1 / weights, ideal_point=np.zeros(costs.shape[1])).ravel()
    np.testing.assert_allclose(utility(costs, weights), -oracle, atol=1e-9)


@given(COSTS)
def test_utility_under_many_preferences_is_that_under_each(costs):
    wanted = np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]), size=5)
    table = utility(costs, wanted)
    assert table.shape == (len(costs), 5)
    for j, preference in enumerate(wanted):
        np.testing.assert_array_equal(table[:, j], utility(costs, preference))


@given(COSTS)
@settings(max_examples=50)
def test_the_choice_for_a_positive_preference_is_nondominated(costs):
    for preference in np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]), size=5):
        assert choose(costs, preference) in nondominated(costs)


def test_each_member_is_said_to_serve_what_it_is_best_at():
    costs = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.4, 0.4, 0.4]])
    wanted = np.array([*np.eye(3), np.full(3, 1 / 3), [0.9, 0.1, 0.0]])
    np.testing.assert_array_equal(serve(costs, wanted), wanted[:4])
    np.testing.assert_array_equal(serve(costs[:1], wanted), wanted[:1])


@given(COSTS)
@settings(max_examples=50)
def test_the_choice_has_the_utility_that_pymoo_finds_best(costs):
    for weights in np.random.default_rng(0).dirichlet(np.ones(costs.shape[1]), size=3):
        oracle = AASF(rho=0.05)(costs, weights=1 / weights, ideal_point=np.zeros(costs.shape[1])).ravel()
        assert oracle[choose(costs, weights)] == pytest.approx(oracle.min(), abs=1e-9)
