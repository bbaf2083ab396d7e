"""``engine.md`` and its figure, from all raw rows there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tasks.bench.engine.figure import engine_figure
from tasks.bench.engine.registry import Benchmark, benchmarks
from tasks.bench.engine.rows import raw_file
from tasks.bench.engine.summary import Step, Verdict, steps, summarise
from tasks.bench.markdown import render, write_pages
from tasks.bench.setup import setups
from tasks.report.style import save_png

PAGE, FIGURE = "engine.md", "engine.png"
SETUP = ("commit", "hm3", "torch", "tools", "cores", "threads", "cpu", "seed")


@dataclass(frozen=True)
class Section:
    """One benchmark's part of the page."""

    benchmark: Benchmark
    rows: pd.DataFrame
    verdicts: list[Verdict]

    @property
    def missed(self) -> list[Verdict]:
        """Targets that are not reached."""
        return [one for one in self.verdicts if one.reached is False]

    @property
    def steps(self) -> list[Step]:
        """What was measured by x, where it is varied."""
        return steps(self.rows)

    @property
    def wrong(self) -> int:
        """Rows whose results differ."""
        return int((~self.rows["checked"].astype(bool)).sum())


def sections(results: Path) -> list[Section]:
    """The benchmarks that have rows in ``raw/NAME.csv``.

    Raises:
        BadInput: a file of rows is damaged.
    """
    found = ((one, raw_file(results, one).read()) for one in benchmarks())
    return [Section(one, rows, summarise(one, rows)) for one, rows in found if len(rows)]


def texts(found: list[Section]) -> dict[str, str]:
    """The page, by the name of its file."""
    return {PAGE: render("engine.md.j2", sections=found, figure=FIGURE, setups=lambda rows: setups(rows, SETUP))}


def write_engine(results: Path) -> Path:
    """Write the page and the figure of all benchmarks that have rows; the page.

    Raises:
        BadInput: a file of rows is damaged.
    """
    found = sections(results)
    if found:
        save_png(engine_figure({one.benchmark.name: (one.rows, one.verdicts) for one in found}), results / FIGURE)
    return write_pages(results, texts(found))
