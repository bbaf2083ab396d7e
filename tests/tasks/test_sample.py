"""What stage `sample` says of objectives that can't tell candidates apart."""

from types import SimpleNamespace

import numpy as np

from models.candidate import Candidate
from models.front import Scale
from tasks.sample import faint
from tasks.scoring.engine import Scored


def right(share, count=100):
    return tuple(float(number < share * count) for number in range(count))


def test_objectives_with_too_few_items_for_their_range_are_named():
    scored = [
        Scored(Candidate.identity(name, 2), {"photos": right(photos), "digits": right(digits)})
        for name, photos, digits in (("base", 0.7, 0.1), ("a", 0.8, 0.5), ("b", 0.8, 0.9))
    ]
    engine = SimpleNamespace(objectives=lambda split: SimpleNamespace(names=("photos", "digits"), count=lambda _: 100))
    scale = Scale(("photos", "digits"), (0.8, 0.9), (0.7, 0.1))
    (line,) = faint(engine, scored, scale)
    errors = 0.1 / np.sqrt(0.8 * 0.2 / 200)  # of the median source, over both splits
    assert line.startswith(
        f"photos: worst and best source differ by {errors:.1f} standard errors of a mean over 200 items"
    )
