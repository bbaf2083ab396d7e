"""A family from a base and data: experts, tasks on the rows that they never saw, and the profile that names it all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from models.errors import BadInput
from models.sources.checkpoint import open_checkpoint
from tasks.families import profile
from tasks.families.finetune import Row, Settings, Trained, divided, read_rows, train_expert
from tasks.objectives.tokens import open_tokenizer
from tasks.project.progress import Progress
from tasks.schema.params import Params
from tasks.schema.profile import Items, Splits

SHARES, MOST = Splits().model_dump(), Items().model_dump()
"""Of the rows that are held out, and items of an objective."""

METRICS = "teacher_forced.py"


@dataclass(frozen=True)
class Made:
    """What `hm3 zoo` made."""

    profile: str
    experts: dict[str, Trained]
    items: dict[str, dict[str, int]]
    """Of each objective and split."""


def make_experts(
    root: Path,
    name: str,
    base: str,
    find: Callable[[str], Path],
    data: Mapping[str, Path],
    templates: tuple[str, str],
    settings: Settings,
    params: Params,
    progress: Progress,
) -> Made:
    """Train an expert for each data set and write the family's profile.

    Args:
        root: the project's folder.
        name: of the profile; experts and held-out rows go to ``zoo/NAME``.
        base: reference of the base model.
        find: finds it.
        data: JSONL file of each expert.
        templates: of prompt and answer, empty for the fields ``prompt`` and ``completion``.
        settings: of the trainings.
        params: those of params.yaml.
        progress: shows the trainings.

    Raises:
        BadInput: the name is taken, the base or a file can't be used, or has too few rows.
        Failed: a training fails.
    """
    profile.require_free(root, name)
    if "+" in base:
        raise BadInput(f"--base {base}: an adapter can't be trained on; `hm3 merge` makes one model of them")
    folder, parts = find(base), {}
    open_checkpoint(folder)
    end = str(open_tokenizer(folder).eos_token or "")
    zoo = root / "zoo" / name
    for one, path in data.items():
        train, kept = divided(read_rows(path, *templates), settings.held_out)
        if (zoo / one).exists():
            raise BadInput(f"zoo/{name}/{one}: is there already; remove it or take another name")
        parts[one] = train, split(kept, settings.held_out, str(path))
    trained = {
        one: train_expert(folder, train, zoo / one, settings, progress, one, base) for one, (train, _) in parts.items()
    }
    for one, (_, splits) in parts.items():
        for which, rows in splits.items():
            write_rows(zoo / "data" / f"{one}.{which}.jsonl", rows)
    items = {one: {which: len(rows) for which, rows in splits.items()} for one, (_, splits) in parts.items()}
    place = f"zoo/{name}/{{}}" if settings.full else f"{base}+zoo/{name}/{{}}"
    own = profile.fitting(params, min(counts["search"] for counts in items.values()))
    content = {
        "description": f"{', '.join(data)} from {base}",
        "base": base,
        "experts": {one: place.format(one) for one in data},
        "objectives": [
            {
                "name": one,
                "task": task_name(name, one),
                "metric": "bits_per_byte",
                "items": items[one],
                "reported": [{"task": task_name(name, one), "metric": "token_accuracy"}],
            }
            for one in data
        ],
        **({"params": own} if own else {}),
    }
    files = {f"{task_name(name, one)}.yaml": task_file(name, one, end) for one in data}
    metrics = (Path(__file__).parents[1] / "templates" / METRICS).read_text(encoding="utf-8")
    profile.write_profile(root, name, content, {**files, METRICS: metrics})
    return Made(name, trained, items)


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


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def task_name(profile: str, expert: str) -> str:
    """The task of an expert's held-out rows."""
    return f"{profile}_{expert}".replace("-", "_").replace(".", "_")


def task_file(profile: str, expert: str, end: str) -> str:
    """The task's YAML, with the end token behind each answer."""
    files = {which: f"zoo/{profile}/data/{expert}.{which}.jsonl" for which in SHARES}
    config = {
        "task": task_name(profile, expert),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
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
