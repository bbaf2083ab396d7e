"""What was measured: a row a candidate, and a row a task of it; whatever is there is not measured again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks.bench.repair.ground import Items, Losses
from tasks.bench.setup import Setup, read_rows
from tasks.project.records import write_table

VERSION = 1
ROWS, ITEMS = "repair.csv", "repair-items-{}.csv"
"""Names of the files: of candidates, and of the items of a family."""
DIGITS = 6
"""Of a loss that are kept."""


@dataclass(frozen=True)
class Case:
    """What is measured: a cut, or another change of the merge, that an arm repairs in its way."""

    family: str
    study: str
    arm: str
    what: str
    """The layers that are left out, or the change in words; empty for the uncut merge."""
    split: str
    """On whose items."""

    @property
    def id(self) -> str:
        """Names its items' rows."""
        return hashlib.sha256("\n".join(asdict(self).values()).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Row:
    """One candidate, and what it cost."""

    out: float = 0
    """Layers that are left out; halves of them count half."""
    tokens: int = 0
    """Of the texts that it was calibrated on."""
    making: float = 0
    """Seconds of its repair; where several were made at once, its share."""
    scoring: float = 0
    """Seconds of its scoring; likewise."""
    value: float | None = None
    """What was measured where it is no loss."""
    note: str = ""


COLUMNS = (
    *("version", "id", "family", "study", "arm", "what", "split"),
    *("out", "tokens", "making", "scoring", "value", "note"),
)


@dataclass
class Book:
    """The rows of all families, with a file of items for each."""

    folder: Path
    setup: Setup
    rows: pd.DataFrame = field(init=False)
    items: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        """Read what is there."""
        self.rows, self.items = read(self.folder)
        self._losses: dict[str, Losses] = {}

    def __contains__(self, case: Case) -> bool:
        return bool(len(self.rows)) and case.id in set(self.rows["id"])

    def losses(self, case: Case) -> Losses:
        """Of a case that was measured."""
        if case.id not in self._losses:
            self._losses[case.id] = losses_of(self.items, case.id)
        return self._losses[case.id]

    def add(self, found: Mapping[Case, tuple[Row, Losses | None]], items: Items | None) -> None:
        """Write cases down with their items, if they have any."""
        rows = [
            {"version": VERSION, "id": case.id, **asdict(case), **asdict(row), **asdict(self.setup)}
            for case, (row, _) in found.items()
        ]
        self.rows = joined(self.rows, rows)
        kept = [
            {"version": VERSION, "id": case.id, "task": task, **told(losses, [one == task for one in items.tasks])}
            for case, (_, losses) in found.items()
            if losses is not None and items is not None
            for task in dict.fromkeys(items.tasks)
        ]
        if kept:
            self.items = joined(self.items, kept)
            for family in {case.family for case in found}:
                own = self.rows.loc[self.rows["family"] == family, "id"]
                write_table(self.folder / ITEMS.format(family), self.items[self.items["id"].isin(own)])
        write_table(self.folder / ROWS, self.rows)


def joined(table: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table with more rows."""
    new = pd.DataFrame(list(rows))
    return pd.concat([table, new], ignore_index=True) if len(table) else new


def told(losses: Losses, mine: Sequence[bool]) -> dict[str, str]:
    """Losses of a task's items as a text, and ``+`` or ``-`` for each as its answer is right or not."""
    loss = " ".join(f"{one:.{DIGITS}g}" for one in losses.loss[np.array(mine)].round(DIGITS))
    return {"losses": loss, "right": "".join("-+"[int(one)] for one in losses.right[np.array(mine)])}


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of candidates and of items; empty where there are none.

    Raises:
        BadInput: a file was damaged.
    """
    path, items = folder / ROWS, sorted(folder.glob(ITEMS.format("*")))
    rows = read_rows(path, VERSION) if path.is_file() else pd.DataFrame()
    return rows, pd.concat([read_rows(one, VERSION) for one in items], ignore_index=True) if items else pd.DataFrame()


def losses_of(items: pd.DataFrame, case: str) -> Losses:
    """The losses of one case, in the order of its items."""
    own = items[items["id"] == case]
    loss = [float(one) for text in own["losses"] for one in str(text).split()]
    return Losses(np.array(loss), np.array([one == "+" for text in own["right"] for one in text], dtype=float))


def tasks_of(items: pd.DataFrame, case: str) -> np.ndarray:
    """The tasks of its items."""
    own = items[items["id"] == case]
    return np.repeat(own["task"].to_numpy(), own["right"].str.len())
