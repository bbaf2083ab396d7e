"""Which of some candidates become members of the front: decided by their item scores alone (docs/method.md, section 2).

Members are taken one by one, each the one that adds most to the best utility under the preferences that matter. Then a
base, expert or plain merge that no member matches for somebody who weighs the tasks alone becomes a member too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from models.front import REFERENCE, RHO, TINY, Array, Indices, Scale, best_of_each, greedy, utility
from models.preferences import DEPTH, preferences_for

OVER_TASKS = 232
"""Preferences over tasks alone. Of three tasks these are the simplex in steps of a twentieth, and its centroid."""


@cache
def chosen_by(names: tuple[str, ...]) -> Array:
    """The preferences (M, K) under which members are chosen, and of which each is said to serve one."""
    count = 2 * OVER_TASKS if DEPTH in names else OVER_TASKS
    found = preferences_for(names, count, np.random.default_rng(0))
    found.setflags(write=False)
    return found


@dataclass(frozen=True)
class ItemTable:
    """What is known of N candidates, item by item."""

    scale: Scale
    items: Mapping[str, Array]
    """Task → scores (N, its items); all candidates have the same items."""
    layers: Indices
    """Layers that a token passes (N,)."""
    whole: int
    """Layers of the base, L."""

    @cached_property
    def costs(self) -> Array:
        """Costs (N, K) without clipping, by the mean over the items."""
        scores = {name: values.mean(axis=1) for name, values in self.items.items()} | {DEPTH: self.layers / self.whole}
        return self.scale.relative(np.stack([scores[name] for name in self.scale.names], axis=1))

    @cached_property
    def covariances(self) -> Array:
        """(K, N, N) of mean costs, from item to item of each task; depth has none."""
        found = np.zeros((len(self.scale.names), len(self.layers), len(self.layers)))
        for name, values in self.items.items():
            k = self.scale.names.index(name)
            spread = (values - values.mean(axis=1, keepdims=True)) / (self.scale.ideal[k] - self.scale.nadir[k])
            found[k] = spread @ spread.T / values.shape[1] ** 2
        return found

    def noise(self, one: int, others: Indices, preferences: Array) -> Array:
        """Standard error (M,) of the difference in utility of one candidate and another, under a preference each.

        Both are scored on the same items, so what counts is how their difference varies from item to item, not how much
        each of them does. Utilities are linear in the costs but for their worst objective, which is taken as it is.

        Args:
            one: a candidate.
            others: (M,) the other, for each preference.
            preferences: (M, K).
        """
        a, b = slopes(self.costs[one], preferences), slopes(self.costs[others], preferences)
        own, other = self.covariances[:, one, one], self.covariances[:, others, others].T
        squares = a**2 * own - 2 * a * b * self.covariances[:, one, others].T + b**2 * other
        return np.asarray(np.sqrt(np.maximum(squares.sum(axis=1), 0.0)))


def slopes(costs: Array, preferences: Array) -> Array:
    """How the augmented Tchebycheff utility falls with each cost (M, K), at costs (K,) or (M, K)."""
    weighted = np.where(preferences > 0, preferences * costs, -np.inf)
    worst = weighted.argmax(axis=-1)[:, None] == np.arange(preferences.shape[1])
    return np.asarray(preferences * (worst + RHO))


@dataclass(frozen=True)
class Chosen:
    """Indices of candidates, ascending."""

    members: tuple[int, ...]
    corners: tuple[int, ...]
    """The best of an objective; they take no place from members."""


def choose(table: ItemTable, references: Sequence[int], count: int) -> Chosen:
    """The members of a front, ``count`` at most unless the references need more, and the corners beside them.

    Finds beyond the reference point are left out: a model is not worth having for being short alone.

    Args:
        table: what is known.
        references: base, experts and plain merges. Whoever weighs tasks alone finds a member of no more layers that is
            as good as any of them, up to the noise of their difference; at most all of them become members.
        count: places.
    """
    finds = np.flatnonzero((table.costs < REFERENCE).all(axis=1))
    among = sorted({*references, *map(int, finds)})
    if not among:
        return Chosen((), ())
    corners = best_of_each(table.costs, among)
    utilities = utility(table.costs, chosen_by(table.scale.names))
    # of equal gains the first counts: with the least sum of costs in front, no member dominates another
    others = sorted((i for i in among if i not in corners), key=lambda i: float(table.costs[i].sum()))
    members = [others[i] for i in greedy(utilities[others], count, utilities[corners].max(axis=0))]
    needed: list[int] = []
    while (lead := missing(table, references, [*members, *corners])).any():
        needed.append(references[int(lead.sum(axis=1).argmax())])
        members.append(needed[-1])
        if len(members) > count and (spare := [i for i in members if i not in needed]):
            members.remove(min(spare, key=lambda i: _loss(table, utilities, references, [*members, *corners], i)))
    return Chosen(tuple(sorted(members)), tuple(sorted(corners)))


def missing(table: ItemTable, references: Sequence[int], members: Sequence[int]) -> Array:
    """By how much (R, M) a reference is better than the best member of no more layers, under preferences over tasks.

    0 where it is not, or not by more than the noise of their difference; infinite where no member has so few layers.
    """
    preferences = chosen_by(table.scale.names)
    if DEPTH in table.scale.names:
        preferences = preferences[preferences[:, table.scale.names.index(DEPTH)] == 0]
    utilities, held = utility(table.costs, preferences), np.array(members, dtype=np.int64)
    found = np.full((len(references), len(preferences)), np.inf)
    for row, one in enumerate(references):
        shallow = held[table.layers[held] <= table.layers[one]]
        if len(shallow):
            best = shallow[utilities[shallow].argmax(axis=0)]
            lead = utilities[one] - utilities[best, np.arange(len(preferences))]
            found[row] = np.where(lead > table.noise(one, best, preferences) + TINY, lead, 0.0)
    return found


def _loss(
    table: ItemTable, utilities: Array, references: Sequence[int], members: Sequence[int], gone: int
) -> tuple[int, float]:
    """What is lost with one of some members: first what references then lead in, then utility."""
    left = [i for i in members if i != gone]
    return int((missing(table, references, left) > 0).sum()), -float(utilities[left].max(axis=0).mean())
