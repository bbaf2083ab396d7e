"""The models that are merged: where base and experts lie."""

from __future__ import annotations

import json
from dataclasses import dataclass

from models.errors import BadInput
from tasks.project.workspace import Workspace

FILE = "family.json"


@dataclass(frozen=True)
class Family:
    """Folders of base and experts, relative to the project's folder."""

    base: str
    experts: dict[str, str]


def load_family(workspace: Workspace) -> Family:
    """The family that stage ``zoo`` left for a profile.

    Raises:
        BadInput: it hasn't run, or its file is damaged.
    """
    path = workspace.zoo / FILE
    label = path.relative_to(workspace.root)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Family(str(data["base"]), {str(name): str(folder) for name, folder in data["experts"].items()})
    except FileNotFoundError:
        raise BadInput(f"{label}: no such file; run `hm3 stage zoo --profile {workspace.name}` first") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise BadInput(f"{label}: not readable; run `hm3 stage zoo --profile {workspace.name}` again") from None
