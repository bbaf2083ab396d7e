"""``front.json`` as an object: the members of a front, and what they are held against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.candidate import Candidate
from models.errors import BadInput
from models.files import find_inside, is_plain, parse_object, read_text, validate
from models.front import Array, Scale, choose, hypervolume, ranked
from models.preferences import DEPTH, alike

REMEDY = "no front of this version; run stage `pareto` again"
IDENTIFIER = re.compile("[0-9a-f]{4,64}")

BALANCED = re.compile(r"balanced(-[0-9]+)?")
"""Aliases that belong to fronts: another front has other depths, and so others of them."""

Scores = dict[str, dict[str, float]]
"""Split → objective → value; ``layers`` is T/L and lower is better, of all others higher is better."""


@dataclass(frozen=True)
class Reference:
    """A model that the front is held against."""

    name: str
    kind: Literal["base", "expert", "baseline"]
    scores: Scores


@dataclass(frozen=True)
class Member:
    """A member of the front."""

    id: str
    name: str
    """Name for people; the id where it has no other."""
    layers: int
    """Layers that a token passes, T."""
    path: tuple[tuple[str, int], ...]
    host: str
    recipe: str
    """Its recipe file, relative to ``runs/PROFILE``; of one that is not in the front, where it lies."""
    serves: dict[str, float]
    """The preference that it serves best."""
    mergekit: str
    scores: Scores
    reported: dict[str, float] = field(default_factory=dict)
    kind: str = ""
    corner: bool = False
    """Whether it is listed beside the members, as the best of one objective."""

    @property
    def candidate(self) -> Candidate:
        """The path that was scored."""
        return Candidate(self.host, self.path)

    @property
    def preference(self) -> str:
        """What it serves best, the greatest weight first, as `hm3 choose --prefer` takes it."""
        weights = sorted(self.serves.items(), key=lambda pair: -pair[1])
        return ",".join(f"{name}={weight:.4g}" for name, weight in weights if weight > 0)


@dataclass(frozen=True)
class Front:
    """The whole of ``front.json``."""

    profile: str
    objectives: tuple[str, ...]
    ideal: dict[str, float]
    nadir: dict[str, float]
    hv: dict[str, float]
    """Split → hypervolume fraction (method.md, section 3)."""
    members: tuple[Member, ...]
    references: tuple[Reference, ...]
    digest: str
    """sha256 of the file, hexadecimal."""
    found: bool = False
    """Whether it is no front of the pipeline, but the one model that a search for a preference found beside it."""
    errors: dict[str, float] = field(default_factory=dict)
    """Standard error of a score on the reported split, by task: the median over the members."""

    @classmethod
    def read(cls, folder: Path) -> Front:
        """The front in ``runs/PROFILE``.

        Raises:
            BadInput: there is none, or it is no front.
        """
        label = f"runs/{folder.name}/front.json"
        path = find_inside(folder, "front.json")
        if path is None:
            raise BadInput(f"{label}: no such file; `hm3 run --profile {folder.name}` or `dvc pull` makes it")
        content = read_text(path, label).encode()
        data = parse_object(content, label)
        members = data.get("members")
        named = [
            {"name": one.get("id"), **one} if isinstance(one, dict) else one
            for one in (members if isinstance(members, list) else [members])
        ]
        told = {"members": named, "errors": data.get("standard_errors", {}), "digest": sha256(content).hexdigest()}
        front = validate(cls, {**data, "found": False, **told}, label, remedy=REMEDY)
        front._check(label)
        return front

    def _check(self, label: str) -> None:
        """Refuse scores that lack an objective, and recipes that lie outside the folder."""
        wanted, ids = set(self.objectives), {one.id for one in self.members}
        if not self.members or len(ids) < len(self.members) or len(wanted) < len(self.objectives):
            raise BadInput(f"{label}: has no members, or two of a name; {REMEDY}")
        if not (wanted <= self.ideal.keys() & self.nadir.keys() and "selection" in self.hv):
            raise BadInput(f"{label}: ideal, nadir or hv: not of its objectives and splits; {REMEDY}")
        rows: list[Member | Reference] = [*self.members, *self.references]
        for one in rows:
            if lacking := [split for split in self.hv if one.scores.get(split, {}).keys() != wanted]:
                raise BadInput(f"{label}: {one.name}: scores.{lacking[0]}: not of its objectives; {REMEDY}")
        for member in self.members:
            named = IDENTIFIER.fullmatch(member.id) and is_plain(member.recipe)
            if not (named and member.path and min(member.layers, member.scores["selection"].get("layers", 1)) > 0):
                raise BadInput(f"{label}: member {member.id}: id, recipe, path or layers: is none; {REMEDY}")
        for member in self.members:
            if not all(0 <= layer < self.layers for _, layer in member.path):
                raise BadInput(f"{label}: member {member.id}: path: has a layer that the base lacks; {REMEDY}")

    @cached_property
    def scale(self) -> Scale:
        """Ideal and nadir of every objective."""
        names = self.objectives
        return Scale(names, tuple(self.ideal[one] for one in names), tuple(self.nadir[one] for one in names))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The objectives without ``layers``."""
        return tuple(name for name in self.objectives if name != "layers")

    @cached_property
    def layers(self) -> int:
        """Layers of the base, L."""
        if "layers" in self.objectives:
            return round(self.members[0].layers / self.members[0].scores["selection"]["layers"])
        return max(layer for one in self.members for _, layer in one.path) + 1

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits on which the members are scored, the reported one last."""
        return tuple(self.hv)

    def member(self, key: str) -> Member:
        """A member by its id, or a unique beginning of it, or its name.

        Raises:
            BadInput: no member, or several, go by it.
        """
        found = [one for one in self.members if key in (one.id, one.name)]
        found = found or [one for one in self.members if key and one.id.startswith(key)]
        if len(found) != 1:
            known = ", ".join(one.id for one in self.members)
            raise BadInput(f"member {key!r}: {'several' if found else 'none'} of that name; there are {known}")
        return found[0]

    def costs(self, rows: Sequence[Member | Reference], split: str) -> Array:
        """Costs ``(N, K)`` of members or references on a split."""
        scores = [[one.scores[split][name] for name in self.objectives] for one in rows]
        return self.scale.costs(np.array(scores).reshape(len(rows), len(self.objectives)))

    def hypervolume(self, rows: Sequence[Member | Reference], split: str) -> float:
        """Hypervolume fraction of members or references on a split."""
        return hypervolume(self.costs(rows, split))

    def aliases(self) -> dict[str, Member]:
        """``balanced``, ``balanced-N`` and ``best-OBJECTIVE``, on `selection`.

        ``balanced`` weighs the tasks alike and ignores depth; ``balanced-N`` is the same with at most N layers, for N
        where it is better than with fewer: of more than three the first, the one in the middle and the last.
        """
        costs, chosen = self.costs(self.members, "selection"), {}
        stairs: list[Member] = []
        for one in (self.members[i] for i in ranked(costs, alike(self.objectives))):
            if not stairs or one.layers < stairs[-1].layers:
                stairs.append(one)
        chosen["balanced"], *cut = stairs
        if DEPTH in self.objectives:
            few = cut if len(cut) <= 3 else [cut[0], cut[len(cut) // 2], cut[-1]]
            chosen |= {f"balanced-{one.layers}": one for one in few}
        for name, corner in zip(self.objectives, np.eye(len(self.objectives)), strict=True):
            chosen[f"best-{name}"] = self.members[choose(costs, corner)]
        return chosen

    @cached_property
    def whole(self) -> Member | Reference:
        """The balanced model of full depth: a member, or what members are held against if all of them lack layers."""
        uncut = [one for one in self.members if one.layers >= self.layers]
        rows: Sequence[Member | Reference] = uncut or self.references or self.members
        return rows[choose(self.costs(rows, "selection"), alike(self.objectives))]

    def gives_up(self, model: Member | Reference, split: str) -> tuple[str, float]:
        """The task on which a model loses most against the balanced one of full depth, and how much.

        The loss is a share of that model's score; below 0 where it is better at every task.
        """
        held, own = self.whole.scores[split], model.scores[split]
        losses = {name: (held[name] - own[name]) / max(abs(held[name]), 1e-9) for name in self.tasks}
        return max(losses.items(), key=lambda pair: pair[1])


def member_of(data: dict[str, Any]) -> Member:
    """A member from its entry in ``front.json``; raises BadInput for what is none."""
    return validate(Member, {"name": data.get("id"), **data}, "member")
