"""``docs/results/hostile.md``: what became of changed files, kind by kind, from all raw rows there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.bench.hostile.run import Case
from tasks.bench.markdown import Sheet, notes, render, write_pages
from tasks.bench.setup import Setup, setups
from tasks.project.records import write_table

PAGE, ROWS = "hostile.md", "raw/hostile.csv"
GOOD, BAD = ("sound", "refused"), ("traceback", "unusable", "left", "hang", "killed")
SETUP = ("commit", "hm3", "torch", "cores", "cpu")
COLUMNS = ("seed", "kind", "file", "change", "outcome")
"""What cases are counted by; of those that failed, the number of the first is kept, which makes it again."""


def counted(cases: Sequence[Case], setup: Setup) -> pd.DataFrame:
    """A row for each kind, file, change and outcome: how many there were, and the most that one took."""
    table = pd.DataFrame([vars(one) for one in cases])
    grouped = table.groupby(list(COLUMNS), sort=True)
    rows = grouped.agg(
        cases=("number", "size"),
        first=("number", "min"),
        seconds=("seconds", "max"),
        megabytes=("megabytes", "max"),
        said=("said", "first"),
    ).reset_index()
    rows.loc[rows["outcome"].isin(GOOD), ["first", "said"]] = (-1, "")
    return rows.assign(**{name: value for name, value in setup.about().items() if name in SETUP})


def keep(rows: pd.DataFrame, results: Path) -> Path:
    """Write these rows in place of those of the same seeds, and the page."""
    path = results / ROWS
    if path.is_file():
        before = pd.read_csv(path, keep_default_na=False)
        rows = pd.concat([before[~before["seed"].isin(rows["seed"])], rows])
    write_table(path, rows)
    return write_pages(results, texts(results))


def texts(results: Path) -> dict[str, str]:
    """The page from the raw rows, by the name of its file."""
    return {PAGE: page(pd.read_csv(results / ROWS, keep_default_na=False), notes(results, "hostile"))}


def page(rows: pd.DataFrame, said: str = "") -> str:
    """The page's text; ``said``: what people have to say about it."""
    failed = rows[rows["outcome"].isin(BAD)]
    return render(
        "hostile.md.j2",
        sheet=sheet(rows),
        notes=said,
        cases=int(rows["cases"].sum()),
        failed=[dict(row) for row in failed.to_dict("records")],
        bad={one: int(rows.loc[rows["outcome"] == one, "cases"].sum()) for one in BAD},
        seeds=", ".join(str(one) for one in sorted(rows["seed"].unique())),
        slowest=float(rows["seconds"].max()),
        setups=setups(rows.astype(str), SETUP),
    )


def sheet(rows: pd.DataFrame) -> Sheet:
    """Cases by kind and outcome."""
    lines = []
    for kind, own in [*rows.groupby("kind"), ("all", rows)]:
        numbers = [int(own.loc[own["outcome"] == one, "cases"].sum()) for one in (*GOOD, *BAD)]
        most: list[Any] = [f"{own['seconds'].max():.1f}", int(own["megabytes"].max())]
        lines.append(tuple(map(str, (kind, own["cases"].sum(), *numbers, *most))))
    columns = ("kind", "cases", *GOOD, *BAD, "slowest, s", "peak, MB")
    return Sheet("", "", columns, tuple(lines))
