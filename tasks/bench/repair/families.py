"""The families on which repair is measured: a real one, and made ones whose layers were not trained to be left out.

Each is a copy of a profile with items of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from models.errors import BadInput
from tasks import zoo
from tasks.bench.engine.families import OPEN_GATES
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.workspace import Workspace, open_workspace, profiles, read_yaml


@dataclass(frozen=True)
class Kind:
    """A family to measure on."""

    profile: str
    items: Mapping[str, int]
    """Of each split, an objective."""
    unit: str
    """What the loss of an item is divided by: ``byte``, ``token`` or ``image``."""
    seed: int = 0
    zoo: Mapping[str, Any] = field(default_factory=dict)


def made(profile: str, layers: int, seed: int, **more: Any) -> Kind:
    """A family whose layers are neither left out nor repeated in training."""
    items = {"search": 64, "selection": 600, "test": 256}  # other numbers would make another family than the rows'
    settings = {"layers": layers, "skip": 0.0, "repeat": 0.0, **OPEN_GATES, **more}
    return Kind(profile, items, "token", seed, settings)


FAMILIES: dict[str, Kind] = {
    "smollm2": Kind("smollm2", {"search": 12, "selection": 24, "test": 48}, "byte"),
    "tiny-20": made("tiny", 20, 120),
    "vision-10": Kind(
        "tiny-vision",
        {"search": 64, "selection": 224, "test": 448},
        "image",
        120,
        {"skip": 0.0, "repeat": 0.0, **OPEN_GATES},
    ),
}
"""By name; the number behind it is that of the layers."""

SMALL: dict[str, Kind] = {"small": made("tiny", 4, 120, base_steps=60, expert_steps=40)}
"""To try the benchmark on."""


def open_family(user: Workspace, folder: Path, kind: Kind, progress: Progress) -> Workspace:
    """A project with a family of some kind, which stage `zoo` makes or looks up if it isn't there yet.

    Args:
        user: the user's project, which has the profile.
        folder: where the benchmark keeps its own.
        kind: of the family.
        progress: shows the training.

    Raises:
        BadInput: the project has no such profile, or the models or rows of a given family aren't there.
    """
    if kind.profile not in profiles(user.root):
        raise BadInput(f"profiles/{kind.profile}.yaml: no such file; copy it from hm3's own project")
    own = open_workspace(kind.profile, user.root, user.state)
    data: dict[str, Any] = read_yaml(user.root / "profiles" / f"{kind.profile}.yaml")
    data.pop("params", None)
    data["objectives"] = [
        {key: value for key, value in one.items() if key != "reported"} | {"items": dict(kind.items)}
        for one in data["objectives"]
    ]
    params = own.params.model_dump(mode="json") | {"profiles": [kind.profile], "seed": kind.seed}
    params["zoo"] |= kind.zoo
    described = json.dumps([params["zoo"], kind.seed, data], sort_keys=True, default=str)
    root = folder / f"{kind.profile}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
    write_text(root / "params.yaml", yaml.safe_dump(params))
    write_text(root / "profiles" / f"{kind.profile}.yaml", yaml.safe_dump(data, sort_keys=False))
    if own.task_folder is not None:
        shutil.copytree(own.task_folder, root / "profiles" / kind.profile, dirs_exist_ok=True)
    found = open_workspace(kind.profile, root, user.state)
    if not (found.zoo / "family.json").is_file():
        zoo.run(found, progress)
    return found
