"""What a benchmark is: cases that are measured so many times, and the numbers it has to reach."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.project.progress import Progress
from tasks.project.workspace import Workspace

if TYPE_CHECKING:  # it imports torch
    from tasks.bench.engine.rows import Row

Statistic = Literal["ratio", "slope", "growth"]
"""``ratio``: theirs over ours. ``slope``: exponent with which ours grows in x. ``growth``: how much of what theirs
gains between two x ours gains too. Greater is better for a ratio, smaller for the others."""

MODULES = ("merge", "candidate", "prefix", "memory", "scale", "ray", "load")
"""Modules that register a benchmark, in the order in which they are listed."""


@dataclass(frozen=True)
class Measure:
    """A number that is computed from the rows, and what it should be."""

    cases: str
    """Pattern of the cases, as a shell's."""
    quantity: str
    statistic: Statistic = "ratio"
    bound: float | None = None
    """What it has to reach; none where it is only reported."""

    @property
    def target(self) -> str:
        """The bound in words."""
        if self.bound is None:
            return ""
        return f"≥ {self.bound:g}×" if self.statistic == "ratio" else f"≤ {self.bound:g}"


@dataclass(frozen=True)
class Bench:
    """What a benchmark works with."""

    workspace: Workspace
    folder: Path
    """For big files; empty when the benchmark starts, removed when it ends."""
    kept: Path
    """For what takes minutes to make and is small."""
    small: bool
    """A quick run on small input, which proves that it works and measures nothing."""
    seed: int
    progress: Progress


Todo = Iterator[tuple[str, int]]
"""Cases and repetitions still to be measured."""

Run = Callable[[Bench, Todo], Iterator[Sequence["Row"]]]
"""Prepares its input, then yields all rows of a case and repetition together."""


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark."""

    name: str
    title: str
    reach: str
    """What it should reach, for people."""
    check: str
    """How results are compared, for people."""
    version: int
    """Raise it when rows no longer compare with older ones."""
    cases: tuple[str, ...]
    small_cases: tuple[str, ...]
    measures: tuple[Measure, ...]
    repetitions: int
    run: Run


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(
    name: str,
    title: str,
    reach: str,
    check: str,
    *,
    cases: Sequence[str],
    measures: Sequence[Measure],
    small_cases: Sequence[str] = (),
    repetitions: int = 5,
    version: int = 1,
) -> Callable[[Run], Run]:
    """Register the function as a benchmark.

    Args:
        name: what `hm3 bench` calls it.
        title: one line on what is compared.
        reach: one line on what it should reach.
        check: one line on how results are compared.
        cases: what is measured.
        measures: what is reported of it.
        small_cases: what is measured on small input, if other than ``cases``.
        repetitions: how often each case is measured unless the user says otherwise.
        version: of the input and of how it is measured.
    """

    def register(run: Run) -> Run:
        small = tuple(small_cases or cases)
        BENCHMARKS[name] = Benchmark(
            name, title, reach, check, version, tuple(cases), small, tuple(measures), repetitions, run
        )
        return run

    return register


def benchmarks() -> list[Benchmark]:
    """All there are, whatever imported them first."""
    return [find_benchmark(name) for name in dict.fromkeys((*MODULES, *BENCHMARKS))]


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name; imports its module, which takes seconds."""
    if name in MODULES:
        importlib.import_module(f"tasks.bench.engine.{name}")
    return BENCHMARKS[name]
