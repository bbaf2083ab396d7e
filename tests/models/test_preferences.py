import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput
from models.preferences import alike, parse_preference, preferences, preferences_for

NAMES = ("translation", "math", "code", "layers")


@given(st.integers(1, 6), st.integers(1, 40))
def test_preferences_lie_on_the_simplex(objectives, count):
    found = preferences(objectives, count, np.random.default_rng(0))
    assert found.shape == (count, objectives)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


@given(st.integers(2, 6), st.integers(7, 40))
def test_centroid_and_every_corner_are_among_them_and_none_twice(objectives, count):
    found = preferences(objectives, count, np.random.default_rng(0))
    np.testing.assert_allclose(found[0], 1 / objectives)
    np.testing.assert_array_equal(found[1 : 1 + objectives], np.eye(objectives))
    assert len(np.unique(found.round(9), axis=0)) == count


def test_same_generator_same_preferences():
    first, second = (preferences(4, 16, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@given(st.integers(1, 5), st.integers(1, 60))
def test_half_of_the_mass_ignores_depth_and_half_spreads_over_it(tasks, count):
    names = (*NAMES[:3], "more", "most")[:tasks]
    found = preferences_for(("layers", *names), count, np.random.default_rng(0))
    assert found.shape == (count, tasks + 1) and (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    ignoring, others = found[found[:, 0] == 0, 1:], found[found[:, 0] > 0]
    assert (len(ignoring), len(others)) == (count - count // 2, count // 2)
    np.testing.assert_array_equal(ignoring, preferences(tasks, len(ignoring), np.random.default_rng(0)))
    # the share of an evenly filled simplex on which depth weighs at most w is 1 - (1-w)^(K-1)
    if len(others):
        share = 1 - (1 - np.sort(others[:, 0])) ** tasks
        np.testing.assert_allclose(share, (np.arange(len(others)) + 0.5) / len(others))
    np.testing.assert_allclose(others[:, 1:] / (1 - others[:, :1]), ignoring[: len(others)])


def test_without_depth_all_preferences_are_over_tasks():
    found = preferences_for(NAMES[:3], 9, np.random.default_rng(0))
    np.testing.assert_array_equal(found, preferences(3, 9, np.random.default_rng(0)))


def test_tasks_alike_ignores_depth():
    np.testing.assert_allclose(alike(NAMES), [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(alike(("math",)), [1])


def test_a_preference_is_read_and_normalised():
    np.testing.assert_allclose(parse_preference(" math = 3, translation=1", NAMES), [0.25, 0.75, 0, 0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("math=-1", "no weight"),
        ("math=nan", "no weight"),
        ("math=inf", "no weight"),
        ("math=0,code=0", "all weights are zero"),
        ("foo=1", "unknown objective"),
        ("math=much", "not a number"),
        ("math", "objective=weight"),
        ("", "objective=weight"),
        ("math=1,math=2", "given twice"),
    ],
)
def test_a_useless_preference_is_bad_input_in_one_line(text, says):
    with pytest.raises(BadInput, match=says) as error:
        parse_preference(text, NAMES)
    assert "\n" not in str(error.value)
