"""Preferences: non-negative weights over the objectives that sum to 1 (λ of method.md).

:func:`preferences_for` says which ones matter. The search aims at them, members of the front are chosen by them, and
each member is said to serve one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pymoo.util.ref_dirs import get_reference_directions

from models.errors import BadInput

Array = npt.NDArray[np.float64]


DEPTH = "layers"
"""The objective that some users ignore."""


def preferences_for(names: Sequence[str], count: int, rng: np.random.Generator) -> Array:
    """The preferences that matter: half of them ignore depth, half spread over it. All ignore it where it is none.

    Both halves cover the tasks alike (:func:`preferences`). In the second one the weights of depth are spaced as on a
    simplex that is filled evenly: w = 1 - (1 - u)^(1/(K-1)), u uniform on (0, 1), K with depth.

    Args:
        names: of the objectives (K).
        count: N. The half that ignores depth has the odd one.
        rng: fills up Das-Dennis directions, and deals out the weights of depth.

    Returns:
        (N, K), the rows sum to 1; those that ignore depth and the others in turn.
    """
    if DEPTH not in names:
        return preferences(len(names), count, rng)
    tasks = preferences(len(names) - 1, -(-count // 2), rng)
    half = count // 2
    weights = np.zeros(count)
    weights[1::2] = 1 - (1 - (rng.permutation(half) + 0.5) / max(half, 1)) ** (1 / (len(names) - 1))
    over_tasks = np.repeat(tasks, 2, axis=0)[:count] * (1 - weights)[:, None]
    return np.insert(over_tasks, list(names).index(DEPTH), weights, axis=1)


SOFTENED = 0.1
"""Share of equal weights in a softened preference: at a corner everything else would be left to chance."""


def softened(wanted: Array) -> Array:
    """Preferences (..., K) with a share of equal weights in them."""
    return np.asarray((1 - SOFTENED) * wanted + SOFTENED / wanted.shape[-1])


def over_tasks(weights: Array, count: int) -> Array:
    """The part of a preference (K,) over its first ``count`` objectives, as one of its own; alike where it has none."""
    tasks = weights[:count]
    return np.asarray(tasks / tasks.sum()) if tasks.any() else np.full(count, 1 / count)


def alike(names: Sequence[str]) -> Array:
    """The preference (K,) that weighs all tasks alike and ignores depth."""
    weights = np.array([float(name != DEPTH) for name in names])
    return np.asarray(weights / weights.sum())


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
        directions = get_reference_directions("das-dennis", objectives, n_partitions=partitions)
        known = np.isclose(directions[:, None], np.stack(fixed)).all(axis=2).any(axis=1)
        fixed += list(np.asarray(directions[~known], dtype=np.float64))
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
