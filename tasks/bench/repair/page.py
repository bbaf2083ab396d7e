"""``repair.md`` and its figure, from the raw rows."""

from __future__ import annotations

from pathlib import Path

from tasks.bench.markdown import notes, render, write_pages
from tasks.bench.repair.families import FAMILIES
from tasks.bench.repair.figure import repair_figure
from tasks.bench.repair.rows import read
from tasks.bench.repair.summary import Measured, correlation, families, sheets, verdicts
from tasks.bench.setup import setups
from tasks.report.style import save_png

PAGE, FIGURE = "repair.md", "repair.png"
SETUP = ("commit", "hm3", "torch", "cores", "threads", "cpu", "seed")


def known(results: Path) -> list[Measured]:
    """The families that have rows.

    Raises:
        BadInput: a file of rows is damaged.
    """
    return families(*read(results / "raw"))


def texts(results: Path) -> dict[str, str]:
    """The page, with what ``notes/repair.md`` says of it, by the name of its file."""
    found = known(results)
    shown = [
        {
            "name": one.family,
            "kind": FAMILIES.get(one.family),
            "sheets": sheets(one),
            "verdicts": verdicts(one) if one.family == "smollm2" else [],
            "correlation": correlation(one),
            "setups": setups(one.rows, SETUP),
        }
        for one in found
    ]
    return {PAGE: render("repair.md.j2", families=shown, notes=notes(results, "repair"), figure=FIGURE)}


def write_repair(results: Path) -> Path:
    """Write the page and its figure."""
    if found := known(results):
        save_png(repair_figure(found), results / FIGURE)
    return write_pages(results, texts(results))
