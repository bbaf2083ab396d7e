"""A family from a base and data: experts, tasks on the rows that they never saw, and the profile that names it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import BadInput
from models.sources.checkpoint import open_checkpoint
from tasks.families import profile
from tasks.families.finetune import Settings, Trained, divided, read_rows, train_expert
from tasks.families.held_out import CALIBRATING, TRAINING, objective, split, task_files, write_rows
from tasks.families.sizing import fitting, parameter_count
from tasks.objectives.tokens import open_tokenizer
from tasks.project.progress import Progress
from tasks.schema.params import Params


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
    size = parameter_count(open_checkpoint(folder))
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
    written = {one: {**splits, TRAINING: train[:CALIBRATING]} for one, (train, splits) in parts.items()}
    for one, splits in written.items():
        write_rows(root, name, one, splits)
    place = f"zoo/{name}/{{}}" if settings.full else f"{base}+zoo/{name}/{{}}"
    objectives = [objective(name, one, splits) for one, splits in written.items()]
    own = fitting(params, [one["items"]["search"] for one in objectives], size)
    content = {
        "description": f"{', '.join(data)} from {base}",
        "base": base,
        "experts": {one: place.format(one) for one in data},
        "objectives": objectives,
        **({"params": own} if own else {}),
    }
    profile.write_profile(root, name, content, task_files(name, written, end))
    return Made(name, trained, {one["name"]: one["items"] for one in objectives})
