"""Whether a new profile's tasks leave rows enough for repairs."""

from __future__ import annotations

from pathlib import Path

import yaml

from models.errors import BadInput
from models.sources.lora import open_model
from tasks.objectives.calibration import TooFewRows, calibration_of, counted
from tasks.project.records import write_text
from tasks.project.references import finder, models_of
from tasks.project.workspace import open_workspace, read_yaml


def fit_repair(root: Path, name: str) -> str:
    """Switch repair off in a new profile whose tasks leave too few rows to calibrate on.

    Returns:
        What to tell of it; empty where repair stays on. Whatever else is wrong with the profile is doctor's to say.
    """
    path = root / "profiles" / f"{name}.yaml"
    try:
        workspace = open_workspace(name, root)
        if workspace.profile.repairs:
            base = open_model(models_of(workspace.profile)["base"], finder(workspace))
            counted(workspace, calibration_of(workspace, base.tokenizer))
    except TooFewRows:
        content = read_yaml(path)
        content["paths"] = {**(content.get("paths") or {}), "repair": False}
        write_text(path, yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))
        return "seams are not repaired, as too few rows are left for it: see `paths.repair` and docs/objectives.md"
    except BadInput:
        pass
    return ""
