"""How a batch is shared out among the kinds of proposals: by what each has gained (a bandit with a floor)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import pairwise, permutations

import numpy as np

FLOOR = 0.05
"""Least share of each kind."""

MEMORY = 0.85
"""What a round's gains and costs still count a round later."""


def fair_gains(kinds: Collection[str], value: Callable[[frozenset[str]], float]) -> dict[str, float]:
    """What each kind has added to a value, as the mean over all orders in which they could have come (Shapley 1953).

    That is the same however the kinds are listed, and sums to what they have added together. What each adds to all the
    others would not: where two have found the same, neither would be given anything for it.

    Args:
        kinds: some; the effort grows with the factorial of their number.
        value: of what some of them have found, that of nothing included.
    """
    value, names = cache(value), sorted(kinds)
    gains = {kind: list[float]() for kind in names}
    for order in permutations(names):
        reached = [value(frozenset(order[:count])) for count in range(len(order) + 1)]
        for kind, (before, after) in zip(order, pairwise(reached), strict=True):
            gains[kind].append(after - before)
    return {kind: float(np.mean(added)) for kind, added in gains.items()}


class Shares:
    """Hypervolume gained per item evaluation, by kind of proposal, with old rounds fading."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """Kinds that nothing is known of yet share alike."""
        self.kinds = tuple(kinds)
        self.gain = dict.fromkeys(kinds, 0.0)
        self.cost = dict.fromkeys(kinds, 0.0)

    def learn(self, gains: Mapping[str, float], costs: Mapping[str, float]) -> None:
        """Add what a round has gained and cost, by kind."""
        for kind in self.kinds:
            self.gain[kind] = MEMORY * self.gain[kind] + gains.get(kind, 0.0)
            self.cost[kind] = MEMORY * self.cost[kind] + costs.get(kind, 0.0)

    def shares(self) -> dict[str, float]:
        """The share of each kind; they sum to 1."""
        total, spent = sum(self.gain.values()), sum(self.cost.values())
        if total <= 0 or spent <= 0:
            return dict.fromkeys(self.kinds, 1 / len(self.kinds))
        usual, weight = total / spent, spent / len(self.kinds)  # each kind starts at the mean rate, of so much evidence
        rates = {k: (self.gain[k] + 0.5 * usual * weight) / (self.cost[k] + 0.5 * weight) for k in self.kinds}
        whole, free = sum(rates.values()), 1 - FLOOR * len(self.kinds)
        return {kind: FLOOR + free * rate / whole for kind, rate in rates.items()}

    def places(self, size: int, rng: np.random.Generator) -> dict[str, int]:
        """How many of a batch each kind gets: its share rounded down, and the rest by lot."""
        exact = np.array(list(self.shares().values())) * size
        counts = np.floor(exact + 1e-9).astype(int)
        rest = exact - counts
        if (left := size - counts.sum()) > 0:
            for kind in rng.choice(len(exact), size=left, p=rest / rest.sum()):
                counts[kind] += 1
        return dict(zip(self.kinds, counts.tolist(), strict=True))
