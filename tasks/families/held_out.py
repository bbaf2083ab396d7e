"""Rows of one's own data that are kept for scoring: their splits, and the tasks and objectives on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from models.errors import BadInput
from tasks.families.finetune import Row, read_rows
from tasks.schema.profile import Items, Splits

SHARES, MOST = Splits().model_dump(), Items().model_dump()
"""Of the rows that are held out, and items of an objective."""

METRICS = "teacher_forced.py"

TRAINING, CALIBRATING = "train", 1000
"""What rows that are in no split are called, and how many of them are written: models are calibrated on them."""


def split(rows: Sequence[Row], held_out: float, label: str) -> dict[str, list[Row]]:
    """Rows of each split, by their hashes; as many as an objective takes.

    Raises:
        BadInput: a split has none.
    """
    found: dict[str, list[Row]] = {}
    low = 0.0
    for name, share in SHARES.items():
        high = low + share
        found[name] = [row for row in rows if low <= row.place / held_out < high][: MOST[name]]
        low = high
        if not found[name]:
            raise BadInput(f"{label}: {len(rows)} rows are held out, none of them for {name}; give more rows")
    return found


def write_rows(root: Path, profile: str, name: str, splits: Mapping[str, Sequence[Row]]) -> None:
    """The rows of each split, and those for training, as JSON lines, where the task looks for them."""
    for which, rows in splits.items():
        path = root / _file(profile, name, which)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")


def objective(profile: str, name: str, splits: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """An objective on these rows: bits per byte of the answers; how many of their tokens are met is reported."""
    task = _task_name(profile, name)
    return {
        "name": name,
        "task": task,
        "metric": "bits_per_byte",
        "items": {which: len(splits[which]) for which in SHARES},
        "reported": [{"task": task, "metric": "token_accuracy"}],
    }


def task_files(profile: str, splits: Mapping[str, Mapping[str, Sequence[Row]]], end: str = "") -> dict[str, str]:
    """Files of a profile's folder that its objectives need, by name.

    Args:
        profile: its name.
        splits: rows of each objective and split, and those for training where there are some.
        end: token behind each answer.
    """
    metrics = (Path(__file__).parents[1] / "templates" / METRICS).read_text(encoding="utf-8")
    files = {f"{_task_name(profile, one)}.yaml": _task_file(profile, one, [*own], end) for one, own in splits.items()}
    return files | {METRICS: metrics}


@dataclass(frozen=True)
class Kept:
    """Objectives on all rows of some files."""

    objectives: list[dict[str, Any]]
    files: dict[str, str]
    """Of the profile's folder, by name."""
    splits: dict[str, dict[str, list[Row]]]
    """Rows of each objective and split, to be written; as split ``train`` some that are in none, if there are."""


def keep(profile: str, data: Mapping[str, Path], templates: tuple[str, str]) -> Kept:
    """Make objectives of all rows of some files.

    No token is put behind the answers: nobody knows whether the experts have learned to end with one.

    Args:
        profile: its name.
        data: JSONL file of each objective.
        templates: of prompt and answer, empty for the fields ``prompt`` and ``completion``.

    Raises:
        BadInput: a file can't be used, or has too few rows.
    """
    splits = {}
    for one, path in data.items():
        rows = read_rows(path, *templates)
        splits[one] = split(rows, 1.0, str(path))
        if spare := [row for row in rows if row.place < SHARES["search"]][MOST["search"] :]:
            splits[one][TRAINING] = spare[:CALIBRATING]
    objectives = [objective(profile, one, rows) for one, rows in splits.items()]
    return Kept(objectives, task_files(profile, splits), splits)


def _file(profile: str, name: str, which: str) -> str:
    return f"zoo/{profile}/data/{name}.{which}.jsonl"


def _task_name(profile: str, name: str) -> str:
    return f"{profile}_{name}".replace("-", "_").replace(".", "_")


def _task_file(profile: str, name: str, splits: Sequence[str], end: str) -> str:
    config = {
        "task": _task_name(profile, name),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {which: _file(profile, name, which) for which in splits}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{completion}}" + end,
        "target_delimiter": "",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "mean", "higher_is_better": False},
            {"metric": "token_accuracy", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1},
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return text + "process_results: !function teacher_forced.process_results\n"
