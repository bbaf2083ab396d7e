"""The Pareto front in cost space: dominance, hypervolume, and the utility that chooses members.

A cost is c_k = (z*_k - f_k) / (z*_k - z^nad_k): 0 at the ideal point, 1 at the nadir point, below 0 where a candidate
beats the best source. Ideal above nadir means that higher scores are better, ideal below nadir (``layers``) that lower
ones are; the formula is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
import numpy.typing as npt
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from models.errors import BadInput

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

REFERENCE = 1.1
"""Reference point of the hypervolume in every objective, and the cost at which scores are clipped."""

RHO = 0.05
"""Weight of the augmentation term that makes the best of a preference properly Pareto optimal."""

TINY = 1e-12
"""Below it a difference of utilities is one of rounding."""


@dataclass(frozen=True)
class Scale:
    """Ideal and nadir point of every objective, fixed before a search starts (K entries each)."""

    names: tuple[str, ...]
    ideal: tuple[float, ...]
    nadir: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, ideal, nadir in zip(self.names, self.ideal, self.nadir, strict=True):
            if not np.isfinite([ideal, nadir]).all() or ideal == nadir:
                raise BadInput(
                    f"objective {name}: ideal {ideal:g} and nadir {nadir:g} span no range; base and experts must "
                    "differ on it, so take another task or more items"
                )

    def relative(self, scores: npt.ArrayLike) -> Array:
        """Costs without clipping, (N, K) from scores (N, K): what dominance is decided on."""
        ideal, nadir = np.array(self.ideal), np.array(self.nadir)
        return np.asarray((ideal - np.asarray(scores, dtype=np.float64)) / (ideal - nadir))

    def costs(self, scores: npt.ArrayLike) -> Array:
        """Costs (N, K) from scores (N, K), clipped at ``REFERENCE`` above and not below."""
        return np.minimum(self.relative(scores), REFERENCE)


def hypervolume(costs: Array) -> float:
    """Hypervolume of costs (N, K) as a fraction of the box between ideal and reference point.

    0 is as bad as the worst source, 1 is every expert's best at once, and more is possible.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if costs.shape[1] == 1:  # moocore wants two objectives
        return float(max(0.0, REFERENCE - costs.min(initial=REFERENCE)) / REFERENCE)
    return float(moocore.hypervolume(costs, ref=np.full(costs.shape[1], REFERENCE)) / REFERENCE ** costs.shape[1])


def nondominated(costs: Array) -> Indices:
    """Indices, ascending, of the costs (N, K) that no other dominates; equal ones all stay."""
    return np.sort(np.asarray(NonDominatedSorting().do(np.asarray(costs), only_non_dominated_front=True), np.int64))


def best_of_each(costs: Array, among: Sequence[int] | Indices) -> list[int]:
    """The best of every objective, each index once; ties go to the least sum of costs, then to the first."""
    order = sorted(among, key=lambda i: (costs[i].sum(), i))
    return list(dict.fromkeys(int(min(order, key=lambda i: costs[i, k])) for k in range(costs.shape[1])))


def greedy(utilities: Array, count: int, have: Array | None = None) -> list[int]:
    """Up to ``count`` of N, one after the other the one that raises the mean of the best utilities most.

    It ends where none raises it; ties go to the first. The mean is submodular, so this reaches 63 % of the best gain at
    least (Nemhauser, Wolsey & Fisher 1978), and in practice nearly all.

    Args:
        utilities: (N, M) under M preferences that matter alike.
        count: how many.
        have: (M,) the best utilities of what is there already.
    """
    best = np.full(utilities.shape[1], -np.inf) if have is None else have
    chosen: list[int] = []
    while len(chosen) < min(count, len(utilities)):
        means = np.maximum(utilities, best).mean(axis=1)
        most = int(means.argmax())
        if means[most] <= best.mean() + TINY:
            break
        chosen.append(most)
        best = np.maximum(best, utilities[most])
    return chosen


def scalarise(costs: Array, preferences: Array, rho: float = RHO) -> Array:
    """Augmented Tchebycheff utility (...,) -max_k λ_k c_k - ρ Σ_k λ_k c_k, element by element (method.md, section 4).

    An objective of weight zero is ignored: it stays out of the maximum too, where its 0 would hide that the others are
    better than ideal (c_k < 0). Preferences (..., K) are broadcast against the costs (..., K).
    """
    weighted = preferences * costs
    worst = np.where(preferences > 0, weighted, -np.inf).max(axis=-1)
    return np.asarray(-worst - rho * weighted.sum(axis=-1))


def utility(costs: Array, preference: Array, rho: float = RHO) -> Array:
    """Utility of every candidate (N, K) under one preference (K,) as (N,), or under several (M, K) as (N, M)."""
    if preference.ndim == 1:
        return scalarise(costs, preference, rho)
    return scalarise(costs[:, None, :], preference[None, :, :], rho)


def serve(costs: Array, preferences: Array) -> Array:
    """The preference (N, K), out of the given (M, K), that each member (N, K) of a front serves best.

    That is where its utility leads that of the best other member by most, or trails it by least; ties go to the first.
    """
    u = utility(costs, preferences)  # (N, M)
    if len(u) == 1:
        return np.asarray(preferences[u.argmax(axis=1)])
    best, runner_up = np.sort(u, axis=0)[::-1][:2]
    first = np.arange(len(u))[:, None] == u.argmax(axis=0)
    lead = u - np.where(first, runner_up, best)
    return np.asarray(preferences[lead.argmax(axis=1)])


def ranked(costs: Array, preference: Array) -> Indices:
    """Members (N,) from the best for a preference (K,) on; ties go to the least sum of costs, then to the first."""
    return np.lexsort((costs.sum(axis=1), -utility(costs, preference)))


def choose(costs: Array, preference: Array) -> int:
    """The member for a preference (K,)."""
    return int(ranked(costs, preference)[0])
