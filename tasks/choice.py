"""Choosing a member of the front: by preference, among those that meet the requirements, on the `selection` split."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import BadInput
from models.front import choose
from models.preferences import parse_preference
from tasks.front import Front, Member

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
    """A requirement from its text.

    Args:
        text: ``OBJECTIVE>=NUMBER``; also ``>``, ``<=`` and ``<``.
        names: the task objectives.

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


def choose_member(
    front: Front, prefer: str | None, require: Sequence[str] = (), max_layers: int | None = None
) -> Member:
    """The member with the greatest utility among those that meet every requirement; no model is run.

    Args:
        front: the members.
        prefer: ``objective=weight`` pairs, separated by commas; equal weights if left out.
        require: bounds on task scores.
        max_layers: most layers that a token may pass.

    Raises:
        BadInput: one of the three is malformed, or no member meets the requirements.
    """
    names = front.objectives
    weights = parse_preference(prefer, names) if prefer is not None else np.full(len(names), 1 / len(names))
    requirements = [parse_requirement(text, front.tasks) for text in require]
    if max_layers is not None and max_layers < 1:
        raise BadInput(f"--max-layers {max_layers}: give at least 1")
    fits = [
        member
        for member in front.members
        if (max_layers is None or member.layers <= max_layers) and all(one.holds(member) for one in requirements)
    ]
    if not fits:
        raise BadInput(f"no member has {wanted(requirements, max_layers)} on {SPLIT}; {reach(front)}")
    return fits[choose(front.costs(fits, SPLIT), weights)]


def wanted(requirements: Sequence[Requirement], max_layers: int | None) -> str:
    """All requirements in words."""
    depth = [] if max_layers is None else [f"at most {max_layers} layers"]
    return " and ".join([*map(str, requirements), *depth])


def reach(front: Front) -> str:
    """What the members have at best, one by one."""
    scores = [f"{name} {max(one.scores[SPLIT][name] for one in front.members):.3f}" for name in front.tasks]
    return f"the best are {', '.join(scores)}, the fewest layers {min(one.layers for one in front.members)}"
