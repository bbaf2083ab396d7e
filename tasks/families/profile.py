"""A profile for models that one has: written from a few words, checked by the schema, and listed in params.yaml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from models.errors import BadInput
from models.files import validate
from tasks.project.workspace import Workspace, read_yaml
from tasks.schema.params import Params
from tasks.schema.profile import Items, Profile

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
EXPERT = re.compile(r"[a-z][a-z0-9_]*")
NOT_PATHS = ("hub:", "package:", "${")
"""How references begin that are no paths."""

FOLDER_NOTE = "Files of lm-eval tasks that profiles/{name}.yaml names, if any.\n"


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` options as a dictionary.

    Raises:
        BadInput: one is spelled otherwise, or a name comes twice.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (EXPERT.fullmatch(name) and equals and value):
            raise BadInput(f"{option} {one}: write NAME=VALUE, the name in small letters, digits and _")
        if name in found:
            raise BadInput(f"{option} {one}: {name} is given twice; give each once")
        found[name] = value
    return found


def reference(root: Path, here: Path, text: str) -> str:
    """A model as a profile names it: what lies in the project's folder is named from there, all else as a whole path.

    Args:
        root: the project's folder.
        here: folder from which paths in ``text`` go.
        text: ``MODEL`` or ``MODEL+ADAPTER``; folders, GGUF files, and what :mod:`tasks.project.references` knows.
    """
    if "+" in text and not (here / text).exists():
        return "+".join(reference(root, here, part) for part in text.split("+"))
    if text.startswith(NOT_PATHS):
        return text
    path = Path(text).expanduser()
    path = (here / path).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def objectives(tasks: Mapping[str, str], state: Path, folder: Path) -> list[dict[str, Any]]:
    """Objectives from ``TASK`` or ``TASK:METRIC`` by name; without a metric it is the task's first.

    Args:
        tasks: by the objective's name.
        state: folder that keeps the index of lm-eval's tasks.
        folder: of the profile's own task files, if it is there.

    Raises:
        BadInput: lm-eval has no such task, or it is a group and no metric is named.
    """
    found = []
    for name, text in tasks.items():
        task, _, metric = text.partition(":")
        found.append({"name": name, "task": task, "metric": metric or first_metric(task, state, folder)})
    return found


def first_metric(task: str, state: Path, folder: Path) -> str:
    """The metric that a task of lm-eval names first, and its first filter where it has several.

    Raises:
        BadInput: lm-eval has no such task, or it is a group.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    from tasks.objectives.task_files import default_index  # it imports torch

    own = {str(one.get("task")): one for one in map(read_yaml, sorted(folder.glob("*.yaml"))) if isinstance(one, dict)}
    config = own.get(task)
    if config is None:
        index = default_index(state)
        if task not in index:
            near = ", ".join(difflib.get_close_matches(task, [*own, *index], 5)) or "none like it"
            raise BadInput(f"--task {task}: neither in {folder.name}/ nor known to lm-eval; there are {near}")
        found = index[task]
        if found.path is None or found.kind not in ("TASK", "PY_TASK"):
            raise BadInput(f"--task {task}: is a group of tasks; say which metric, as in --task NAME={task}:acc")
        config = load_yaml(found.path, resolve_func=False)
    listed = config.get("metric_list") or [{"metric": "acc"}]
    filters = [str(one["name"]) for one in config.get("filter_list") or []]
    return str(listed[0]["metric"]) + (f",{filters[0]}" if len(filters) > 1 else "")


def available(
    root: Path, name: str, params: Params, content: Mapping[str, Any], state: Path
) -> tuple[dict[str, Items], int]:
    """Items of each objective: those of the schema, or as many as its data has; and the parameters of the base.

    Empty and 0 where nothing can be said yet, for a model or data can't be read here; doctor tells why.

    Args:
        root: the project's folder.
        name: of the profile.
        params: the project's.
        content: of the profile, with objectives of a task each.
        state: the project's state folder.
    """
    from models.sources.lora import open_model
    from tasks.families.sizing import parameter_count
    from tasks.objectives.objectives import Objectives
    from tasks.objectives.parts import TaskPart
    from tasks.project.references import finder, hub_parts

    least = dict.fromkeys(Items.model_fields, 1)
    few = [{**one, "items": least} for one in content["objectives"]]
    profile = validate(Profile, {**content, "objectives": few}, f"profiles/{name}.yaml")
    workspace = Workspace(root, name, params, profile, state)
    if any(one.cached() is None for one in hub_parts([str(content["base"])])):
        return {}, 0
    found: dict[str, dict[str, int]] = {}
    try:
        base = open_model(str(content["base"]), finder(workspace))
        size, tokenizer = parameter_count(base), base.tokenizer
        for split, field in Items.model_fields.items():
            for one, composed in Objectives(workspace, split, tokenizer).composed.items():
                there = min(part.built.available for part in composed.parts if isinstance(part, TaskPart))
                found.setdefault(one, {})[split] = min(int(field.default), there)
    except BadInput:
        return {}, 0
    return {one: Items(**counts) for one, counts in found.items()}, size


def write_profile(root: Path, name: str, content: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Path:
    """Write ``profiles/NAME.yaml`` and its folder, and list the profile in params.yaml.

    Args:
        root: the project's folder.
        name: of the profile.
        content: of the file, checked by the schema before anything is written.
        files: text files of its folder by name: its tasks.

    Raises:
        BadInput: the name can't be used or is taken, or the schema refuses the content.
    """
    require_free(root, name)
    path = root / "profiles" / f"{name}.yaml"
    validate(Profile, dict(content), f"profiles/{name}.yaml")
    folder = root / "profiles" / name
    folder.mkdir(exist_ok=True)
    for file, text in (files or {"README.md": FOLDER_NOTE.format(name=name)}).items():
        (folder / file).write_text(text, encoding="utf-8")
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, width=120, allow_unicode=True), encoding="utf-8")
    list_profile(root, name)
    return path


def require_free(root: Path, name: str) -> None:
    """Raises BadInput for a name that no profile can have, or that one has."""
    if not NAME.fullmatch(name):
        raise BadInput(f"NAME {name}: a profile's name has small letters, digits, `.`, `_` and `-`")
    if (root / "profiles" / f"{name}.yaml").exists():
        raise BadInput(f"profiles/{name}.yaml: is there already; take another name, or edit or remove it")


def list_profile(root: Path, name: str) -> bool:
    """Add a profile to ``profiles`` in params.yaml, so that dvc.yaml has stages for it; whether it was missing."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(root / "params.yaml")) as data:  # keeps comments and order
        listed = data.setdefault("profiles", ["tiny"])
        missing = name not in listed
        if missing:
            listed.append(name)
    return bool(missing)
