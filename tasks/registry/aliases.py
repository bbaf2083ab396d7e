"""Which aliases the members of a front have now: as the registry says, or by the front itself where there is none.

MLflow is imported when there is a registry to ask: without one the front is shown at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import BadInput, Failed, one_line
from tasks.front.found import kept
from tasks.front.front import BALANCED, Front, Member
from tasks.front.table import by_member
from tasks.project.references import is_model
from tasks.project.workspace import Workspace
from tasks.registry import trail
from tasks.registry.versions import Registered, Version, answering, has_registry, open_registry


@dataclass(frozen=True)
class Aliases:
    """Aliases by member, and what there is to say about them."""

    of: Mapping[str, Sequence[str]]
    """Id of a member, or of what a search has found beside the front → its aliases."""
    source: Literal["registry", "front.json"]
    notes: tuple[str, ...] = ()


def aliases_now(workspace: Workspace, front: Front) -> Aliases:
    """The aliases of a front's members as the registry has them at this moment; asking makes nothing."""
    note = "aliases by front.json: there is no MLflow registry here yet"
    if has_registry(workspace.state):
        try:
            registered = open_registry(workspace)
            with answering(workspace.state):
                return compare(registered, front)
        except (BadInput, Failed, OSError) as error:
            note = f"aliases by front.json, promotions are not shown: {one_line(error, 200)}"
    return Aliases(by_member(front), "front.json", (note,))


def named(workspace: Workspace, front: Front, key: str) -> Member:
    """A member of a front by id, a unique beginning of it, its name, or an alias as the registry has it now.

    What `hm3 choose --search` has found beside the front goes by its id, too, and by an alias that it was promoted to.

    Raises:
        BadInput: none goes by it, or it is an alias of a version that is neither in this front nor was found here.
    """
    try:
        return front.member(key)
    except BadInput as unknown:
        if own := kept(workspace, key):
            return own
        aliases = aliases_now(workspace, front)
        holder = next((member for member, own in aliases.of.items() if key in own), "")
        if member := {one.id: one for one in front.members}.get(holder) or kept(workspace, holder):
            return member
        elsewhere = next((note for note in aliases.notes if note.startswith(f"{key} is version ")), None)
        if elsewhere is None:
            raise
        uri = f"models:/hm3-front-{workspace.name}@{key}"
        remedy = f"`mlflow artifacts download --artifact-uri {uri} --dst-path FOLDER` fetches it"
        raise BadInput(f"{elsewhere}; {remedy}") from unknown


def target_of(workspace: Workspace, target: str, here: Path) -> tuple[str, Path]:
    """What `hm3 evaluate` scores, and the folder from which that is a relative path: a member by its recipe.

    Raises:
        BadInput: it is no model and no file in ``here``, and there is no front, or no such member.
    """
    if is_model(target) or (here / target).exists():
        return target, here
    try:
        member = named(workspace, Front.read(workspace.run), target)
    except BadInput as error:
        raise BadInput(f"{target}: neither a folder nor a file here, nor a member of the front: {error}") from None
    return str(workspace.run / member.recipe), workspace.root


def compare(registered: Registered, front: Front) -> Aliases:
    """Aliases in the registry; where this front is not there yet, its own aliases are those that it will get."""
    own = {alias: member.id for alias, member in front.aliases().items()}
    moves, present, versions = trail.read(registered), registered.aliases(), registered.versions
    published = {one.member for one in versions.values() if one.front_id == front.digest}
    notes, holders = [], {}
    if not published:
        holders = dict(own)
        notes.append(f"this front is not registered: {', '.join(own)} are its own; `hm3 publish` moves them")
    for alias, number in present.items():
        version = versions.get(number)
        here = version is not None and version.front_id == front.digest
        if version is not None and (here or version.found):
            holders[alias] = version.member
        if alias in own:
            if here and version is not None and version.member != own[alias]:
                notes.append(f"{alias} was moved by hand to version {number}; `hm3 publish` moves it back")
            continue
        if not here:
            notes.append(f"{alias} is version {number}, which {whereabouts(version)}")
    # `hm3 publish` takes away those of an older front: nobody set them by hand
    present = {alias: number for alias, number in present.items() if not BALANCED.fullmatch(alias)}
    audited = dict.fromkeys([*(one.alias for one in moves), *(alias for alias in present if alias not in own)])
    by_hand = [trail.by_hand(moves, alias, present.get(alias)) for alias in audited]
    of: dict[str, list[str]] = {one.id: [] for one in front.members}
    for alias, holder in holders.items():
        of.setdefault(holder, []).append(alias)
    return Aliases(of, "registry", (*(one for one in by_hand if one), *notes))


def whereabouts(version: Version | None) -> str:
    """What a version is that is not in the present front."""
    if version is None:
        return "was deleted"
    if version.found:
        return f"is {version.member}, found by `hm3 choose --search`"
    return f"is member {version.member or 'unknown'} of another front"
