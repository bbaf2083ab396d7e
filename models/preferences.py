"""Preferences: non-negative weights over the objectives that sum to 1 (λ of method.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pymoo.util.ref_dirs import get_reference_directions

from models.errors import BadInput

Array = npt.NDArray[np.float64]


def preferences(objectives: int, count: int, rng: np.random.Generator) -> Array:
    """Preferences that cover the simplex: its centroid, its corners, Das-Dennis directions, Dirichlet samples.

    Corners are exact (``e_k``): a weight of zero means that the objective is ignored, and
    :func:`models.front.utility` leaves it out.

    Args:
        objectives: K, depth included where it is one.
        count: N. Fewer than K + 1 leave corners out, the last first.
        rng: draws the Dirichlet samples, which fill up what no complete Das-Dennis layer of directions fits.

    Returns:
        (N, K), the rows sum to 1.
    """
    fixed = [np.full(objectives, 1 / objectives), *np.eye(objectives)]
    if objectives > 1:
        partitions = 1
        while math.comb(objectives + partitions, partitions + 1) + 1 <= count:
            partitions += 1
        for direction in get_reference_directions("das-dennis", objectives, n_partitions=partitions):
            if not any(np.allclose(direction, other) for other in fixed):
                fixed.append(np.asarray(direction, dtype=np.float64))
    fixed = fixed[:count]
    samples = rng.dirichlet(np.ones(objectives), size=count - len(fixed))
    return np.concatenate([np.stack(fixed), samples])


def parse_preference(text: str, names: Sequence[str]) -> Array:
    """A preference (K,), which sums to 1, from ``"translation=0.5,math=0.3"``; the weights in the text need not.

    Objectives, whose ``names`` come in order (K), weigh nothing where the text does not name them.

    Raises:
        BadInput: an unknown or repeated name, a weight that is negative or no number, or no weight above zero.
    """
    weights = dict.fromkeys(names, 0.0)
    given: set[str] = set()
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise BadInput(f"preference: {pair.strip()!r}: write it as objective=weight, separated by commas")
        if name not in weights:
            raise BadInput(f"preference: {name!r}: unknown objective; there are {', '.join(names)}")
        if name in given:
            raise BadInput(f"preference: {name}: given twice; name each objective once")
        given.add(name)
        try:
            weights[name] = float(value)
        except ValueError:
            raise BadInput(f"preference: {name}: {value!r} is not a number; write one like {name}=0.5") from None
        if not math.isfinite(weights[name]) or weights[name] < 0:
            raise BadInput(f"preference: {name}: {value} is no weight; give a finite number of at least 0")
    total = sum(weights.values())
    if total == 0:
        raise BadInput("preference: all weights are zero; give at least one objective a weight above zero")
    return np.array([weights[name] / total for name in names])
