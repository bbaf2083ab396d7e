"""`hm3 promote` and its flow: an alias of the registry moves to a member that passes the gates, or back.

The alias may have moved in another hand while the gates were looked at, which can take minutes. So nothing is locked
meanwhile; the move itself looks again, under a lock of this workspace, and gives way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from filelock import FileLock
from pydantic import Field

from models.errors import BadInput, Failed
from tasks.front import found
from tasks.front.choice import SPLIT, choose_member
from tasks.front.front import BALANCED, Front
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace
from tasks.registry import trail
from tasks.registry.gates import KEPT, REPRODUCED, Check, as_data, failures, kept, sound
from tasks.registry.reload import Reload
from tasks.registry.trail import Kind, Move
from tasks.registry.versions import Registered, Version, answering, open_registry
from tasks.schema.strict import Strict
from tasks.tracking.mlflow import user

CHAMPION = "champion"

Alias = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$")]
Reason = Annotated[str, Field(max_length=1000)]


class Request(Strict):
    """What is to be promoted."""

    member: str | None = Field(None, description="Id of a member or of what a search found, or an alias.")
    alias: Alias = Field(CHAMPION, description="Alias that is to name it: letters, digits, _ and -.")
    prefer: str | None = Field(
        None, description="Instead of a member: what matters how much, such as translation=0.5,math=0.3."
    )
    force: bool = Field(False, description="Move the alias even if a gate fails; needs a reason.")
    reason: Reason = Field("", description="Why; kept in the audit trail.")


Meant = tuple[Front, str, Version | None]
"""The profile's front, or what was found as one of its own; a member's id; its version, None if not registered."""


@dataclass(frozen=True)
class Decision:
    """What the gates say of a move; nothing has moved yet."""

    name: str
    """The registered model."""
    alias: str
    version: Version | None
    """Where the alias is to go; None where the member is not registered."""
    member: str
    before: int | None
    """Where it pointed when the gates were looked at."""
    scores: dict[str, float]
    """Objective → recorded score on `selection`."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate lets it through."""
        return self.version is not None and sound(self.checks)

    @property
    def title(self) -> str:
        """What is decided, in a line."""
        to = f"version {self.version.number}" if self.version else "not registered"
        now = "not set yet" if self.before is None else f"version {self.before} now"
        return f"{self.alias} of {self.name} ({now}) to member {self.member} ({to})"


@dataclass(frozen=True)
class Promotion:
    """What came of a request."""

    decision: Decision
    move: Move | None
    """The entry in the audit trail; None where the alias stays."""

    @property
    def refused(self) -> bool:
        """Whether a gate held it up."""
        return self.move is None and not self.unchanged

    @property
    def unchanged(self) -> bool:
        """Whether the alias was there already."""
        return self.decision.version is not None and self.decision.before == self.decision.version.number

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        one = self.decision
        return {
            "name": one.name,
            "alias": one.alias,
            "member": one.member,
            "version": one.version.number if one.version else None,
            "before": one.before,
            "moved": self.move is not None,
            "refused": self.refused,
            "checks": as_data(one.checks),
            "move": asdict(self.move) if self.move else None,
        }

    def __str__(self) -> str:
        one = self.decision
        if self.unchanged:
            return f"{one.alias} is version {one.before} already"
        if self.move is not None:
            came = "" if one.before is None else f", was version {one.before}"
            return f"{one.alias} of {one.name} is now version {self.move.to}, member {one.member}{came}"
        stays = "is not set" if one.before is None else f"stays at version {one.before}"
        absent = one.version is None and one.checks[0].passed is False
        remedy = "`hm3 publish` registers the front" if absent else "`--force --reason TEXT` moves it all the same"
        return f"{one.alias} {stays}: {'; '.join(failures(one.checks))}; {remedy}"


def promote(workspace: Workspace, request: Request, progress: Progress) -> Promotion:
    """Look at the gates, and move the alias if they let it or the request overrules them.

    Raises:
        BadInput: there is no such member, others move this alias, or the request contradicts itself.
        Failed: MLflow does not answer, or the alias was moved meanwhile.
    """
    check(request)
    registered = open_registry(workspace)
    with answering(workspace.state):
        front = Front.read(workspace.run)
        if request.alias in front.aliases() or BALANCED.fullmatch(request.alias):
            raise BadInput(f"--alias {request.alias}: `hm3 publish` moves it; take another, such as {CHAMPION}")
        _, member, version = meant = resolve(workspace, front, registered, request)
        before = registered.aliases().get(request.alias)
        if version is not None and before == version.number:
            return Promotion(Decision(registered.name, request.alias, version, member, before, {}, ()), None)
        with examined(workspace, registered, request, meant, before, progress) as decision:
            if decision.version is None or not (decision.passed or request.force):
                return Promotion(decision, None)
            return Promotion(decision, carry_out(workspace, registered, decision, request))


def rollback(workspace: Workspace, alias: str, reason: str = "") -> Move:
    """Bring an alias back to the version before, by the audit trail; done again it goes further back.

    Raises:
        BadInput: there is nothing to go back to.
        Failed: MLflow does not answer, the version before is gone, or the alias was moved meanwhile.
    """
    registered = open_registry(workspace)
    with answering(workspace.state):
        present = registered.aliases().get(alias)
        if present is None:
            raise BadInput(f"--rollback: {registered.name} has no alias {alias}; `hm3 promote --history` shows all")
        places = trail.places(trail.read(registered), alias, present)
        if len(places) < 2:
            nothing = f"{alias} is version {present}, and the trail has none before"
            raise BadInput(f"--rollback: nothing to roll back to: {nothing}")
        version = registered.versions.get(places[-2])
        if version is None:
            raise Failed(f"--rollback: version {places[-2]} of {registered.name} was deleted; `hm3 promote MEMBER`")
        scores = registered.scores(version, SPLIT)
        back = Decision(registered.name, alias, version, version.member, present, scores, ())
        return carry_out(workspace, registered, back, Request(alias=alias, reason=reason), "rollback")


def history(workspace: Workspace) -> tuple[str, list[Move], list[str]]:
    """The registered model, all moves of its aliases from the oldest on, and what was moved by hand.

    Raises:
        BadInput: there is no registry yet.
        Failed: MLflow does not answer.
    """
    registered = open_registry(workspace)
    with answering(workspace.state):
        moves, aliases = trail.read(registered), registered.aliases()
    known = list(dict.fromkeys([*(one.alias for one in moves), *([CHAMPION] if CHAMPION in aliases else [])]))
    notes = [trail.by_hand(moves, alias, aliases.get(alias)) for alias in known]
    return registered.name, moves, [one for one in notes if one]


def check(request: Request) -> None:
    """Raises BadInput where a request contradicts itself."""
    if (request.member is None) == (request.prefer is None):
        raise BadInput("promote: name a member, or a preference with --prefer, and not both")
    if request.force and not request.reason.strip():
        raise BadInput("--force: needs --reason TEXT; it is kept in the audit trail")
    if request.alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", request.alias):
        raise BadInput(f"--alias {request.alias}: MLflow keeps this name for itself; take another")


def resolve(workspace: Workspace, front: Front, registered: Registered, request: Request) -> Meant:
    """What is meant, and its version if it has one: by an alias of the registry, or of the front, or by an id.

    Raises:
        BadInput: no member and nothing that was found, or several of them, go by it.
    """
    if request.member is None:
        member = choose_member(front, request.prefer)
    else:
        aliased = registered.versions.get(registered.aliases().get(request.member, 0))
        if aliased is not None:
            return front, aliased.member, aliased
        try:
            member = front.aliases().get(request.member) or front.member(request.member)
        except BadInput:
            beside = found.kept(workspace, request.member)
            if beside is None:
                raise
            front, member = found.alone(front, beside), beside
    return front, member.id, registered.of_member(member.id, front.digest)


@contextmanager
def examined(
    workspace: Workspace, registered: Registered, request: Request, meant: Meant, before: int | None, progress: Progress
) -> Iterator[Decision]:
    """The gates in order. A version that was made for this promotion is taken back if the alias does not come to it."""
    rules, objectives = workspace.profile.promotion, workspace.profile.objective_names
    front, member, version = meant
    reload = Reload(workspace, registered, front, progress)
    holder = registered.versions.get(before) if before is not None else None
    if version is None and not front.found:
        checks = [reload.absent(member), Check(REPRODUCED, SPLIT, "", "", None), Check(KEPT, SPLIT, "", "", None)]
        yield Decision(registered.name, request.alias, None, member, before, {}, tuple(checks))
        return
    recorded = registered.scores(version, SPLIT) if version else front.member(member).scores[SPLIT]
    present = reload.comparable(holder, version.front_id if version else front.digest) if holder is not None else None
    last = kept(recorded, present, objectives, rules)
    if before is None:
        last.insert(0, Check(KEPT, SPLIT, "", "", True, f"{request.alias} is not set yet"))
    elif holder is None:
        last.insert(0, Check(KEPT, SPLIT, "", "", True, f"version {before} was deleted"))
    made = reload.add(member, version) if sound(last) or request.force else None
    try:
        there = made or version
        first, again = reload.checks(there), [Check(REPRODUCED, SPLIT, "", "", None)]
        if there is not None and sound(first):
            again = reload.reproduces(there, recorded)
        yield Decision(registered.name, request.alias, there, member, before, recorded, (*first, *again, *last))
    finally:
        if made is not None and registered.aliases().get(request.alias) != made.number:
            reload.withdraw(made)


def carry_out(
    workspace: Workspace, registered: Registered, decision: Decision, request: Request, kind: Kind = "promotion"
) -> Move:
    """Move the alias and write it down.

    Raises:
        Failed: the alias no longer points to where it did when the gates were looked at.
    """
    if decision.version is None:
        raise Failed(f"{decision.member}: not registered; run `hm3 publish`")
    (workspace.state / "mlflow").mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.state / "mlflow" / "promote.lock"):
        present = registered.aliases().get(decision.alias)
        if present != decision.before:
            was = "not set" if decision.before is None else f"version {decision.before}"
            now = "not set" if present is None else f"version {present}"
            raise Failed(f"{decision.alias} was {was} and is {now} meanwhile; nothing was moved: look, then try again")
        against = [] if decision.passed else failures(decision.checks)
        move = Move(
            when=trail.now(),
            who=user(),
            alias=decision.alias,
            kind=kind,
            before=decision.before,
            to=decision.version.number,
            member=decision.member,
            scores={name: round(score, 6) for name, score in decision.scores.items()},
            forced=bool(against),
            reason=request.reason.strip(),
            overruled=[one[:200] for one in against[:10]],
        )
        registered.client.set_registered_model_alias(registered.name, move.alias, str(move.to))
        trail.record(registered, move)
    return move
