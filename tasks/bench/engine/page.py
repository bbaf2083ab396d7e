"""``engine.md`` and its figure, from all raw rows there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tasks.bench.engine.figure import engine_figure
from tasks.bench.engine.registry import Benchmark, benchmarks
from tasks.bench.engine.rows import Raw
from tasks.bench.engine.summary import Step, Verdict, steps, summarise
from tasks.bench.markdown import render
from tasks.project.records import write_text
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
    def setups(self) -> list[dict[str, str]]:
        """What its rows were measured on, each once."""
        return [
            {str(k): str(v) for k, v in one.items()} for one in self.rows[[*SETUP]].drop_duplicates().to_dict("records")
        ]

    @property
    def steps(self) -> list[Step]:
        """What was measured by x, where it is varied."""
        return steps(self.rows)

    @property
    def wrong(self) -> int:
        """Rows whose results differ."""
        return int((~self.rows["checked"].astype(bool)).sum())


def write_page(results: Path) -> Path:
    """Write the page and the figure of all benchmarks that have rows.

    Args:
        results: folder with ``raw/NAME.csv``.

    Returns:
        The page.

    Raises:
        BadInput: a file of rows is damaged.
    """
    sections = []
    for one in benchmarks():
        rows = Raw(results / "raw" / f"{one.name}.csv", one.version).read()
        if len(rows):
            sections.append(Section(one, rows, summarise(one, rows)))
    write_text(results / PAGE, render("engine.md.j2", sections=sections, figure=FIGURE))
    if sections:
        save_png(engine_figure({one.benchmark.name: (one.rows, one.verdicts) for one in sections}), results / FIGURE)
    return results / PAGE
