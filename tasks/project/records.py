"""The files that stages hand to each other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


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
class Anchors:
    """``anchors.json``: what the parameter level found."""

    objectives: list[str]
    ideal: dict[str, float]
    nadir: dict[str, float]
    spent: int
    """Item evaluations that were charged."""
    anchors: list[str]
    """Names of the merged models that join the pool."""
    scored: list[ScoredModel] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """``anchors.json``, and a recipe file an anchor under ``anchors/``."""
        write_text(folder / "anchors.json", json.dumps(asdict(self), indent=1) + "\n")
        recipes = {one.name: one.recipe for one in self.scored}
        for name in self.anchors:
            write_text(folder / "anchors" / f"{name}.yaml", recipes[name] or "")

    @classmethod
    def read(cls, folder: Path) -> Anchors:
        """Inverse of :meth:`write`."""
        data: dict[str, Any] = json.loads((folder / "anchors.json").read_text(encoding="utf-8"))
        return cls(**{**data, "scored": [ScoredModel(**one) for one in data["scored"]]})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


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
