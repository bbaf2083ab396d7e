"""Raw results: a CSV file a benchmark, a row a measurement, with what it was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from models.errors import BadInput
from tasks.bench.engine.registry import Benchmark
from tasks.bench.setup import REMEDY, Setup, read_rows
from tasks.project.records import write_table


@dataclass(frozen=True)
class Row:
    """One quantity of one repetition of a case, as it was measured on both sides where there are two."""

    case: str
    repetition: int
    quantity: str
    """``wall``, ``cpu``, ``memory``, …"""
    unit: str
    ours: float
    theirs: float | None = None
    """The same for what we are compared with."""
    x: float | None = None
    """Size of the problem, where that is varied within a repetition."""
    checked: bool = True
    """Whether both sides gave the same result, or ours the right one."""
    note: str = ""


COLUMNS = ["version", *(one.name for one in (*fields(Row), *fields(Setup)))]


@dataclass(frozen=True)
class Raw:
    """The rows of one version of a benchmark."""

    path: Path
    version: int

    def read(self) -> pd.DataFrame:
        """Its rows; those of another version are left out.

        Raises:
            BadInput: the file was damaged, or has other columns.
        """
        if not self.path.is_file():
            return pd.DataFrame(columns=COLUMNS)
        rows = read_rows(self.path, self.version)
        if list(rows.columns) != COLUMNS:
            raise BadInput(f"{self.path.name}: has other columns than {', '.join(COLUMNS)}; {REMEDY}")
        return rows

    def done(self) -> set[tuple[str, int]]:
        """Cases and repetitions that are measured."""
        return {(str(case), int(repetition)) for case, repetition in self.read()[["case", "repetition"]].values}

    def append(self, rows: Sequence[Row], setup: Setup) -> None:
        """Add all rows of a repetition, at once or not at all; rows of another version go."""
        new = pd.DataFrame([{"version": self.version, **asdict(row), **asdict(setup)} for row in rows])
        new = new.astype({"theirs": float, "x": float})[COLUMNS]
        known = self.read()
        write_table(self.path, pd.concat([known, new], ignore_index=True) if len(known) else new)


def raw_file(results: Path, benchmark: Benchmark) -> Raw:
    """Where the rows of a benchmark are."""
    return Raw(results / "raw" / f"{benchmark.name}.csv", benchmark.version)
