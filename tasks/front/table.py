"""The front as people read it: members next to base, experts and plain merges, on a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models.text import markdown as escaped
from tasks.front.found import Made
from tasks.front.front import Front, Member, Reference
from tasks.front.running_costs import RunningCosts

UNKNOWN = RunningCosts()

OWN = ("member", "corner")
"""Kinds of rows that are of the front itself; a corner is the best of one objective."""


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    name: str
    kind: str
    """``member``, ``corner``, ``base``, ``expert`` or ``baseline``."""
    layers: str
    costs: tuple[str, ...]
    """What it takes to run, a value a column."""
    scores: tuple[str, ...]
    """One value an objective, in the front's order."""
    gives_up: str
    """In percent; the task is in ``--json`` and in the report, for want of room."""
    serves: str
    aliases: str


def table_rows(
    front: Front, split: str, aliases: Mapping[str, Sequence[str]] | None = None, costs: RunningCosts = UNKNOWN
) -> list[Row]:
    """Members from the deepest to the shallowest, then what they are held against.

    Args:
        front: what is shown.
        split: whose scores.
        aliases: member id → its aliases; those that follow from the front itself if left out.
        costs: what models take to run, where it is known.
    """
    aliases = by_member(front) if aliases is None else aliases
    rows = []
    for one in sorted(front.members, key=lambda one: (-one.layers, one.id)):
        name = one.id if one.name == one.id else f"{one.id} ({one.name})"
        own = " ".join(aliases.get(one.id, ()))
        taken = costs.cells(one.candidate.depth)
        scores, lost = shown(front, one, split), given_up(front, one, split).partition(" ")[0]
        kind = "corner" if one.corner else "member"
        rows.append(Row(name, kind, str(one.layers), taken, scores, lost, preference(one), own))
    for against in front.references:
        depth = depth_of(front, against, split)
        taken = costs.cells(front.layers if depth else 0)
        scores, lost = shown(front, against, split), given_up(front, against, split).partition(" ")[0]
        rows.append(Row(against.name, against.kind, depth, taken, scores, lost, "", ""))
    return rows


def by_member(front: Front) -> dict[str, list[str]]:
    """Member id → the aliases that follow from the front itself."""
    found: dict[str, list[str]] = {one.id: [] for one in front.members}
    for alias, member in front.aliases().items():
        found[member.id].append(alias)
    return found


def depth_of(front: Front, model: Reference, split: str) -> str:
    """Layers of a reference, where depth is an objective: members carry T and T/L, references T/L alone."""
    if "layers" not in front.objectives:
        return ""
    known = front.members[0]
    return f"{model.scores[split]['layers'] * known.layers / known.scores[split]['layers']:.0f}"


def shown(front: Front, model: Member | Reference, split: str) -> tuple[str, ...]:
    """Scores of a model on a split; the task scores to three digits."""
    return tuple(f"{model.scores[split][name]:.3f}" for name in front.tasks)


def given_up(front: Front, model: Member | Reference, split: str) -> str:
    """The most that a model loses on a task against the balanced model of full depth, in percent of its score."""
    if model == front.whole:
        return ""
    task, share = front.gives_up(model, split)
    return f"{100 * share:.0f}% {task}" if share >= 0.005 else "0%"


def preference(member: Member, most: int = 2) -> str:
    """The greatest weights of the preference that a member serves best."""
    weights = sorted(member.serves.items(), key=lambda pair: -pair[1])
    return " ".join(f"{name} {weight:.2f}" for name, weight in weights[:most] if weight >= 0.01)


def front_table(
    front: Front, split: str, aliases: Mapping[str, Sequence[str]] | None = None, costs: RunningCosts = UNKNOWN
) -> Table:
    """The table of one split for a terminal; the best score of each objective among the members stands out."""
    table = Table(title=Text(title(front, split)), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("kind")
    for heading in ("layers", *costs.headings, *front.tasks):
        table.add_column(heading, justify="right")
    table.add_column("gives up", justify="right")
    table.add_column("serves")
    table.add_column("aliases", style="cyan", overflow="fold")
    rows = table_rows(front, split, aliases, costs)
    best = [max(one.scores[index] for one in rows if one.kind in OWN) for index in range(len(front.tasks))]
    for row in rows:
        member = row.kind in OWN
        scores = [
            Text(value, "bold") if member and value == top else value
            for value, top in zip(row.scores, best, strict=True)
        ]
        before, after = (row.name, row.kind, row.layers, *row.costs), (row.gives_up, row.serves, row.aliases)
        table.add_row(*map(Text, before), *scores, *map(Text, after), style="" if member else "dim")
    return table


def markdown(front: Front, split: str, costs: RunningCosts = UNKNOWN) -> str:
    """The same table in Markdown."""
    heads = ("model", "kind", "layers", *costs.headings, *front.tasks, "gives up", "serves", "aliases")
    rows = [
        (one.name, one.kind, one.layers, *one.costs, *one.scores, one.gives_up, one.serves, one.aliases)
        for one in table_rows(front, split, costs=costs)
    ]
    lines = [f"| {' | '.join(map(escaped, cells))} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join([f"**{escaped(title(front, split))}**", "", *lines])


def title(front: Front, split: str) -> str:
    """What a table shows."""
    alone = f"references alone {front.hypervolume(front.references, split):.3f}"
    return f"front of {front.profile}: scores on {split}, hypervolume {front.hv[split]:.3f} ({alone})"


def summary(
    front: Front, aliases: Mapping[str, Sequence[str]] | None = None, costs: RunningCosts = UNKNOWN
) -> dict[str, Any]:
    """The members in the form that ``--json`` prints; ``cost`` is null where it is not known."""
    aliases = by_member(front) if aliases is None else aliases
    whole = costs.to_json(front.layers if "layers" in front.objectives else 0)
    return {
        "profile": front.profile,
        "hv": front.hv,
        "hv_references": {split: front.hypervolume(front.references, split) for split in front.splits},
        "members": [
            member_data(front, one, aliases) | {"cost": costs.to_json(one.candidate.depth)} for one in front.members
        ],
        "references": [
            {"name": one.name, "kind": one.kind, "scores": one.scores, "cost": whole} for one in front.references
        ],
    }


def member_data(front: Front, member: Member, aliases: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """One member in the form that ``--json`` prints."""
    return {
        "id": member.id,
        "name": member.name,
        "layers": member.layers,
        "corner": member.corner,
        "serves": member.serves,
        "gives_up": {
            split: {"task": task, "share": share}
            for split in front.splits
            if split in member.scores
            for task, share in [front.gives_up(member, split)]
        },
        "aliases": list((by_member(front) if aliases is None else aliases).get(member.id, ())),
        "recipe": recipe_file(front, member),
        "mergekit": member.mergekit,
        "scores": member.scores,
        "reported": member.reported,
    }


def member_table(front: Front, member: Member) -> RenderableType:
    """One member with its scores on every split."""
    table = Table(title=Text(f"member {member.id}"), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("objective")
    splits = [split for split in reversed(front.splits) if split in member.scores]
    for split in splits:
        table.add_column(split, justify="right")
    for name in front.tasks:
        table.add_row(name, *(f"{member.scores[split][name]:.3f}" for split in splits))
    table.add_row("layers", str(member.layers))
    lost = given_up(front, member, splits[0])
    below = [
        f"serves {preference(member, len(member.serves))}",
        *([f"gives up {lost} on {splits[0]}, against the balanced model of full depth"] if lost else []),
        f"recipe {recipe_file(front, member)}",
    ]
    return Group(table, Text("\n".join(below)))


def recipe_file(front: Front, member: Member) -> str:
    """Where a member's recipe lies, from the project's folder."""
    return str(PurePath("runs") / front.profile / member.recipe)


def made_table(made: Made) -> RenderableType:
    """A model that was made for a preference, with what is foreseen of it, and its scores where it was evaluated."""
    table = Table(title=Text(f"model {made.id}"), title_justify="left", title_style="bold", box=None, pad_edge=False)
    splits = list(made.measured.scores) if made.measured else []
    for heading in ("objective", "foreseen", *splits):
        table.add_column(heading, justify="left" if heading == "objective" else "right")
    for name, (mean, deviation) in made.foreseen.items():
        own = [f"{made.measured.scores[split][name]:.3f}" for split in splits] if made.measured else []
        table.add_row(name, f"{mean:.3f} ± {deviation:.3f}", *own)
    table.add_row("layers", str(made.layers))
    weights = "; ".join(f"{name} {min(own):.2f} to {max(own):.2f}" for name, own in made.weights.items())
    after = "" if made.measured else "\nnot measured; with --evaluate it is, and is exported and promoted like a member"
    return Group(table, Text(f"weights {weights}\nrecipe {made.recipe}{after}"))
