"""Where things lie: the project's folder, a profile's outputs, and the state that git and DVC never see."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.errors import BadInput
from models.files import read_yaml as parsed
from models.files import validate
from tasks.schema.params import Params
from tasks.schema.profile import Profile


@dataclass(frozen=True)
class Workspace:
    """A project folder seen through one profile."""

    root: Path
    name: str
    params: Params
    profile: Profile
    state: Path
    """State folder of the whole workspace (``HM3_STATE``)."""
    engine: Literal["inline", "ray"] | None = None
    """Where candidates are scored, by default as ``HM3_ENGINE`` says."""

    @property
    def run(self) -> Path:
        """``runs/PROFILE``: everything that DVC versions for this profile."""
        return self.root / "runs" / self.name

    @property
    def zoo(self) -> Path:
        """Made models, and ``family.json``."""
        return self.run / "zoo"

    @property
    def items(self) -> Path:
        """Items of every task and split."""
        return self.run / "tasks"

    @property
    def task_folder(self) -> Path | None:
        """``profiles/NAME``: the profile's own lm-eval task files, if it has any."""
        folder = self.root / "profiles" / self.name
        return folder if folder.is_dir() else None


def state_folder(root: Path) -> Path:
    """``HM3_STATE``, by default ``.hm3`` in the project's folder; there too where ``HM3_STATE`` is in a bucket."""
    return Path((not remote_state() and os.environ.get("HM3_STATE")) or root / ".hm3").absolute()


def remote_state() -> str | None:
    """``HM3_STATE`` if it is ``s3://bucket/prefix``: where what a run resumes from is kept beside this machine."""
    state = os.environ.get("HM3_STATE", "")
    return state.rstrip("/") if state.startswith("s3://") else None


def find_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that holds ``params.yaml`` and ``profiles/``.

    Raises:
        BadInput: there is none.
    """
    start = (start or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "profiles").is_dir():
            return folder
    raise BadInput(f"{start}: no params.yaml with a profiles/ folder here or above; change into an hm3 project")


def read_yaml(path: Path) -> Any:
    """Parsed YAML of a file.

    Raises:
        BadInput: it is missing or no YAML.
    """
    if not path.is_file():
        raise BadInput(f"{path.name}: no such file in {path.parent.name}/")
    return parsed(path, path.name)


def profiles(root: Path) -> list[str]:
    """Names of the profiles in a project."""
    return sorted(path.stem for path in (root / "profiles").glob("*.yaml"))


def open_workspace(name: str | None = None, root: Path | None = None, state: Path | None = None) -> Workspace:
    """The project around the working directory, with its parameters checked.

    Args:
        name: profile; by default the first of ``params.yaml``.
        root: the project's folder; by default found upwards.
        state: its state folder; by default as :func:`state_folder` says.

    Raises:
        BadInput: a file is missing or holds something that the schema refuses.
    """
    root = root.absolute() if root else find_root()
    params = validate(Params, read_yaml(root / "params.yaml"), "params.yaml")
    name = name or params.profiles[0]
    if name not in profiles(root):
        raise BadInput(f"profile {name!r}: unknown; there are {', '.join(profiles(root)) or 'none'}")
    label, data = f"profiles/{name}.yaml", read_yaml(root / "profiles" / f"{name}.yaml")
    profile = validate(Profile, data, label)
    params = with_own(params, profile, label)
    return Workspace(root, name, params, profile, state or state_folder(root))


def with_own(params: Params, profile: Profile, label: str) -> Params:
    """The parameters with those in place that a profile sets for itself.

    Raises:
        BadInput: the profile sets something that is no parameter, or out of range.
    """
    data = params.model_dump(mode="json")
    for name, value in profile.params.items():
        if name == "profiles" or name not in data:
            raise BadInput(f"{label}: params.{name}: unknown key; remove it or mend its spelling")
        data[name] = {**data[name], **value} if isinstance(data[name], dict) and isinstance(value, dict) else value
    return validate(Params, data, label, "params.")
