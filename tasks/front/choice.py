"""Choosing a member of the front: by preference, among those that meet the requirements, on the `selection` split."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import BadInput
from models.front import Array, Scale, choose
from models.preferences import alike, parse_preference
from tasks.front.front import Front, Member

SPLIT = "selection"
"""Members are chosen on this split; `test` is for reporting."""

SIGNS = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater, "<": np.less}


@dataclass(frozen=True)
class Requirement:
    """A bound on one task score, such as ``math>=0.6``."""

    objective: str
    sign: str
    bound: float

    def holds(self, member: Member) -> bool:
        """Whether a member meets it on `selection`."""
        return bool(SIGNS[self.sign](member.scores[SPLIT][self.objective], self.bound))

    def __str__(self) -> str:
        return f"{self.objective}{self.sign}{self.bound:g}"


def parse_requirement(text: str, names: Sequence[str]) -> Requirement:
    """A requirement from ``OBJECTIVE>=NUMBER``; also ``>``, ``<=`` and ``<``. The names are those of task objectives.

    Raises:
        BadInput: it has another form, an unknown objective, or no finite number.
    """
    found = re.fullmatch(r"\s*([a-z][a-z0-9_]*)\s*(>=|<=|>|<)\s*([^\s<>=]+)\s*", text)
    if not found:
        raise BadInput(f"--require {text!r}: write it as objective>=number, such as 'math>=0.6'")
    name, sign, number = found.groups()
    if name == "layers":
        raise BadInput(f"--require {text!r}: depth is bounded with --max-layers N")
    if name not in names:
        raise BadInput(f"--require {text!r}: unknown objective {name!r}; there are {', '.join(names)}")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise BadInput(f"--require {text!r}: {number!r} is not a number")
    return Requirement(name, sign, bound)


@dataclass(frozen=True)
class Wish:
    """What a member is chosen by."""

    weights: Array
    """The preference (K,)."""
    requirements: tuple[Requirement, ...] = ()
    max_layers: int | None = None
    """Most layers that a token may pass."""

    @classmethod
    def parse(
        cls, front: Front, prefer: str | None, require: Sequence[str] = (), max_layers: int | None = None
    ) -> Wish:
        """A wish from texts: ``objective=weight,…``, all tasks alike if left out, and bounds on task scores.

        Raises:
            BadInput: one of the three is malformed.
        """
        names = front.objectives
        weights = parse_preference(prefer, names) if prefer is not None else alike(names)
        requirements = tuple(parse_requirement(text, front.tasks) for text in require)
        if max_layers is not None and max_layers < 1:
            raise BadInput(f"--max-layers {max_layers}: give at least 1")
        return cls(weights, requirements, max_layers)

    def holds(self, member: Member) -> bool:
        """Whether a member meets all requirements on `selection`."""
        shallow = self.max_layers is None or member.layers <= self.max_layers
        return shallow and all(one.holds(member) for one in self.requirements)

    def bounds(self, scale: Scale, *, upwards: bool) -> list[tuple[int, float]]:
        """Objective and cost of each requirement on a score: those that bid at least so much, or at most."""
        return [
            (k, (scale.ideal[k] - one.bound) / (scale.ideal[k] - scale.nadir[k]))
            for one in self.requirements
            for k in [scale.names.index(one.objective)]
            if one.sign.startswith(">") == upwards
        ]

    def __str__(self) -> str:
        """All requirements in words."""
        depth = [] if self.max_layers is None else [f"at most {self.max_layers} layers"]
        return " and ".join([*map(str, self.requirements), *depth])


def choose_member(
    front: Front, prefer: str | None, require: Sequence[str] = (), max_layers: int | None = None
) -> Member:
    """The member that a wish is for; see :meth:`Wish.parse` and :func:`choose_among`. No model is run."""
    return choose_among(front, front.members, Wish.parse(front, prefer, require, max_layers))


def choose_among(front: Front, members: Sequence[Member], wish: Wish) -> Member:
    """The one with the greatest utility among those that meet every requirement; of equal ones the first.

    Raises:
        BadInput: none meets the requirements.
    """
    fits = [member for member in members if wish.holds(member)]
    if not fits:
        raise BadInput(f"no member has {wish} on {SPLIT}; {reach(front, members)}")
    return fits[choose(front.costs(fits, SPLIT), wish.weights)]


def reach(front: Front, members: Sequence[Member]) -> str:
    """What the members have at best, one by one."""
    scores = [f"{name} {max(one.scores[SPLIT][name] for one in members):.3f}" for name in front.tasks]
    return f"the best are {', '.join(scores)}, the fewest layers {min(one.layers for one in members)}"
