"""The model of a search on many workers, against what can be said without it."""

import pytest

from tasks.bench.engine.cluster import Costs, Load, rung, simulate

pytestmark = pytest.mark.lab

FREE = Costs(item=0.5, chunk=0, candidate=0, round=0, weights=0, network=1)
LOAD = Load(budget=12_000, batch=16, rungs=(32, 128), keep=0.25, spread=0)


def test_one_worker_does_everything_one_after_the_other():
    assert rung([1.0, 2.0, 3.0], 1, FREE)[0] == pytest.approx(6)
    course = simulate(FREE, LOAD, 1, 1)
    a_round = 16 * 32 + 4 * 96
    assert course.rounds == -(-12_000 // a_round)
    assert course.seconds == pytest.approx(0.5 * course.rounds * a_round)
    assert course.busy == pytest.approx(1)


def test_as_many_workers_as_candidates_take_as_long_as_the_longest():
    assert rung([1.0, 2.0, 3.0], 3, FREE)[0] == rung([1.0, 2.0, 3.0], 99, FREE)[0] == pytest.approx(3)


def test_what_the_driver_does_is_done_one_after_the_other():
    slow = Costs(item=0, chunk=2.0, candidate=0, round=5.0, weights=8, network=2)
    seconds, driven = rung([0.0] * 6, 99, slow)
    assert driven == pytest.approx(12)
    assert seconds + 1e-9 >= 12
    course = simulate(slow, LOAD, 99, 3)
    assert course.sharing == pytest.approx(12)
    assert course.seconds >= 12 + 5 * course.rounds


def test_more_workers_are_never_slower_and_gain_nothing_beyond_the_batch():
    took = [simulate(FREE, LOAD, workers, 1).seconds for workers in (1, 2, 4, 8, 16, 64, 512)]
    assert took == sorted(took, reverse=True)
    assert took[0] / took[1] == pytest.approx(2)
    assert took[4] == took[5] == took[6]
