"""Which preferences the search serves."""

import numpy as np
import pytest

from models.errors import BadInput
from tasks.schema.params import SearchParams
from tasks.search import wanted_preferences

NAMES = ("math", "code", "layers")


def test_without_a_preference_they_cover_the_simplex():
    wanted = wanted_preferences(SearchParams(preferences=6), NAMES, np.random.default_rng(0))
    assert wanted.shape == (6, 3)
    np.testing.assert_allclose(wanted.sum(axis=1), 1)


def test_a_preference_is_the_only_one():
    wanted = wanted_preferences(SearchParams(preference="math=3,layers=1"), NAMES, np.random.default_rng(0))
    np.testing.assert_allclose(wanted, [[0.75, 0, 0.25]])


def test_a_preference_for_something_else_is_bad_input():
    with pytest.raises(BadInput, match=r"^params.yaml: search.preference: 'speed': unknown objective; there are math"):
        wanted_preferences(SearchParams(preference="speed=1"), NAMES, np.random.default_rng(0))
