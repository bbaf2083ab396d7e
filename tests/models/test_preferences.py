import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput
from models.preferences import parse_preference, preferences

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
