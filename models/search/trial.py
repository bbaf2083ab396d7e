"""A trial: one search with its budget. Whatever it scores is charged, and written into its archive.

Every method that is compared goes through here, so that all pay the same for the same (method.md, section 4): one item
evaluation a candidate and item, whether or not somebody else has scored it before. Sources are scored for free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from models.candidate import Candidate
from models.front import REFERENCE, Array, Indices
from models.merge.recipe import Recipe
from models.paths.slopes import Taught
from models.search.archive import Archive
from models.search.reward import Reward

FAILED = 1e3
"""Cost, in every objective, of a candidate that failed: finite, so that every algorithm can go on with it."""

PASSES = 3
"""Item evaluations that one forward with one backward pass costs."""


class Lab(Protocol):
    """Where models are built and scored on the search split."""

    @property
    def layers(self) -> int:
        """Layers of the base, L."""

    def add(self, recipe: Recipe) -> Candidate:
        """Let a recipe take part under the name that follows from its content; its identity path."""

    def mean_scores(self, candidates: Sequence[Candidate], start: int, stop: int) -> Sequence[Sequence[float] | None]:
        """Mean task scores (K_tasks,) of each over the items [start, stop) of every task; None if it failed."""

    def influence(self, candidate: Candidate) -> Array | None:
        """Block influence (T,) of each layer of a path, over all items; None if it is not finite."""

    def statistics(self, models: Sequence[str]) -> Array:
        """Statistics (M, L, F) of the layers of models, see :func:`models.search.features.layer_statistics`."""

    @property
    def answered(self) -> Sequence[int]:
        """Items of each task that have a right answer whose worth is known: all of them, or 0."""

    def slopes(self, weights: Array, items: Sequence[Sequence[int]]) -> Sequence[Taught | None]:
        """See :class:`models.agent.actor.Teacher`."""


@dataclass
class Trial:
    """A budget of item evaluations, and what was scored with it."""

    lab: Lab
    reward: Reward
    archive: Archive
    budget: int
    """Item evaluations in all, those that were spent before included."""
    spent: int = 0
    recipes: dict[str, Recipe] = field(default_factory=dict)
    """Recipes that take part, by their name in the pool."""
    on_spent: Callable[[int], None] | None = None
    """Told how many item evaluations were just spent."""

    @property
    def left(self) -> int:
        """Item evaluations that may still be spent."""
        return self.budget - self.spent

    @property
    def whole(self) -> int:
        """Item evaluations that one candidate costs on all items."""
        return self.archive.cost(0, self.archive.full)

    def add(self, recipe: Recipe) -> Candidate:
        """Let a recipe take part; its identity path."""
        candidate = self.lab.add(recipe)
        self.recipes[candidate.host] = recipe
        return candidate

    def spend_on(
        self, candidates: Sequence[Candidate], kinds: str | Sequence[str], stop: int | None = None, number: int = 0
    ) -> int:
        """Score on the items up to ``stop`` that each lacks; as many, from the first, as the budget allows.

        Args:
            candidates: each once.
            kinds: where each came from, or all.
            stop: item after the last; by default all.
            number: of the round.

        Returns:
            How many were scored or needed no scoring.
        """
        stop = self.archive.full if stop is None else stop
        kinds = [kinds] * len(candidates) if isinstance(kinds, str) else kinds
        starts = [self.archive[one].items if one in self.archive else 0 for one in candidates]
        done = sum(start >= stop for start in starts)
        for start in sorted({start for start in starts if start < stop}):
            cost = self.archive.cost(start, stop)
            group = [i for i, first in enumerate(starts) if first == start][: self.left // cost]
            for i, scores in zip(group, self.lab.mean_scores([candidates[i] for i in group], start, stop), strict=True):
                self.spent += cost
                self.archive.record(candidates[i], kinds[i], number, stop, scores, self.spent)
            done += len(group)
            if self.on_spent and group:
                self.on_spent(cost * len(group))
        return done

    def influence(self, candidate: Candidate) -> Array | None:
        """Block influence (T,) of a path's layers, charged as one candidate on all items; None if it failed.

        Raises:
            ValueError: the budget does not pay for it.
        """
        self._charge(self.whole)
        return self.lab.influence(candidate)

    def slopes(self, weights: Array, items: Sequence[Sequence[int]]) -> Sequence[Taught | None]:
        """What a merge is worth on some items of each task, with slopes; charged three evaluations an item.

        Raises:
            ValueError: the budget does not pay for it.
        """
        self._charge(PASSES * sum(map(len, items)))
        return self.lab.slopes(weights, items)

    def _charge(self, cost: int) -> None:
        if self.left < cost:
            raise ValueError(f"{self.left} item evaluations are left, and {cost} are needed")
        self.spent += cost
        if self.on_spent:
            self.on_spent(cost)

    def costs(self, candidates: Sequence[Candidate]) -> Array:
        """Costs (N, K) of scored candidates; those of a failed one are the worst there are."""
        rows = [self.archive[one] for one in candidates]
        tasks = np.array([one.scores or np.full(len(self.archive.counts), np.nan) for one in rows])
        costs = self.reward.costs(tasks.reshape(len(rows), -1), [one.candidate.depth for one in rows])
        return np.where(np.isnan(costs), REFERENCE, costs)

    def relative(self, candidates: Sequence[Candidate], items: int | None = None) -> Array:
        """Costs (N, K) of scored candidates without clipping: how bad a bad one is shows the way to a better one.

        Where ``items`` are given: over so many first items of those that were scored on them to begin with.
        """
        archive, lacking = self.archive, np.full(self.reward.tasks, np.nan)
        known = [archive[one].scores if items is None else archive.on_first(one, items) for one in candidates]
        tasks = np.array([lacking if one is None else one for one in known]).reshape(len(candidates), -1)
        costs = self.reward.scale.relative(self.reward.scores(tasks, [one.depth for one in candidates]))
        return np.asarray(np.where(np.isfinite(costs).all(axis=1, keepdims=True), costs, FAILED))

    def complete(self) -> Indices:
        """Entries of the archive that are scored on all items and did not fail."""
        return self.archive.scored(self.archive.full)
