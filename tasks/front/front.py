"""``front.json`` as an object: the members of a front, and what they are held against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.candidate import Candidate
from models.errors import BadInput
from models.front import Array, Scale, balanced, choose, hypervolume

Scores = dict[str, dict[str, float]]
"""Split → objective → value; ``layers`` is T/L and lower is better, of all others higher is better."""


@dataclass(frozen=True)
class Reference:
    """A model that the front is held against."""

    name: str
    kind: str
    """``base``, ``expert`` or ``baseline``."""
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
        path = folder / "front.json"
        label = f"runs/{folder.name}/front.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise BadInput(f"{label}: no such file; `hm3 run --profile {folder.name}` or `dvc pull` makes it") from None
        try:
            data = json.loads(content)
            return cls(
                profile=data["profile"],
                objectives=tuple(data["objectives"]),
                ideal=data["ideal"],
                nadir=data["nadir"],
                hv=data["hv"],
                members=tuple(member_of(one) for one in data["members"]),
                references=tuple(Reference(one["name"], one["kind"], one["scores"]) for one in data["references"]),
                errors=data.get("standard_errors", {}),
                digest=hashlib.sha256(content).hexdigest(),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{label}: {error!r}: no front of this version; run stage `pareto` again") from None

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
        """``balanced`` and ``best-OBJECTIVE``: the member for equal weights and for each objective, on `selection`."""
        costs = self.costs(self.members, "selection")
        chosen = {"balanced": self.members[balanced(costs)]}
        for name, corner in zip(self.objectives, np.eye(len(self.objectives)), strict=True):
            chosen[f"best-{name}"] = self.members[choose(costs, corner)]
        return chosen


def member_of(data: dict[str, Any]) -> Member:
    """A member from its entry in ``front.json``."""
    known = {one.name for one in fields(Member)}
    path = tuple((str(model), int(layer)) for model, layer in data["path"])
    rest = {key: value for key, value in data.items() if key in known and key not in ("path", "name")}
    return Member(path=path, name=data.get("name", data["id"]), **rest)
