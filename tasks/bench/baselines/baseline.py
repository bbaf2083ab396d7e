"""What a baseline is, and how it spends the budget of its trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.candidate import Candidate
from models.front import REFERENCE, Array
from models.merge.space import RecipeSpace
from models.search.environment import PathRules
from models.search.trial import Trial

Run = Callable[[Trial, RecipeSpace, PathRules, np.random.Generator], None]
"""Searches until the budget does not pay for one more candidate, or nothing is left to try.

Base and experts are in the trial's archive from the start. The same seed gives the same archive, bit for bit.
"""


@dataclass(frozen=True)
class Baseline:
    """A way to search that HM3 is compared with."""

    name: str
    title: str
    settings: str
    """Which settings it has, and where they come from."""
    run: Run
    paths: bool
    """Whether it can change a model's depth."""


def all_scored(trial: Trial, candidates: Sequence[Candidate], kind: str, limit: int | None = None) -> bool:
    """Score on all items what isn't in the archive yet; as many, from the first, as may be spent.

    Args:
        trial: pays for it.
        candidates: may repeat.
        kind: where they come from.
        limit: of the item evaluations that the trial has spent in all; by default its budget.

    Returns:
        Whether all of them are scored now.
    """
    fresh = [one for one in dict.fromkeys(candidates) if one not in trial.archive]
    room = (min(trial.budget, limit or trial.budget) - trial.spent) // trial.whole
    trial.spend_on(fresh[: max(room, 0)], kind)
    return len(fresh) <= room


def excess(trial: Trial, candidates: Sequence[Candidate]) -> Array:
    """(N,) by how much costs lie beyond the reference point, in sum; such a candidate dominates no hypervolume."""
    return np.asarray(np.maximum(trial.relative(candidates) - REFERENCE, 0).sum(axis=1))


def utilities(trial: Trial, candidates: Sequence[Candidate], preference: Array) -> Array:
    """Utility (N,) of scored candidates under a preference (K,), without clipping."""
    depths = np.array([one.depth for one in candidates])
    return trial.reward.utility(trial.relative(candidates), depths, preference)


def whole(trial: Trial) -> list[Candidate]:
    """Candidates of the archive that are scored on all items and did not fail."""
    return [trial.archive.entries[i].candidate for i in trial.complete()]


def plain(trial: Trial) -> list[Candidate]:
    """Those of them that are models as they were merged or given: identity paths."""
    return [one for one in whole(trial) if one.is_identity(trial.lab.layers)]


def directions(objectives: int, count: int) -> Array:
    """Up to K + 1 preferences (N, K) for searches that take one at a time: the centroid, then half-way to each corner.

    The last corner comes first, since depth is the last objective where it is one. Corners themselves ask for one
    expert, which is known.
    """
    centroid = np.full(objectives, 1 / objectives)
    return np.stack([centroid, *((centroid + corner) / 2 for corner in np.eye(objectives)[::-1])])[: max(count, 1)]
