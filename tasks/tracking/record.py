"""What a stage left behind, in the terms of experiment tracking: parameters, curves, data versions, DVC hashes.

Reads only; knows nothing of MLflow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel

from models.errors import without_secrets
from models.files import read_yaml
from tasks.project.records import read_json
from tasks.project.workspace import Workspace

Point = tuple[str, float, int]
"""A metric's name, value and step."""

DATA = {"tasks": "items of the tasks", "offline.parquet": "offline data set", "archive.parquet": "archive"}
"""Outs that are data sets, and what each is."""


@dataclass(frozen=True)
class Out:
    """A file or folder that DVC versions."""

    path: str
    """Relative to the project's root."""
    md5: str

    @property
    def name(self) -> str:
        """Last part of the path."""
        return Path(self.path).name


@dataclass(frozen=True)
class StageLock:
    """What ``dvc.lock`` says of one stage of one profile."""

    deps: tuple[Out, ...] = ()
    outs: tuple[Out, ...] = ()


def read_lock(workspace: Workspace) -> dict[str, StageLock]:
    """Stage name → its entry in ``dvc.lock``, for this profile; empty before the first run under DVC."""
    path = workspace.root / "dvc.lock"
    if not path.is_file():
        return {}
    stages = (read_yaml(path, path.name) or {}).get("stages", {})
    found = {}
    for name, entry in stages.items():
        stage, _, profile = name.partition("@")
        if profile == workspace.name:
            versioned = ([one for one in entry.get(kind, ()) if "md5" in one] for kind in ("deps", "outs"))
            found[stage] = StageLock(*(tuple(Out(one["path"], one["md5"]) for one in ours) for ours in versioned))
    return found


def flatten(data: Any, separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by the separator.

    Lists of things that have a ``name`` go by it; other lists stay whole.
    """
    if isinstance(data, BaseModel):
        data = data.model_dump(mode="json")
    if isinstance(data, list) and data and all(isinstance(one, Mapping) and "name" in one for one in data):
        data = {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in data}
    if not isinstance(data, Mapping):
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= flatten(value, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return flat


def parameters(workspace: Workspace, stage: str | None = None) -> dict[str, str]:
    """Parameters of a stage, or those of all stages and the profile, flat and as text."""
    params = workspace.params.model_dump(mode="json")
    if stage is not None:
        flat = {"profile": workspace.name, "seed": params["seed"], **flatten({stage: params.get(stage, {})}, ".")}
    else:
        flat = {**flatten(params, "."), "profile": workspace.name, **flatten(workspace.profile, ".", "profile")}
    return {key: without_secrets(value if isinstance(value, str) else json.dumps(value)) for key, value in flat.items()}


def metric_name(name: str) -> str:
    """A name that MLflow accepts for a metric."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def stage_points(workspace: Workspace, stage: str) -> list[Point]:
    """Metrics of a stage that is done, from what it wrote; curves by step."""
    points = _points(workspace.run, stage)
    return [(metric_name(name), float(value), step) for name, value, step in points if math.isfinite(value)]


def _points(run: Path, stage: str) -> Iterator[Point]:
    match stage:
        case "zoo":
            yield from _numbers(read_json(run / "zoo" / "family.json").get("gates", {}), "gates")
        case "sample":
            anchors = json.loads((run / "anchors.json").read_text(encoding="utf-8"))
            yield "item evaluations", anchors["spent"], 0
            yield "recipes scored", sum(one["recipe"] is not None for one in anchors["scored"]), 0
            yield from _numbers({"ideal": anchors["ideal"], "nadir": anchors["nadir"]})
        case "dataset":
            yield "paths", pq.read_metadata(run / "offline.parquet").num_rows, 0
        case "train":
            for network, rows in pd.read_csv(run / "train.csv").groupby("network", sort=False):
                yield from _curves(rows, "step", f"train/{network}")
        case "search":
            yield from _curves(pd.read_csv(run / "search.csv"), "evaluations", "search")
        case "pareto":
            yield from _numbers(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


def _curves(table: pd.DataFrame, step: str, prefix: str) -> Iterator[Point]:
    for column in table.select_dtypes("number").columns.drop(step):
        known = table[[step, column]].dropna()
        for at, value in known.itertuples(index=False):
            yield f"{prefix}/{column}", float(value), int(at)


def _numbers(data: Any, prefix: str = "") -> Iterator[Point]:
    for key, value in flatten(data, "/", prefix).items():
        if isinstance(value, int | float):
            yield key, float(value), 0


@dataclass(frozen=True)
class DataVersion:
    """A data set in the version that a stage read or wrote."""

    out: Out
    what: str
    rows: int | None
    columns: dict[str, str]
    """Column → Arrow type; empty for a folder."""


def data_versions(workspace: Workspace, outs: tuple[Out, ...]) -> list[DataVersion]:
    """The data sets among files that DVC knows."""
    found = []
    for out in outs:
        if out.name in DATA and Path(out.path).parent == Path("runs") / workspace.name:
            path = workspace.root / out.path
            table = pq.read_metadata(path) if path.suffix == ".parquet" and path.is_file() else None
            schema = table.schema.to_arrow_schema() if table else ()
            columns = {one.name: str(one.type) for one in schema}
            found.append(DataVersion(out, DATA[out.name], table.num_rows if table else None, columns))
    return found
