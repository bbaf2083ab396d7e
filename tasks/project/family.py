"""The models that are merged: where base and experts lie."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import BadInput, one_line
from models.files import read_object, validate
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
    remedy = f"run `hm3 stage zoo --profile {workspace.name}`"
    if not path.is_file():
        raise BadInput(f"{label}: no such file; {remedy} first")
    try:
        return validate(Family, read_object(path.parent, path.name), str(label))
    except BadInput as error:
        raise BadInput(f"{label}: not readable ({one_line(error, 200)}); {remedy} again") from None
