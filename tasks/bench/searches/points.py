"""The anytime front: what stage `pareto` would have chosen at each tenth of the budget, and its scores on `test`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from models.candidate import Candidate
from models.front import Scale, hypervolume
from tasks.bench.searches.cuts import cuts
from tasks.bench.searches.family import Ground
from tasks.bench.searches.run import MARKS, Case, Finished
from tasks.project.progress import Progress
from tasks.trials.members import Listed, choose_members, score_table, shortlist

TENTHS = range(1, 11)


@dataclass(frozen=True)
class Points:
    """A run as rows: points by tenth of the budget, members, charges by kind of proposal, and losses by depth."""

    rows: pd.DataFrame
    members: pd.DataFrame
    kinds: pd.DataFrame
    cuts: pd.DataFrame


def anytime(ground: Ground, case: Case, finished: Finished, tell: Callable[[int], None] | None = None) -> Points:
    """Choose and score the fronts of a run.

    At t item evaluations the front is chosen among the candidates that had been scored on all items by then. Base,
    experts and plain merges are always looked at on `selection`, as in stage `pareto`; finds must make the shortlist.

    Args:
        ground: the family; the run's recipes take part.
        case: what was run.
        finished: what it left.
        tell: told which tenth is being looked at.
    """
    scale = ground.scale(case.depth)
    fronts: dict[int, list[Listed]] = {}
    for tenth in TENTHS:
        if tell:
            tell(tenth)
        known = finished.archive[finished.archive["at"] <= case.budget * tenth / len(TENTHS)]
        fronts[tenth] = members_of(ground, scale, known)
    found = list({one.candidate: one for front in fronts.values() for one in front}.values())
    tasks = dict(
        zip((one.candidate for one in found), score_table(ground.engine, ground.tasks, found, "test"), strict=True)
    )
    rows = []
    for tenth, front in fronts.items():
        at = case.budget * tenth / len(TENTHS)
        known = finished.archive[finished.archive["at"] <= at]
        scores = np.array([tasks[one.candidate] for one in front])
        depths = np.array([one.candidate.depth / ground.engine.layers for one in front])
        has_depth = ground.workspace.profile.layers is not None
        whole = ground.scale(True).costs(np.column_stack([scores, depths])) if has_depth else None
        rows.append(
            {
                "tenth": tenth,
                "at": at,
                "hv": hypervolume(whole) if whole is not None else np.nan,
                "hv_tasks": hypervolume(ground.tasks.costs(scores)),
                "members": len(front),
                "scored": int(((known["charged"] > 0) & (known["items"] == ground.engine.items("search"))).sum()),
                **spent(finished.marks, at if tenth < len(TENTHS) else np.inf),
            }
        )
    cut = cuts(ground, finished.archive) if case.depth else pd.DataFrame()
    kinds = kind_table(case, finished.archive)
    return Points(pd.DataFrame(rows), member_table(ground, fronts, tasks), kinds, cut)


def members_of(ground: Ground, scale: Scale, archive: pd.DataFrame) -> list[Listed]:
    """The front of an archive, as stage `pareto` chooses it; a member that fails on `test` is none."""
    params, engine = ground.workspace.params.pareto, ground.engine
    references = [Listed(one, "base" if one.host == "base" else "expert", one.host) for one in ground.sources]
    listed = [*references, *shortlist(archive, scale, engine, references, params.rescored)]
    members = choose_members(engine, scale, listed, params.members, Progress()).all
    tested = engine.scored([one.candidate for one in members], "test")
    return [one for one, result in zip(members, tested, strict=True) if result.failed is None]


def spent(marks: pd.DataFrame, at: float) -> dict[str, float]:
    """What had been spent after ``at`` item evaluations; within a call it grows evenly."""
    last = marks.iloc[-1]
    if at >= last["evaluations"]:
        return {name: float(last[name]) for name in MARKS}
    counted = marks.drop_duplicates("evaluations", keep="last")
    return {name: float(np.interp(at, counted["evaluations"], counted[name])) for name in MARKS}


def member_table(ground: Ground, fronts: dict[int, list[Listed]], tasks: dict[Candidate, np.ndarray]) -> pd.DataFrame:
    """Every member once: its scores on `test`, and at which tenths it is one, such as ``0000111111``."""
    rows = []
    for candidate, scores in tasks.items():
        held = [next((one for one in front if one.candidate == candidate), None) for front in fronts.values()]
        first = next(one for one in held if one is not None)
        rows.append(
            {
                "id": candidate.id,
                "kind": first.kind,
                "depth_layers": candidate.depth,
                "tenths": "".join("01"[one is not None] for one in held),
                **dict(zip(ground.tasks.names, map(float, scores), strict=True)),
                "path": "" if candidate.is_identity(ground.engine.layers) else short_path(candidate),
            }
        )
    return pd.DataFrame(rows)


def short_path(candidate: Candidate) -> str:
    """A path as people write it: ``math 0-3, code 4, 6-7``; its host is the model in front of the colon."""
    parts = []
    for model, steps in groupby(candidate.path, key=lambda step: step[0]):
        runs: list[list[int]] = []
        for _, layer in steps:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
        parts.append(f"{model} {' '.join(spans)}")
    return f"{candidate.host}: {', '.join(parts)}"


def kind_table(case: Case, archive: pd.DataFrame) -> pd.DataFrame:
    """Item evaluations by kind of proposal and by the tenth in which a candidate was last scored."""
    charged = archive[archive["charged"] > 0]
    width = case.budget / len(TENTHS)
    tenth = np.clip(np.ceil(charged["at"] / width), 1, len(TENTHS)).astype(int)
    table = charged.assign(tenth=tenth).groupby(["kind", "tenth"], sort=True)["charged"].agg(["sum", "count"])
    return table.reset_index().rename(columns={"sum": "charged", "count": "candidates"})
