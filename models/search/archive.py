"""Every candidate that was ever scored, with its scores. Candidates are only ever added, and scored on more items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.candidate import Candidate
from models.front import Array, Indices


@dataclass(frozen=True)
class Entry:
    """One candidate of the archive."""

    candidate: Candidate
    kind: str  # base, expert, baseline, recipe, identity, edit, random, actor, deletion or path
    round: int  # in which it was first scored; 0 before the online search
    items: int  # scored on the items [0, items) of each task
    scores: tuple[float, ...] | None  # (K_tasks,) means over those items; None if it failed
    charged: int = 0  # item evaluations that were charged for it
    at: int = 0  # item evaluations that the search had spent when it was last scored


class Archive:
    """Entries in the order in which they came."""

    def __init__(self, entries: Iterable[Entry], counts: Sequence[int]) -> None:
        """Of equal candidates the first stays; ``counts`` (K_tasks) are the items of each task on the search split."""
        self.counts = np.array(counts, dtype=np.int64)
        self.entries: list[Entry] = []
        self._index: dict[Candidate, int] = {}
        self._first: dict[Candidate, tuple[int, tuple[float, ...] | None]] = {}
        for entry in entries:
            if entry.candidate not in self:
                self._append(entry)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._index

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, candidate: Candidate) -> Entry:
        return self.entries[self._index[candidate]]

    @property
    def full(self) -> int:
        """Items after which a candidate is fully scored."""
        return int(self.counts.max())

    def cost(self, start: int, stop: int) -> int:
        """Item evaluations of one candidate on the items [start, stop) of every task."""
        return int((np.minimum(stop, self.counts) - np.minimum(start, self.counts)).sum())

    def record(
        self, candidate: Candidate, kind: str, number: int, stop: int, scores: Sequence[float] | None, at: int = 0
    ) -> None:
        """Add scores on the items up to ``stop`` that the candidate had not been scored on.

        None, or a score of the new items that is no finite number, means that it failed. Means over the two parts are
        combined by item count; a task that has no item in the new part keeps its own.
        """
        if candidate not in self:
            self._append(Entry(candidate, kind, number, 0, (0.0,) * len(self.counts)))
        entry = self[candidate]
        before, after = np.minimum(entry.items, self.counts), np.minimum(stop, self.counts)
        combined: tuple[float, ...] | None = None
        if scores is not None and entry.scores is not None:
            new = np.where(after > before, np.asarray(scores, dtype=np.float64), 0.0)
            total = np.array(entry.scores) * before + new * (after - before)
            combined = tuple(float(value) for value in total / after) if np.isfinite(total).all() else None
        charged = entry.charged + self.cost(entry.items, stop)
        self.entries[self._index[candidate]] = replace(entry, items=stop, scores=combined, charged=charged, at=at)
        self._first.setdefault(candidate, (stop, combined))

    def on_first(self, candidate: Candidate, items: int) -> tuple[float, ...] | None:
        """Scores of a candidate over so many first items, if that is how it was first scored; else over all it has."""
        stop, scores = self._first.get(candidate, (0, None))
        return scores if stop == items else self[candidate].scores

    def _append(self, entry: Entry) -> None:
        self._index[entry.candidate] = len(self.entries)
        self.entries.append(entry)

    def scored(self, at_least: int, below: int | None = None) -> Indices:
        """Indices of the entries that did not fail and were scored on so many items."""
        return np.array(
            [
                i
                for i, entry in enumerate(self.entries)
                if entry.scores is not None and at_least <= entry.items and (below is None or entry.items < below)
            ],
            dtype=np.int64,
        )

    def task_scores(self, index: Indices) -> Array:
        """(N, K_tasks) of entries that did not fail."""
        rows = [self.entries[i].scores or () for i in index]
        return np.array(rows, dtype=np.float64).reshape(len(index), len(self.counts))

    def depths(self, index: Indices) -> Indices:
        """(N,) layers of those entries."""
        return np.array([self.entries[i].candidate.depth for i in index], dtype=np.int64)
