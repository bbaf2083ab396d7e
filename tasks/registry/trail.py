"""Who moved an alias, when, from where to where, and why: the trail of promotions in the registry.

Each move is a tag of the registered model, one JSON object, so that the trail outlives versions and runs, is seen on
the model's page in MLflow's UI, and two writers never overwrite each other's entries. The version that an alias came to
says the same in a tag for people.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rich.table import Table

from tasks.registry.versions import Registered

PREFIX = "move."
"""How the keys of the trail's tags begin; alias and time follow."""

Kind = Literal["promotion", "rollback"]


@dataclass(frozen=True)
class Move:
    """One entry of the trail."""

    when: str
    """UTC, ISO 8601."""
    who: str
    alias: str
    kind: Kind
    before: int | None
    """Version that the alias pointed to; None where it is new."""
    to: int
    """Version that it points to since."""
    member: str
    """Id of the member that this version is."""
    scores: dict[str, float]
    """Objective → score on `selection`."""
    forced: bool = False
    reason: str = ""
    overruled: list[str] = field(default_factory=list)
    """What spoke against a forced move."""

    @property
    def key(self) -> str:
        """Key of its tag."""
        return f"{PREFIX}{self.alias}.{self.when}"

    def __str__(self) -> str:
        came = "new" if self.before is None else f"from version {self.before}"
        why = f": {self.reason}" if self.reason else ""
        return f"{self.when} {self.kind} by {self.who}, {came}{', forced' if self.forced else ''}{why}"


def now() -> str:
    """The time in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def record(registered: Registered, move: Move) -> None:
    """Add a move to the trail."""
    client, name = registered.client, registered.name
    client.set_registered_model_tag(name, move.key, json.dumps(asdict(move)))
    client.set_model_version_tag(name, str(move.to), f"moved.{move.alias}", str(move))


def read(registered: Registered) -> list[Move]:
    """The trail of all aliases, the oldest move first."""
    found = [Move(**json.loads(one)) for key, one in registered.tags().items() if key.startswith(PREFIX)]
    return sorted(found, key=lambda one: one.when)


def places(moves: Sequence[Move], alias: str, present: int) -> list[int]:
    """Versions that an alias would come back to, the present one last.

    A rollback takes away what it left, so that the next one goes further back; a move by hand counts as one forward.
    """
    stack: list[int] = []

    def arrive(version: int | None) -> None:
        if version is not None and stack[-1:] != [version]:
            stack.append(version)

    for move in moves:
        if move.alias != alias:
            continue
        arrive(move.before)
        if move.kind == "rollback":
            stack.pop()
        arrive(move.to)
    arrive(present)
    return stack


def by_hand(moves: Sequence[Move], alias: str, present: int | None) -> str | None:
    """What the trail does not know of an alias, in words; None where it agrees with the registry."""
    last = next((one for one in reversed(moves) if one.alias == alias), None)
    known = None if last is None else last.to
    if known == present:
        return None
    if present is None:
        return f"{alias} was taken away by hand; it was version {known}"
    said = "never promoted" if last is None else f"promoted last to version {known} by {last.who}"
    return f"{alias} was moved by hand to version {present}; the audit trail says: {said}"


def history_table(name: str, moves: Sequence[Move]) -> Table:
    """The trail for a terminal, the oldest move first."""
    table = Table(title=f"moves of {name}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("when", "who", "alias", "move", "member", "selection", "reason"):
        table.add_column(column, no_wrap=column in ("when", "move"))
    for one in moves:
        came = f"{'new' if one.before is None else one.before} → {one.to}"
        how = " (rollback)" if one.kind == "rollback" else " (forced)" if one.forced else ""
        scores = " ".join(f"{objective} {score:.3f}" for objective, score in one.scores.items())
        table.add_row(one.when[:19] + "Z", one.who, one.alias, came + how, one.member, scores, one.reason)
    return table


def as_data(moves: Sequence[Move]) -> list[dict[str, Any]]:
    """The trail in the form that ``--json`` prints."""
    return [asdict(one) for one in moves]
