"""What is said of a run to MLflow, as plain data that can be kept on disk, and how it is sent, in few calls."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tenacity import retry, retry_if_exception_message, stop_after_attempt, wait_random

from models.text import plain
from tasks.tracking.record import DataVersion, Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS, PAIRS = 900, 50
"""Metrics, and parameters or tags, a call; MLflow takes at most 1000 and 100, and 1000 in all."""

SPOOLED = "hm3.spooled"
"""Tag of a run that was kept on disk before it was sent: its id there."""


@dataclass(frozen=True)
class Message:
    """One thing that is said of one run. Said twice it changes nothing."""

    kind: Literal["create", "values", "data", "files", "image", "end"]
    run: str
    """Id of the run; of a new one the id under which it is kept on disk."""
    content: dict[str, Any] = field(default_factory=dict)
    """What JSON can hold."""
    when: int = field(default_factory=lambda: int(time.time() * 1000))
    """Milliseconds since 1970."""


def send(client: MlflowClient, experiment: str, message: Message, files: Path | None = None) -> str:
    """Say it to MLflow; the id of the run there.

    Args:
        client: connected.
        experiment: id of the experiment, for a new run.
        message: what to say.
        files: the folder or file of a message of kind ``files`` or ``image``.
    """
    content, run = message.content, message.run
    if message.kind == "create":
        known = client.search_runs([experiment], f"tags.`{SPOOLED}` = '{run}'") if run else []
        if known:  # it was sent, and whoever did it was killed before he could write that down
            return str(known[0].info.run_id)
        tags = plain_values(content["tags"]) | ({SPOOLED: run} if run else {})
        return str(client.create_run(experiment, message.when, tags, run_name=content["name"]).info.run_id)
    if message.kind == "values":
        log(client, run, content["params"], content["points"], content["tags"], message.when)
    elif message.kind == "data":
        log_data(client, run, content["versions"])
    elif message.kind == "files" and files is not None:
        if files.is_dir():
            client.log_artifacts(run, str(files), content["to"])
        else:
            client.log_artifact(run, str(files), content["to"])
    elif message.kind == "image" and files is not None:
        from mlflow import Image

        client.log_image(run, Image(str(files)), key=content["key"], step=0, timestamp=message.when)
    elif message.kind == "end":
        client.set_terminated(run, content["status"], message.when)
    return run


def log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, str] | None = None,
    points: Sequence[Point] = (),
    tags: Mapping[str, str] | None = None,
    when: int | None = None,
) -> None:
    """Parameters, metrics by step and tags; ``when`` in milliseconds, by default now."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000) if when is None else when
    metrics = [Metric(name, value, now, step) for name, value, step in points]
    pairs = [Param(key, value) for key, value in plain_values(params or {}).items()]
    marks = [RunTag(key, value) for key, value in plain_values(tags or {}).items()]
    calls = max(-(-len(metrics) // METRICS), -(-len(pairs) // PAIRS), -(-len(marks) // PAIRS))
    for call in range(calls):
        part = slice(PAIRS * call, PAIRS * (call + 1))
        client.log_batch(run_id, metrics[METRICS * call : METRICS * (call + 1)], pairs[part], marks[part])


def plain_values(texts: Mapping[str, str]) -> dict[str, str]:
    """Tags or parameters whose values are safe to print; MLflow itself refuses strange keys."""
    return {key: plain(value) for key, value in texts.items()}


def described(versions: Sequence[DataVersion]) -> list[dict[str, Any]]:
    """Data sets in MLflow's terms. The digest is DVC's md5, so that DVC brings the very version back."""
    found = []
    for one in versions:
        columns = [{"name": name, "type": kind} for name, kind in one.columns.items()]
        dataset = {
            "name": one.out.name,
            "digest": one.out.md5,
            "source_type": "local",
            "source": json.dumps({"uri": one.out.path}),
            "schema": json.dumps({"mlflow_colspec": columns}) if columns else None,
            "profile": json.dumps({"num_rows": one.rows}) if one.rows is not None else None,
        }
        found.append({"dataset": dataset, "context": one.what})
    return found


# Another process may have written the same row since MLflow looked for it; the text is the database's own.
is_taken = retry_if_exception_message(match=r"(?s).*(IntegrityError|UniqueViolation)")


@retry(retry=is_taken, stop=stop_after_attempt(5), wait=wait_random(0, 0.5), reraise=True)
def log_data(client: MlflowClient, run_id: str, versions: Sequence[Mapping[str, Any]]) -> None:
    """Data sets, from :func:`described`, as inputs of a run; MLflow refuses one that two runs log at once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(Dataset(**one["dataset"]), [InputTag("mlflow.data.context", one["context"])]) for one in versions
    ]
    if inputs:
        client.log_inputs(run_id, inputs)
