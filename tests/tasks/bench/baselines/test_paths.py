"""Variants of paths leave layers out as readily as they put some in."""

import numpy as np
import pytest

from models.search.environment import PathSpace
from tasks.bench.baselines.paths import OFF, ON, Flips, flips
from tasks.bench.baselines.slots import Slots

pytestmark = pytest.mark.lab

SLOTS = Slots(PathSpace(tuple("abcdef"), 12))


def test_a_variant_loses_and_gains_as_many_switches_as_is_said():
    switches = np.stack([SLOTS.encode(SLOTS.space.identity("b"))] * 4000)
    found = Flips(prob=1.0)._do(None, switches, random_state=np.random.default_rng(0))
    changed = found != switches
    assert changed[switches].sum() / len(switches) == pytest.approx(OFF, rel=0.1)
    assert changed[~switches].sum() / len(switches) == pytest.approx(ON, rel=0.1)
    depths = [SLOTS.decode(one).depth for one in found[:200]]
    assert min(depths) < 11
    assert max(depths) > 12


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_switches_that_are_all_alike_have_a_chance_too(share):
    chances = flips(np.full(10, bool(share)))
    assert (chances > 0).all()
    assert (chances <= 0.4).all()
