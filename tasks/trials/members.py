"""Which candidates of an archive become members of the front: looked at on `search`, chosen with `selection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from models.candidate import Candidate
from models.front import REFERENCE, Array, Scale, nondominated, thin
from tasks.project.progress import Progress
from tasks.scoring.engine import Engine

REFERENCES = ("base", "expert", "baseline")
"""Kinds of what the front is held against."""


@dataclass(frozen=True)
class Listed:
    """A candidate that may become a member."""

    candidate: Candidate
    kind: str
    name: str


def shortlist(archive: pd.DataFrame, scale: Scale, engine: Engine, known: Sequence[Listed], count: int) -> list[Listed]:
    """The ``count`` fully scored candidates that look best on the search split, front by front, thinned by hypervolume.

    A candidate that was scored on a part of the items is left out, and so are those that are ``known`` or lie beyond
    the reference point.
    """
    seen = archive["candidate"].isin([one.candidate.to_json() for one in known])
    whole = archive[(archive["items"] == engine.items("search")) & archive["failed"].isna() & ~seen]
    costs = scale.relative(whole[list(scale.names)].to_numpy(dtype=float))
    whole = whole.iloc[np.flatnonzero((costs < REFERENCE).all(axis=1))]
    if whole.empty:
        return []
    found = [Candidate.from_json(text) for text in whole["candidate"]]
    listed = [Listed(one, str(kind), one.id) for one, kind in zip(found, whole["kind"], strict=True)]
    scores = whole[list(scale.names)].to_numpy(dtype=float)
    chosen: list[int] = []
    for rank in NonDominatedSorting().do(scale.relative(scores)):
        left = count - len(chosen)
        kept = rank if len(rank) <= left else rank[thin(scale.costs(scores[rank]), left)]
        chosen += [int(index) for index in kept]
        if len(chosen) >= count:
            break
    return [listed[index] for index in chosen]


def choose_members(
    engine: Engine, scale: Scale, listed: Sequence[Listed], count: int, progress: Progress
) -> list[Listed]:
    """The non-dominated ones, thinned by hypervolume contribution; the best by objective always stay.

    Scores are means over the items of `search` and `selection` together: twice as many items mislead less, though the
    first have been searched on. Candidates whose advantage is within the noise of these means are dropped, and so are
    finds beyond the reference point: a model is not worth having for being short alone.
    """
    candidates = [one.candidate for one in listed]
    with progress.bar("choosing on selection", len(listed), "candidates") as bar:
        looked_at = engine.scored(candidates, "selection", bar=bar)
    searched = engine.scored(candidates, "search")
    sound = [i for i in range(len(listed)) if not (looked_at[i].failed or searched[i].failed)]
    items = [{name: (*searched[i].items[name], *values) for name, values in looked_at[i].items.items()} for i in sound]
    depths = [candidates[i].depth / engine.layers for i in sound]
    scores = columns(scale, [{name: float(np.mean(values)) for name, values in one.items()} for one in items], depths)
    noise = [{name: standard_error(values) for name, values in one.items()} for one in items]
    errors = scale.relative_errors(columns(scale, noise, [0.0] * len(sound)))
    relative = scale.relative(scores)
    held = np.array([listed[i].kind in REFERENCES for i in sound], dtype=bool) | (relative < REFERENCE).all(axis=1)
    front = np.flatnonzero(held)[nondominated(relative[held], errors[held])]
    return [listed[sound[front[index]]] for index in thin(scale.costs(scores[front]), count)]


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
