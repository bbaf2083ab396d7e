"""Models that `hm3 choose` has made or found beside the front, kept in the state folder under their ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.errors import BadInput
from models.files import read_object, reading
from tasks.front.front import Front, Member, member_of
from tasks.project.family import FILE as FAMILY
from tasks.project.records import write_text
from tasks.project.workspace import Workspace

RECIPE, RECORD = "recipe.yaml", "member.json"


@dataclass(frozen=True)
class Made:
    """A model for a preference."""

    id: str
    layers: int
    """That a token passes."""
    recipe: str
    """File of its recipe."""
    weights: dict[str, list[float]]
    """Coefficients of each expert, from the first layer to the last."""
    foreseen: dict[str, tuple[float, float]]
    """Of each task the score on `search` that the critic foresees, and its standard deviation."""
    measured: Member | None = None
    """The same with scores, once it is evaluated."""

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints beside the nearest member."""
        told = {"id": self.id, "layers": self.layers, "recipe": self.recipe, "weights": self.weights}
        return told | {"foreseen": self.foreseen, "scores": self.measured.scores if self.measured else None}


def keep(workspace: Workspace, member: Member, recipe: str) -> Member:
    """Keep what was found, or made, with its recipe, in YAML; the same with the place of the recipe."""
    folder = folder_of(workspace) / member.id
    write_text(folder / RECIPE, recipe)
    record = {"family": family_digest(workspace), "member": asdict(replace(member, recipe=RECIPE))}
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    return replace(member, recipe=str(folder / RECIPE))


def kept(workspace: Workspace, key: str) -> Member | None:
    """What was found under an id, or a unique beginning of one.

    Raises:
        BadInput: several ids begin so, or the models that it was merged from are no longer those of the profile.
    """
    ids = sorted(path.parent.name for path in folder_of(workspace).glob(f"*/{RECORD}"))
    matches = [one for one in ids if key and one.startswith(key)]
    if not matches:
        return None
    if len(matches) > 1:
        raise BadInput(f"member {key!r}: several of that name were found; there are {', '.join(matches)}")
    folder = folder_of(workspace) / matches[0]
    with reading(str(folder / RECORD), "search again"):
        record = read_object(folder, RECORD)
        member, family = member_of(record["member"]), record["family"]
    if family != family_digest(workspace):
        raise BadInput(
            f"member {matches[0]}: was found among models that {workspace.name} no longer has; "
            "`hm3 choose --search N` searches the present ones"
        )
    return replace(member, recipe=str(folder / RECIPE))


def alone(front: Front, member: Member) -> Front:
    """What was found beside a front as one of its own, whose digest is that of its files."""
    folder = Path(member.recipe).parent
    content = (folder / RECIPE).read_bytes() + (folder / RECORD).read_bytes()
    return replace(front, members=(member,), references=(), digest=hashlib.sha256(content).hexdigest(), found=True)


def folder_of(workspace: Workspace) -> Path:
    """Where a profile's finds are kept, a folder each."""
    return workspace.state / "found" / workspace.name


def family_digest(workspace: Workspace) -> str:
    """sha256 of what stage `zoo` says of base and experts, their digests among it; empty where it says nothing."""
    path = workspace.zoo / FAMILY
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
