"""The files that stages hand to each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import BadInput
from models.files import find_inside, read_object, reading, validate

if TYPE_CHECKING:
    import pandas as pd


MOST_ROWS = 5 * 10**6
"""Of a table that is read."""


@dataclass(frozen=True)
class ScoredModel:
    """A plain model or merge recipe with its scores on the whole search split."""

    name: str
    """Name in the pool: ``base``, an expert's, or ``r-…``."""
    kind: str
    """``base``, ``expert``, ``baseline`` or ``recipe``."""
    title: str
    """Name for people."""
    recipe: str | None
    """Its recipe as YAML, where it is a merge."""
    scores: dict[str, float]
    failed: str | None = None
    at: int = 0
    """Item evaluations that were charged until it was scored, itself included."""


@dataclass(frozen=True)
class Repaired:
    """How seams are repaired in this run."""

    rows: str
    """Digest of the calibration items, hexadecimal."""
    layers: list[int]
    """Layers whose refit gains where the layer behind them is left out."""
    item_evaluations: int
    """What was charged for calibrating the anchors, and for seeing what gains."""


@dataclass(frozen=True)
class Anchors:
    """``anchors.json``: what the parameter level found."""

    objectives: list[str]
    ideal: dict[str, float]
    nadir: dict[str, float]
    spent: int
    """Item evaluations that were charged, those for repairs among them."""
    anchors: list[str]
    """Names of the merged models that join the pool."""
    scored: list[ScoredModel] = field(default_factory=list)
    repair: Repaired | None = None

    def write(self, folder: Path) -> None:
        """``anchors.json``, and a recipe file an anchor under ``anchors/``."""
        write_text(folder / "anchors.json", json.dumps(asdict(self), indent=1) + "\n")
        recipes = {one.name: one.recipe for one in self.scored}
        for name in self.anchors:
            write_text(folder / "anchors" / f"{name}.yaml", recipes[name] or "")

    @classmethod
    def read(cls, folder: Path) -> Anchors:
        """Inverse of :meth:`write`."""
        label = f"runs/{folder.name}/anchors.json"
        found = validate(cls, read_object(folder, "anchors.json"), label, remedy="run stage `sample` again")
        tasks = set(found.objectives) - {"layers"}
        for one in found.scored:
            if not one.failed and not tasks <= one.scores.keys():
                raise BadInput(f"{label}: scored: {one.name}: lacks scores; run stage `sample` again")
        if not found.ideal.keys() == found.nadir.keys() == set(found.objectives):
            raise BadInput(f"{label}: ideal, nadir: not of the objectives; run stage `sample` again")
        return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file.

    Raises:
        BadInput: it holds something else.
    """
    return read_object(path.parent, path.name) if path.is_file() else {}


def read_table(
    run: Path, name: str, stage: str, text: Sequence[str], numbers: Sequence[str], *, only: bool = False
) -> pd.DataFrame:
    """A Parquet file among a profile's outs.

    Args:
        run: ``runs/PROFILE``.
        name: of the file.
        stage: which makes it.
        text: columns of text that it must have.
        numbers: columns of numbers that it must have.
        only: read no other columns.

    Raises:
        BadInput: it is missing, damaged or lacks a column; or one holds something else.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    label, remedy = f"runs/{run.name}/{name}", f"run stage `{stage}` again"
    if find_inside(run, name) is None:
        raise BadInput(f"{label}: no such file; `hm3 run --profile {run.name}` or `dvc pull` makes it")
    with reading(label, remedy):
        if (rows := pq.read_metadata(run / name).num_rows) > MOST_ROWS:
            raise BadInput(f"{label}: claims {rows} rows, more than {MOST_ROWS}; {remedy}")
        there = pq.read_schema(run / name).names
        wanted = [one for one in (*text, *numbers) if one in there] if only else None
        table = pd.read_parquet(run / name, columns=wanted)
        if not len(table):
            raise BadInput(f"{label}: holds no rows; {remedy}")
        for column in (*text, *numbers):
            if column not in table:
                raise BadInput(f"{label}: {column}: no such column; {remedy}")
            if not (column in text or pd.api.types.is_numeric_dtype(table[column])):
                raise BadInput(f"{label}: {column}: holds something else than numbers; {remedy}")
            if column in text and not table[column].map(lambda one: isinstance(one, str)).all():
                raise BadInput(f"{label}: {column}: holds something else than text; {remedy}")
    return table


def read_offline(run: Path, tasks: Sequence[str]) -> pd.DataFrame:
    """``offline.parquet``, with the scores on these tasks; raises BadInput where it is none."""
    return read_table(run, "offline.parquet", "dataset", ("candidate", "kind"), ("items", "charged", *tasks))


ARCHIVES = {"train": "trained.parquet", "search": "archive.parquet"}
"""By stage: every candidate that was scored when it ended."""


def read_archive(run: Path, tasks: Sequence[str], stage: str = "search") -> pd.DataFrame:
    """The archive that a stage leaves; raises BadInput where it is none.

    Args:
        run: the folder.
        tasks: whose scores it must have.
        stage: of ``ARCHIVES``.
    """
    numbers, file = (
        ("round", "items", "charged", "at", *tasks),
        {"train": "trained.parquet"}.get(stage, "archive.parquet"),
    )
    return read_table(run, file, stage, ("candidate", "kind"), numbers)


def write_text(path: Path, text: str) -> None:
    """A whole file or none: written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV or Parquet, by its name; the same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".parquet":
        table.to_parquet(beside, index=False, compression="zstd")
    else:
        table.to_csv(beside, index=False, float_format="%.6g", lineterminator="\n")
    beside.replace(path)
