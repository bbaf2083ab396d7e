"""Sends parameters, curves, data versions and figures to a run in MLflow, in few calls."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from tasks.figure_style import save_png
from tasks.run_record import DataVersion, Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS, PAIRS = 900, 50
"""Metrics, and parameters or tags, a call; MLflow takes at most 1000 and 100, and 1000 in all."""


def allowed(name: str) -> str:
    """A name as MLflow takes it for metrics and tags: ``pass@1`` becomes ``pass_1``."""
    return re.sub(r"[^\w./ :-]", "_", name)


def log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, str] | None = None,
    points: Sequence[Point] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    """Parameters, metrics by step and tags."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in points]
    pairs = [Param(key, value) for key, value in (params or {}).items()]
    marks = [RunTag(key, value) for key, value in (tags or {}).items()]
    calls = max(-(-len(metrics) // METRICS), -(-len(pairs) // PAIRS), -(-len(marks) // PAIRS))
    for call in range(calls):
        part = slice(PAIRS * call, PAIRS * (call + 1))
        client.log_batch(run_id, metrics[METRICS * call : METRICS * (call + 1)], pairs[part], marks[part])


def log_data(client: MlflowClient, run_id: str, versions: Sequence[DataVersion]) -> None:
    """Data sets as inputs of a run. The digest is DVC's md5, so that DVC brings the very version back."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for one in versions:
        columns = [{"name": name, "type": kind} for name, kind in one.columns.items()]
        dataset = Dataset(
            name=one.out.name,
            digest=one.out.md5,
            source_type="local",
            source=json.dumps({"uri": one.out.path}),
            schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
            profile=json.dumps({"num_rows": one.rows}) if one.rows is not None else None,
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", one.what)]))
    if inputs:
        client.log_inputs(run_id, inputs)


def log_figures(client: MlflowClient, run_id: str, figures: Mapping[str, Figure]) -> None:
    """Figures as PNG under ``plots/``."""
    if not figures:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in figures.items():
            save_png(figure, Path(folder) / f"{name}.png")
        client.log_artifacts(run_id, folder, "plots")
