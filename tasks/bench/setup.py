"""What rows were measured on, and how they are read back."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from models.errors import BadInput, one_line
from tasks.project.git import git

TEXTS = (
    *("arm", "case", "commit", "cpu", "hm3", "id", "instance", "kind", "note", "path", "quantity", "tenths", "tools"),
    *("torch", "unit", "what"),
)
"""Columns that are words, whatever they look like."""
MISSING = {"hv": [""], "theirs": [""], "value": [""], "x": [""]}
"""What stands for no value, by column."""

REMEDY = "restore it, or measure again with --fresh"
"""For a damaged file."""


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


def setups(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, str]]:
    """What rows were measured on, each setup once."""
    found = rows[list(columns)].drop_duplicates().to_dict("records")
    return [{str(name): str(value) for name, value in one.items()} for one in found]


def read_rows(path: Path, version: int) -> pd.DataFrame:
    """The rows of a version of a benchmark, from a file that is there.

    Raises:
        BadInput: it was damaged.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=MISSING)
        return table[table["version"] == version].reset_index(drop=True)
    except (ValueError, OSError, KeyError) as error:
        raise BadInput(f"{path.name}: not readable ({one_line(error, 200)}); {REMEDY}") from None


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
