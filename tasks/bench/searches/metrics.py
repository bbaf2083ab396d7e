"""What a front is worth: indicators on costs, lower is better but for the hypervolume (pymoo and moocore)."""

from __future__ import annotations

from functools import cache

import moocore
import numpy as np
from scipy.stats import qmc

from models.front import Array, hypervolume, nondominated, utility

DIRECTIONS = 1024
"""Preferences over which R2 is taken, a power of 2."""


def igd_plus(costs: Array, reference: Array) -> float:
    """Mean distance of the reference front (M, K) to the part of the objective space that costs (N, K) dominate.

    Ishibuchi et al. 2015; in units of the range from ideal to nadir.
    """
    return float(moocore.igd_plus(costs, ref=reference))


def additive_epsilon(costs: Array, reference: Array) -> float:
    """By how much all costs (N, K) must fall so that they weakly dominate the reference front (Zitzler et al. 2003)."""
    return float(moocore.epsilon_additive(costs, ref=reference))


def expected_loss(costs: Array) -> float:
    """R2: the augmented Tchebycheff loss of the best member, in the mean over uniform preferences."""
    return float(-utility(costs, uniform_preferences(costs.shape[1])).max(axis=0).mean())


@cache
def uniform_preferences(objectives: int) -> Array:
    """Preferences (M, K) that fill the simplex evenly: Sobol points, mapped by the spacings of exponentials."""
    points = qmc.Sobol(objectives, scramble=True, rng=np.random.default_rng(0)).random(DIRECTIONS)
    spacings = -np.log(np.clip(points, 1e-12, 1.0))
    return np.asarray(spacings / spacings.sum(axis=1, keepdims=True), dtype=np.float64)


def union_front(costs: list[Array]) -> Array:
    """The non-dominated ones, each once, of several sets of costs."""
    every = np.unique(np.concatenate(costs), axis=0)
    return np.asarray(every[nondominated(every)])


def hypervolume_by_depth(task_costs: Array, depths: Array, limits: list[int]) -> dict[int, float]:
    """Hypervolume of the task objectives (N, K_tasks) that members of at most so many layers (N,) reach.

    0 where no member is as shallow.
    """
    return {limit: hypervolume(task_costs[depths <= limit]) if (depths <= limit).any() else 0.0 for limit in limits}


def depth_limits(layers: int) -> list[int]:
    """Depths that are reported: from all L layers to half of them, in tenths."""
    return sorted(
        {int(np.floor(layers * share + 1e-9)) for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)} - {0}, reverse=True
    )
