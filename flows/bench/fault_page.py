"""``docs/results/faults.md``: what was tried on real runs and what was survived, from all raw rows there are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from flows.bench.fault_kinds import KINDS, STAGES, START
from tasks.bench.markdown import Sheet, notes, render
from tasks.bench.setup import setups

PAGE = "faults.md"
SETUP = ["commit", "hm3", "torch", "cores", "threads", "cpu"]

Rows = Sequence[Mapping[Any, Any]]
"""A row a fault."""


def rows_path(results: Path) -> Path:
    """The raw rows."""
    return results / "raw" / "faults.csv"


def by_kind(rows: Rows) -> Iterator[tuple[tuple[str, str, str], Rows]]:
    """Of each kind that was tried its name, how often it was survived and tried, and its rows."""
    for kind in KINDS:
        if own := [row for row in rows if row["kind"] == kind]:
            yield (kind, str(sum(bool(row["survived"]) for row in own)), str(len(own))), own


def sheet(rows: Rows) -> Sheet:
    """How many faults were survived, kind by kind."""
    return Sheet("", "", ("fault", "survived", "tried"), tuple(counted for counted, _ in by_kind(rows)))


def texts(results: Path) -> dict[str, str]:
    """The page from ``raw/faults.csv``, by the name of its file."""
    table = pd.read_csv(rows_path(results))
    places = (START, *STAGES)
    lines = []
    for (kind, *counts), own in by_kind(table.to_dict("records")):
        what = (inspect.getdoc(KINDS[kind].disturb) or "").splitlines()[0]
        lines.append((kind, what, *counts, *(str(sum(row["stage"] == place for row in own)) for place in places)))
    columns = ("fault", "what happens", "survived", "tried", *(f"in {place}" for place in places))
    text = render(
        "faults.md.j2",
        sheet=Sheet("", "", columns, tuple(lines)),
        faults=len(table),
        survived=int(table["survived"].sum()),
        trials=table["seed"].nunique(),
        seeds=f"{table['seed'].min()} to {table['seed'].max()}",
        lost=table[~table["survived"]].drop_duplicates("seed")[["seed", "why"]].to_dict("records"),
        notes=notes(results, "faults"),
        setups=setups(table, SETUP),
    )
    return {PAGE: text}
