"""Measures cases of one family, and chooses cuts greedily by what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from models.candidate import Candidate
from models.front import Array
from models.paths.folded import Fold
from models.paths.prefix import Requests
from models.paths.repair import Seam, calibrate
from tasks.bench.repair.arms import RIDGE, TOKENS, Cut, cut_path, forget, repaired, runs, seams
from tasks.bench.repair.ground import Ground, Items
from tasks.bench.repair.rows import Book, Case, Row

CHUNK = 30
"""Candidates that are scored together: what they share is computed once."""

LONGEST = 3
"""Layers that greedy deletion may leave out in one piece."""

Build = Callable[[Sequence[str]], Sequence[Candidate]]
"""Candidates for some cases."""


@dataclass
class Lab:
    """One family with its rows."""

    ground: Ground
    book: Book
    tell: Callable[[str], None]

    @property
    def uncut(self) -> Case:
        """The merge itself."""
        return self.case("uncut", "uncut", "", "test")

    def case(self, study: str, arm: str, what: str, split: str = "test") -> Case:
        """A case of this family."""
        return Case(self.ground.name, study, arm, what, split)

    def count(self, study: str) -> int:
        """Cases of a study that are measured."""
        rows = self.book.rows
        return int(((rows["family"] == self.ground.name) & (rows["study"] == study)).sum()) if len(rows) else 0

    def items(self, split: str) -> Items:
        """Items of a split."""
        return self.ground.test if split == "test" else self.ground.search

    def measure(
        self, study: str, arm: str, whats: Sequence[str], build: Build, row: Row | None = None, split: str = "test"
    ) -> None:
        """Build and score what isn't measured yet; ``row``: what is known of it beforehand."""
        left = [one for one in dict.fromkeys(whats) if self.case(study, arm, one, split) not in self.book]
        if not left:
            return
        self.tell(f"{study}: {arm}: {len(left)}")
        items = self.items(split)
        began = time.perf_counter()
        candidates = build(left)
        making = (time.perf_counter() - began) / len(left)
        for first in range(0, len(left), CHUNK):
            some, now = left[first : first + CHUNK], time.perf_counter()
            losses = self.ground.score(candidates[first : first + CHUNK], items)
            scoring = (time.perf_counter() - now) / len(some)
            measured = {
                self.case(study, arm, what, split): (
                    replace(
                        row or Row(),
                        out=(row.out if row else 0) or self.ground.layers - candidate.depth,
                        making=round(making, 3),
                        scoring=round(scoring, 3),
                    ),
                    one,
                )
                for what, one, candidate in zip(some, losses, candidates[first:], strict=False)
            }
            self.book.add(measured, items)
        forget(self.ground)

    def measure_cuts(
        self,
        study: str,
        arm: str,
        cuts: Sequence[Cut],
        build: Callable[[Sequence[Cut]], Sequence[Candidate]],
        tokens: int = 0,
        split: str = "test",
    ) -> None:
        """The same for cuts."""
        named = {spelled(cut): cut for cut in cuts}
        self.measure(study, arm, list(named), lambda some: build([named[one] for one in some]), Row(0, tokens), split)

    def measure_uncut(self) -> None:
        """The merge itself, on both splits."""
        for split in ("test", "search"):
            self.measure("uncut", "uncut", [""], lambda _: [cut_path(self.ground, ())], split=split)

    def naive(self, cuts: Sequence[Cut]) -> list[Candidate]:
        """Cuts as they are."""
        return [cut_path(self.ground, cut) for cut in cuts]

    @cached_property
    def folds(self) -> Mapping[Seam, Fold]:
        """What repairs every short run of layers, from one calibration."""
        self.tell(f"calibrate on {TOKENS:,} tokens")
        return calibrate(self.ground.pool, self.texts(TOKENS), runs(self.ground.layers, LONGEST), RIDGE)

    def ours(self, cuts: Sequence[Cut]) -> list[Candidate]:
        """Cuts repaired from one calibration that serves them all."""
        return [repaired(self.ground, cut_path(self.ground, cut), self.folds) for cut in cuts]

    def solved(self, cuts: Sequence[Cut], requests: Requests, ridge: float) -> list[Candidate]:
        """Cuts repaired from a calibration of their own seams."""
        folds = calibrate(self.ground.pool, requests, seams(self.ground, cuts), ridge)
        return [repaired(self.ground, cut_path(self.ground, cut), folds) for cut in cuts]

    def texts(self, tokens: int) -> Requests:
        """Calibration items of all tasks, with their answers."""
        return self.ground.texts(tokens)

    def rise(self, case: Case) -> Array:
        """By how much the loss of each task is above that of the uncut merge, relative to it ``(K,)``."""
        items = self.items(case.split)
        base = self.means(replace(self.uncut, split=case.split), items)
        return np.asarray(self.means(case, items) / base - 1)

    def means(self, case: Case, items: Items) -> Array:
        """Mean loss of each task ``(K,)``."""
        tasks, loss = np.array(items.tasks), self.book.losses(case).loss
        return np.array([loss[tasks == task].mean() for task in self.ground.tasks])


def spelled(cut: Cut) -> str:
    """A cut as rows name it."""
    return " ".join(map(str, sorted(cut)))


def greedy(lab: Lab, arm: str, build: Callable[[Sequence[Cut]], Sequence[Candidate]], depth: int) -> list[Cut]:
    """The cuts of 1 to ``depth`` layers that greedy deletion makes on the search items, by the worst task.

    Lazily (Minoux 1978): by how much a layer's removal raised the losses is known from when it was tried last.
    """
    cut: Cut = ()
    here = np.zeros(len(lab.ground.tasks))
    added: dict[int, Array] = {}
    found: list[Cut] = []

    def allowed(layer: int) -> bool:
        gone = set(cut) | {layer}
        run = [one for one in range(lab.ground.layers - LONGEST) if set(range(one, one + LONGEST + 1)) <= gone]
        return layer not in cut and not run

    while len(cut) < depth and (left := [layer for layer in range(lab.ground.layers) if allowed(layer)]):
        tried: set[int] = set()
        while True:
            new = [layer for layer in left if layer not in added]
            best = new or [min(left, key=lambda layer: float((here + added[layer]).max()))]
            if best[0] in tried:
                break
            cuts = [tuple(sorted((*cut, layer))) for layer in best]
            lab.measure_cuts("choice", arm, cuts, build, split="search")
            for layer, one in zip(best, cuts, strict=True):
                added[layer] = lab.rise(lab.case("choice", arm, spelled(one), "search")) - here
            tried.update(best)
        cut, here = tuple(sorted((*cut, best[0]))), here + added[best[0]]
        found.append(cut)
    return found
