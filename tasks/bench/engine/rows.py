"""Raw results: a CSV file a benchmark, a row a measurement, with what it was measured on."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from models.errors import BadInput, one_line
from tasks.project.git import git
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


@dataclass(frozen=True)
class Setup:
    """What a row was measured on: nothing that names a machine or a folder."""

    seed: int
    commit: str
    """``+`` behind it stands for changes that are not committed."""
    hm3: str
    torch: str
    tools: str
    """Versions of mergekit and lm-eval."""
    cores: int
    threads: int
    cpu: str

    def about(self) -> dict[str, Any]:
        """All but the seed, for rows that have seeds of their own."""
        return {name: value for name, value in asdict(self).items() if name != "seed"}


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
        return (table := read_rows(self.path))[table["version"] == self.version].reset_index(drop=True)

    def done(self) -> set[tuple[str, int]]:
        """Cases and repetitions that are measured."""
        return {(str(case), int(repetition)) for case, repetition in self.read()[["case", "repetition"]].values}

    def append(self, rows: Sequence[Row], setup: Setup) -> None:
        """Add all rows of a repetition, at once or not at all; rows of another version go."""
        new = pd.DataFrame([{"version": self.version, **asdict(row), **asdict(setup)} for row in rows])
        new = new.astype({"theirs": float, "x": float})[COLUMNS]
        known = self.read()
        write_table(self.path, pd.concat([known, new], ignore_index=True) if len(known) else new)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a file, none if there is no file.

    Raises:
        BadInput: it was damaged, or has other columns.
    """
    texts = dict.fromkeys(("case", "quantity", "unit", "note", "commit", "hm3", "torch", "tools", "cpu"), str)
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    remedy = "restore it, or measure again with --fresh"
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"theirs": [""], "x": [""]})
    except (ValueError, OSError) as error:
        raise BadInput(f"{path.name}: not readable ({one_line(error, 200)}); {remedy}") from None
    if list(table.columns) != COLUMNS:
        raise BadInput(f"{path.name}: has other columns than {', '.join(COLUMNS)}; {remedy}")
    return table


def describe_setup(root: Path, seed: int, cores: int | None = None) -> Setup:
    """This machine and what is installed on it.

    Args:
        root: the project's folder.
        seed: what the benchmark draws its input with.
        cores: processors that it is measured on; by default those that this process may use.
    """
    return Setup(
        seed,
        _commit(root),
        _version("hm3"),
        torch.__version__,
        "; ".join(f"{name} {_version(name)}" for name in ("mergekit", "lm-eval")),
        cores or len(os.sched_getaffinity(0)),
        torch.get_num_threads(),
        _cpu(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _commit(root: Path) -> str:
    """Short hash of the project's commit, empty outside of git."""
    commit = git(root, "rev-parse", "--short", "HEAD").stdout.strip()
    changed = commit and git(root, "diff", "--quiet", "HEAD", "--", "models", "tasks", "flows").returncode
    return f"{commit}+" if changed else commit


def _cpu() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
