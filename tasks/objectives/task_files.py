"""The lm-eval tasks that a profile names: found by name, groups taken apart, and their data located."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import BadInput, one_line
from models.sources.lines import lines_of
from tasks.project.references import expand
from tasks.project.workspace import Workspace

STRUCTURE = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "task_list"})
"""What a group's file says of the group; everything else in it overrides its tasks."""

DEPTH = 8
"""Groups within groups, at most: more is a circle."""


@dataclass(frozen=True)
class Listed:
    """A name that lm-eval knows."""

    kind: str
    """``TASK``, ``PY_TASK``, ``GROUP`` or ``TAG``."""
    path: Path | None
    """Its file; none for a tag."""
    tasks: tuple[str, ...] = ()
    """Tasks of a tag."""


@dataclass(frozen=True)
class TaskFile:
    """One task, and what the groups around it change in it."""

    name: str
    path: Path | None
    """Its file; none for a task that is written into its group's."""
    changes: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """Its configuration as lm-eval takes it, functions resolved."""
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(self.path, resolve_func=True) if self.path else {}
        found = {**config, **self.changes, "task": self.name}
        return {key: value for key, value in found.items() if key not in ("tag", "group", "task_list")}

    def raw(self) -> dict[str, Any]:
        """Its configuration, functions by their names: nothing of it is imported."""
        from lm_eval.tasks._yaml_loader import load_yaml

        return {**(load_yaml(self.path, resolve_func=False) if self.path else {}), **self.changes}

    def text(self) -> str:
        """What its YAML and the functions that it names say, without where they lie."""
        text = json.dumps(self.raw(), sort_keys=True, default=_name)
        if self.path is None:
            return text
        text = text.replace(f"{self.path.resolve().parent}/", "./")
        modules = sorted(self.path.parent.glob("*.py")) if "./" in text else []
        return "\n".join([text, *(module.read_text(encoding="utf-8") for module in modules)])


@cache
def hold_templates() -> None:
    """Have lm-eval fill the templates of task files, in this process, where they reach their item and nothing else.

    In its own environment a template runs any command: it finds ``os`` from any function.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    own = utils.env
    held = SandboxedEnvironment(loader=own.loader, undefined=own.undefined, keep_trailing_newline=True)
    held.filters |= own.filters
    utils.env = held


def _name(value: Any) -> str:
    """A function by its name: its address would be another one in each process."""
    return str(getattr(value, "__qualname__", value))


def task_label(workspace: Workspace, objective: str) -> str:
    """How an error names the place in the profile."""
    return f"profiles/{workspace.name}.yaml: objectives.{objective}"


def check_names(workspace: Workspace) -> None:
    """Refuse a profile that names a task which lm-eval doesn't have.

    Raises:
        BadInput: a task is unknown, or a group can't be taken apart.
    """
    for objective in workspace.profile.objectives:
        names = [*(one.task for one in objective.parts), *(one.task for one in objective.reported)]
        for name in names:
            find(workspace, name, task_label(workspace, objective.name))


def find(workspace: Workspace, name: str, label: str) -> tuple[TaskFile, ...]:
    """The task of a name, or the tasks of a group or a tag; or the task in a file of the profile's folder.

    Raises:
        BadInput: lm-eval has none of this name, or its file can't be read.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        if name.endswith((".yaml", ".yml")):
            path = (workspace.task_folder or workspace.root) / name
            if not path.is_file():
                raise BadInput(f"{label}: task {name!r}: no such file in profiles/{workspace.name}/")
            config = load_yaml(path, resolve_func=False)
            if "group" in config:
                group = load_yaml(path, resolve_func=True)
                return tuple(_members(workspace, str(config["group"]), group, {}, label, DEPTH))
            if not isinstance(config.get("task"), str):
                raise BadInput(f"{label}: task {name!r}: names no `task`; give it a name")
            return (TaskFile(config["task"], path),)
        return tuple(_expanded(workspace, name, {}, label, DEPTH))
    except BadInput:
        raise
    except Exception as error:  # noqa: BLE001 (the file may name any code of its own)
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise BadInput(f"{label}: task {name!r}: its file can't be read ({reason}); mend it") from None


def _expanded(
    workspace: Workspace, name: str, changes: Mapping[str, Any], label: str, depth: int
) -> Iterator[TaskFile]:
    """A task, or what a group or a tag consists of, in lm-eval's order."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = known(workspace, name, label)
    if depth == 0:
        raise BadInput(f"{label}: task {name!r}: is a group within itself; mend its file")
    if found.kind == "TAG":
        for one in found.tasks:
            yield from _expanded(workspace, one, changes, label, depth - 1)
    elif found.kind == "GROUP":
        config = load_yaml(found.path, resolve_func=True)
        yield from _members(workspace, name, config, changes, label, depth)
    else:
        yield TaskFile(name, found.path, changes)


def _members(
    workspace: Workspace, group: str, config: Mapping[str, Any], changes: Mapping[str, Any], label: str, depth: int
) -> Iterator[TaskFile]:
    """The tasks of a group, as lm-eval's own factory reads its file."""
    inherited = {**{key: value for key, value in config.items() if key not in STRUCTURE}, **changes}
    members = config.get("task") or []
    for member in [members] if isinstance(members, str) else members:
        own = {} if isinstance(member, str) else {key: one for key, one in member.items() if key not in STRUCTURE}
        name = member if isinstance(member, str) else member.get("group", member.get("task"))
        if is_known(workspace, name):
            yield from _expanded(workspace, name, {**inherited, **own}, label, depth - 1)
        elif isinstance(member, Mapping) and "group" in member:
            yield from _members(workspace, f"{group}::{name}", member, inherited, label, depth - 1)
        elif isinstance(member, Mapping):
            yield TaskFile(f"{group}::{name}", None, {**inherited, **own})
        else:
            raise BadInput(f"{label}: task {group!r}: names {name!r}, which is unknown to lm-eval; mend its file")


def is_known(workspace: Workspace, name: str) -> bool:
    """Whether a name is one of lm-eval's or of the profile's folder."""
    return name in local_index(workspace.task_folder) or name in default_index(workspace.state)


def known(workspace: Workspace, name: str, label: str) -> Listed:
    """What a name stands for; the profile's own folder goes before lm-eval's tasks.

    Raises:
        BadInput: it stands for nothing.
    """
    local = local_index(workspace.task_folder)
    if name in local:
        return local[name]
    default = default_index(workspace.state)
    if name in default:
        return default[name]
    near = difflib.get_close_matches(name, [*local, *default], 5)
    own = sorted(one for one, listed in local.items() if listed.kind != "TAG")
    names = ", ".join(dict.fromkeys([*own, *near])) or "none like it"
    raise BadInput(f"{label}: task {name!r}: unknown to lm-eval; there are {names}")


@cache
def local_index(folder: Path | None) -> Mapping[str, Listed]:
    """The names that the task files of a profile's folder define."""
    return _index(folder, defaults=False) if folder else {}


@cache
def default_index(state: Path) -> Mapping[str, Listed]:
    """The names that lm-eval brings, kept in the state folder: reading its 15,000 files takes many seconds."""
    import lm_eval

    home = Path(lm_eval.__file__).parent
    kept = state / f"lm_eval-{importlib.metadata.version('lm-eval')}.json"
    if kept.is_file():
        entries = json.loads(kept.read_text(encoding="utf-8"))
        return {one[0]: Listed(one[1], home / one[2] if one[2] else None, tuple(one[3])) for one in entries}
    found = _read_defaults()
    rows = [
        [name, one.kind, str(one.path.relative_to(home)) if one.path else None, one.tasks]
        for name, one in found.items()
    ]
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(rows), encoding="utf-8")
    beside.replace(kept)
    return found


@cache
def _read_defaults() -> Mapping[str, Listed]:
    return _index(None, defaults=True)


def _index(folder: Path | None, *, defaults: bool) -> dict[str, Listed]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=defaults)
    return {
        name: Listed(entry.kind.name, entry.yaml_path, tuple(sorted(entry.tags)) if entry.kind.name == "TAG" else ())
        for name, entry in manager.task_index.items()
    }


def located(files: Mapping[str, Any], names: Sequence[str], root: Path, label: str) -> dict[str, list[str]]:
    """The file or files of each split that is named, seen from the project's folder.

    Raises:
        BadInput: a file is missing or empty, or has a line that is longer than any item should be.
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        given = files[name]
        for file in [given] if isinstance(given, str) else given:
            filled = expand(os.path.expandvars(file))
            path = root / filled
            if "://" not in filled and not path.is_file():
                raise BadInput(f"{label}: {file}: no such file; run stage zoo, or mend the name")
            if "://" not in filled and not path.stat().st_size:
                raise BadInput(f"{label}: {file}: holds no items; give it at least one")
            if "://" not in filled and ".jsonl" in path.suffixes:
                deque(lines_of(path), maxlen=0)  # lm-eval's reader would take many times a long line's size
            found.setdefault(name, []).append(filled if "://" in filled else str(path))
    return found
