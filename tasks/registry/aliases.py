"""Which aliases the members of a front have now: as the registry says, or by the front itself where there is none.

MLflow is imported when there is a registry to ask: without one the front is shown at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from models.errors import BadInput, Failed, one_line
from tasks.front.found import kept
from tasks.front.front import Front, Member
from tasks.front.table import by_member
from tasks.project.workspace import Workspace
from tasks.registry import trail
from tasks.registry.versions import Registered, answering, has_registry, open_registry


@dataclass(frozen=True)
class Aliases:
    """Aliases by member, and what there is to say about them."""

    of: Mapping[str, Sequence[str]]
    """Member id → its aliases."""
    source: Literal["registry", "front.json"]
    notes: tuple[str, ...] = ()


def aliases_now(workspace: Workspace, front: Front) -> Aliases:
    """The aliases of a front's members as the registry has them at this moment; asking makes nothing."""
    without = Aliases(by_member(front), "front.json", ("aliases by front.json: there is no MLflow registry here yet",))
    if not has_registry(workspace.root):
        return without
    try:
        registered = open_registry(workspace)
        with answering(workspace.root):
            return compare(registered, front)
    except (BadInput, Failed, OSError) as error:
        reason = one_line(error, 200)
        return Aliases(by_member(front), "front.json", (f"aliases by front.json, promotions are not shown: {reason}",))


def named(workspace: Workspace, front: Front, key: str) -> Member:
    """A member of a front by id, a unique beginning of it, its name, or an alias as the registry has it now.

    What `hm3 choose --search` has found beside the front goes by its id, too.

    Raises:
        BadInput: none goes by it, or it is an alias of a version that this front doesn't have.
    """
    try:
        return front.member(key)
    except BadInput as unknown:
        if own := kept(workspace, key):
            return own
        aliases = aliases_now(workspace, front)
        for member in front.members:
            if key in aliases.of[member.id]:
                return member
        elsewhere = next((note for note in aliases.notes if note.startswith(f"{key} is version ")), None)
        if elsewhere is None:
            raise
        uri = f"models:/hm3-front-{workspace.name}@{key}"
        remedy = f"`mlflow artifacts download --artifact-uri {uri} --dst-path FOLDER` fetches it"
        raise BadInput(f"{elsewhere}; {remedy}") from unknown


def compare(registered: Registered, front: Front) -> Aliases:
    """Aliases in the registry; where this front is not there yet, its own aliases are those that it will get."""
    own = {alias: member.id for alias, member in front.aliases().items()}
    moves, present, versions = trail.read(registered), registered.aliases(), registered.versions
    published = {one.member for one in versions.values() if one.front_id == front.digest}
    notes, found = [], {}
    if not published:
        found = dict(own)
        notes.append(f"this front is not registered: {', '.join(own)} are its own; `hm3 publish` moves them")
    for alias, number in present.items():
        version = versions.get(number)
        here = version is not None and version.front_id == front.digest
        if here and version is not None:
            found[alias] = version.member
        if alias in own:
            if here and version is not None and version.member != own[alias]:
                notes.append(f"{alias} was moved by hand to version {number}; `hm3 publish` moves it back")
            continue
        if not here:
            what = "was deleted" if version is None else f"is member {version.member or 'unknown'} of another front"
            notes.append(f"{alias} is version {number}, which {what}")
    audited = dict.fromkeys([*(one.alias for one in moves), *(alias for alias in present if alias not in own)])
    by_hand = [trail.by_hand(moves, alias, present.get(alias)) for alias in audited]
    of = {one.id: [alias for alias, member in found.items() if member == one.id] for one in front.members}
    return Aliases(of, "registry", (*(one for one in by_hand if one), *notes))
