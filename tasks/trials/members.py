"""Which candidates of an archive become members of the front: looked at on `search`, chosen with `selection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.candidate import Candidate
from models.front import REFERENCE, Array, Scale, greedy, utility
from models.preferences import DEPTH
from tasks.project.progress import Progress
from tasks.scoring.engine import Engine
from tasks.trials.chosen import ItemTable, choose, chosen_by

REFERENCES = ("base", "expert", "baseline")
"""Kinds of what the front is held against: base, experts and plain merges."""


@dataclass(frozen=True)
class Listed:
    """A candidate that may become a member."""

    candidate: Candidate
    kind: str
    name: str


def shortlist(archive: pd.DataFrame, scale: Scale, engine: Engine, known: Sequence[Listed], count: int) -> list[Listed]:
    """What is looked at on `selection` beside the ``known``: all plain merges, and ``count`` finds.

    Finds are taken for what they add, on the search split, to the best utility under the preferences that matter, over
    base, experts and plain merges first; when none adds anything, what is left begins anew. Candidates that were scored
    on a part of the items are left out, and so are finds beyond the reference point.
    """
    whole = archive[(archive["items"] == engine.items("search")) & archive["failed"].isna()]
    costs = scale.relative(whole[list(scale.names)].to_numpy(dtype=float))
    utilities = utility(costs, chosen_by(scale.names))
    found = [Candidate.from_json(text) for text in whole["candidate"]]
    listed = [Listed(one, str(kind), one.id) for one, kind in zip(found, whole["kind"], strict=True)]
    given = {one.candidate for one in known}
    plain = np.array([one.kind in REFERENCES or one.candidate in given for one in listed], dtype=bool)
    inside = (costs < REFERENCE).all(axis=1)
    left = [int(i) for i in np.flatnonzero(~plain & inside)]
    have = utilities[plain].max(axis=0) if plain.any() else None
    chosen: list[int] = []
    while left and len(chosen) < count:
        chosen += [left[i] for i in greedy(utilities[left], count - len(chosen), have)]
        left, have = [i for i in left if i not in chosen], None
    more = [one for one, is_plain in zip(listed, plain, strict=True) if is_plain and one.candidate not in given]
    return [*more, *(listed[i] for i in chosen)]


@dataclass(frozen=True)
class Members:
    """A front."""

    members: tuple[Listed, ...]
    corners: tuple[Listed, ...]
    """The best of an objective, where no member is; they are listed beside the members."""

    @property
    def all(self) -> list[Listed]:
        """Members, then corners."""
        return [*self.members, *self.corners]


def choose_members(engine: Engine, scale: Scale, listed: Sequence[Listed], count: int, progress: Progress) -> Members:
    """Members by the item scores of `search` and `selection` together, ``count`` at most if references need no more.

    Twice as many items mislead less, though the first have been searched on. See :func:`tasks.trials.chosen.choose`.
    """
    candidates = [one.candidate for one in listed]
    with progress.bar("choosing on selection", len(listed), "candidates") as bar:
        looked_at = engine.scored(candidates, "selection", bar=bar)
    searched = engine.scored(candidates, "search")
    sound = [i for i in range(len(listed)) if not (looked_at[i].failed or searched[i].failed)]
    names = [name for name in scale.names if name != DEPTH]
    items = {name: np.array([[*searched[i].items[name], *looked_at[i].items[name]] for i in sound]) for name in names}
    layers = np.array([candidates[i].depth for i in sound], dtype=np.int64)
    references = [place for place, i in enumerate(sound) if listed[i].kind in REFERENCES]
    chosen = choose(ItemTable(scale, items, layers, engine.layers), references, count)
    members, corners = (tuple(listed[sound[i]] for i in part) for part in (chosen.members, chosen.corners))
    if len(members) > count:
        progress.message(f"{len(members)} members: with {count} some plain merge or expert would be better than all")
    return Members(members, corners)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean over some items."""
    return float(np.std(values) / np.sqrt(len(values)))


def score_table(engine: Engine, scale: Scale, listed: Sequence[Listed], split: str) -> Array:
    """Scores ``(N, K)`` on a split in the order of the scale; ``layers`` is T/L."""
    scored = [one.means() for one in engine.scored([one.candidate for one in listed], split)]
    return columns(scale, scored, [one.candidate.depth / engine.layers for one in listed])


def columns(scale: Scale, tasks: Sequence[Mapping[str, float]], depths: Sequence[float]) -> Array:
    """Numbers of the tasks and of the depth as ``(N, K)`` in the order of the scale."""
    rows = [dict(one) | {"layers": depth} for one, depth in zip(tasks, depths, strict=True)]
    return np.array([[row[name] for name in scale.names] for row in rows]).reshape(len(rows), len(scale.names))
