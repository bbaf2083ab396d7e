"""What the search expects of candidates that it has not scored, and how much that would add to its front."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.agent.description import Describer
from models.agent.surrogate import Surrogate
from models.candidate import Candidate
from models.front import REFERENCE, Array, Indices
from models.search.archive import Archive
from models.search.reward import Reward

FIRST_STEPS, STEPS = 80, 10
"""Steps on the surrogate's hyperparameters when it is new, and when it has grown."""


@dataclass
class Judge:
    """A surrogate over described candidates, in the terms of the reward."""

    describer: Describer
    surrogate: Surrogate
    reward: Reward
    _known: dict[Candidate, Array] = field(default_factory=dict)

    def describe(self, candidates: Sequence[Candidate]) -> Array:
        """Descriptions (N, F)."""
        for one in candidates:
            if one not in self._known:
                self._known[one] = self.describer([one])[0]
        return np.array([self._known[one] for one in candidates])

    def forget(self, models: Collection[str]) -> None:
        """Drop models that won't take part, and the candidates with them."""
        for model in models:
            self.describer.forget(model)
        self._known = {one: row for one, row in self._known.items() if not any(m in models for m in one.models)}

    def learn(self, archive: Archive, rng: np.random.Generator, steps: int | None = None) -> None:
        """Take in every score of an archive, those on a part of the items too."""
        index = archive.scored(1)
        entries = [archive.entries[i] for i in index]
        steps = (STEPS if self.surrogate.known else FIRST_STEPS) if steps is None else steps
        self.surrogate.fit(
            self.describe([entry.candidate for entry in entries]),
            archive.task_scores(index),
            np.array([archive.cost(0, entry.items) for entry in entries], dtype=np.float64),
            steps,
            rng,
        )

    def expect(self, candidates: Sequence[Candidate]) -> tuple[Array, Array]:
        """Mean and standard deviation (N, K_tasks) of task scores."""
        return self.surrogate.predict(self.describe(candidates))

    def costs(self, candidates: Sequence[Candidate]) -> Array:
        """Expected costs (N, K)."""
        return self.reward.costs(self.expect(candidates)[0], [one.depth for one in candidates])

    def draw(self, candidates: Sequence[Candidate], count: int, rng: np.random.Generator) -> Array:
        """Costs (count, N, K) under joint samples of the task scores."""
        scores = self.surrogate.draw(self.describe(candidates), count, rng)
        return self.reward.costs(scores, [one.depth for one in candidates])


class Targets:
    """What a front is improved for: hypervolume, or the utility under one preference."""

    def __init__(self, reward: Reward, preferences: Array, count: int, rng: np.random.Generator) -> None:
        """Hypervolume where there are several preferences (M, K), else the utility under the one there is.

        Hypervolume is the mean of max_y s_w(y) over directions w, up to a constant, with s_w(y) = min_k (max(0, (r_k -
        y_k) / w_k))^K and w uniform on the positive unit sphere (Zhang & Golovin 2020, Lemma 5).
        """
        self.reward, self.preference = reward, preferences[0] if len(preferences) == 1 else None
        drawn = np.abs(rng.standard_normal((count, preferences.shape[1])))
        self.directions = np.maximum(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), 1e-3)

    def values(self, costs: Array, depths: Indices) -> Array:
        """What each of the costs (..., N, K) is worth in each direction: (..., N, M), at least 0 for hypervolume."""
        if self.preference is not None:
            return self.reward.utility(costs, depths, self.preference)[..., None]
        room = np.maximum(REFERENCE - costs, 0.0)
        lengths = (room[..., None, :] / self.directions).min(axis=-1)
        return np.asarray(lengths ** costs.shape[-1])


def greedy(values: Array, best: Array, count: int, spread: Array, first: int = 0) -> list[int]:
    """Up to ``count`` candidates, one after the other the one that adds most to what is best in each direction.

    Args:
        values: (S, N, M) under S samples, used in turn.
        best: (M,) of what is there.
        count: how many.
        spread: (N,) breaks ties where nothing gains: the greater goes first.
        first: candidates of the batch that are chosen already, each under a sample: the next sample's turn comes first.
    """
    chosen: list[int] = []
    reached = np.tile(best, (len(values), 1))
    open_ = np.ones(values.shape[1], dtype=bool)
    for place in range(min(count, values.shape[1])):
        s = (first + place) % len(values)
        gain = np.maximum(values[s] - reached[s], 0).mean(axis=1)
        gain[~open_] = -np.inf
        most = int(gain.argmax()) if gain.max() > 0 else int(np.where(open_, spread, -np.inf).argmax())
        chosen.append(most)
        open_[most] = False
        reached = np.maximum(reached, values[:, most])
    return chosen


def complete_best(judge: Judge, archive: Archive, whole: Indices, targets: Targets) -> Array:
    """What is best in each direction (M,) among fully scored entries, as the surrogate sees them.

    The scores themselves are those of the lucky: among hundreds on the same items the best ones are too good.
    """
    candidates = [archive.entries[i].candidate for i in whole]
    values = targets.values(judge.costs(candidates), archive.depths(whole))
    return np.asarray(values.max(axis=0))
