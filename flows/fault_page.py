"""``docs/results/faults.md``: what was tried on real runs and what was survived, from all raw rows there are."""

from __future__ import annotations

import inspect
from pathlib import Path

import pandas as pd

from flows.fault_kinds import KINDS, STAGES
from tasks.bench.markdown import notes, render
from tasks.records import write_text

START = "start"
"""What is under way before the first stage: servers and the look at the project."""

PAGE = "faults.md"
SETUP = ["commit", "hm3", "torch", "cores", "threads", "cpu"]


def rows_path(results: Path) -> Path:
    """The raw rows, one a fault."""
    return results / "raw" / "faults.csv"


def write_page(results: Path) -> Path:
    """Write the page.

    Args:
        results: folder with ``raw/faults.csv``.

    Returns:
        The page.
    """
    rows = pd.read_csv(rows_path(results))
    places = (START, *STAGES)
    table = []
    for kind in [one for one in KINDS if (rows["kind"] == one).any()]:
        own = rows[rows["kind"] == kind]
        where = [str(int((own["stage"] == place).sum())) for place in places]
        what = (inspect.getdoc(KINDS[kind].disturb) or "").splitlines()[0]
        table.append((kind, what, str(int(own["survived"].sum())), str(len(own)), *where))
    lost = rows[~rows["survived"]].drop_duplicates("seed")
    text = render(
        "faults.md.j2",
        places=places,
        table=table,
        faults=len(rows),
        survived=int(rows["survived"].sum()),
        trials=rows["seed"].nunique(),
        seeds=f"{rows['seed'].min()} to {rows['seed'].max()}",
        lost=lost[["seed", "why"]].to_dict("records"),
        notes=notes(results, "faults"),
        setups=rows[SETUP].drop_duplicates().to_dict("records"),
    )
    write_text(results / PAGE, text)
    return results / PAGE
