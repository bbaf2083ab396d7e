"""Trials over a profile's models: what the stages before have scored, and the recipes that may be tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from models.candidate import Candidate
from models.merge.recipe import dump_recipes
from models.merge.space import RecipeSpace
from models.search.archive import Archive, Entry
from models.search.reward import Reward
from models.search.trial import Trial
from tasks.project.records import Anchors
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.trials.lab import EngineLab
from tasks.trials.pool import full_scale


def open_trial(workspace: Workspace, lab: EngineLab, anchors: Anchors, offline: pd.DataFrame, budget: int) -> Trial:
    """A trial that has scored what the stages ``sample`` and ``dataset`` have, and may go on to a budget."""
    entries = known(lab.engine, anchors, offline)
    return _trial(workspace, lab, anchors, entries, budget, anchors.spent + int(offline["charged"].sum()))


def go_on(
    workspace: Workspace, lab: EngineLab, anchors: Anchors, archive: pd.DataFrame, budget: int, spent: int
) -> Trial:
    """A trial that has scored an archive's candidates, whose recipes the engine knows; ``spent`` item evaluations."""
    return _trial(workspace, lab, anchors, entries_of(archive, anchors.objectives), budget, spent)


def _trial(
    workspace: Workspace, lab: EngineLab, anchors: Anchors, entries: Iterable[Entry], budget: int, spent: int
) -> Trial:
    reward = Reward(full_scale(workspace, anchors), lab.layers)
    trial = Trial(lab, reward, Archive(entries, lab.counts), budget, spent)
    trial.recipes.update(lab.engine.recipes)
    return trial


def known(engine: Engine, anchors: Anchors, offline: pd.DataFrame) -> Iterator[Entry]:
    """What was scored; a plain model of the pool is there once, under its first kind."""
    full = engine.items("search")
    for one in anchors.scored:
        scores = None if one.failed else tuple(one.scores[name] for name in anchors.objectives)
        candidate = Candidate.identity(one.name, engine.layers)
        charged = engine.cost("search") if one.recipe is not None else 0
        yield Entry(candidate, one.kind, 0, full, scores, charged, one.at)
    spent = anchors.spent
    for row in offline.to_dict("records"):
        scores = None if isinstance(row["failed"], str) else tuple(float(row[name]) for name in anchors.objectives)
        candidate = Candidate.from_json(str(row["candidate"]))
        spent += int(row["charged"])
        yield Entry(candidate, str(row["kind"]), 0, int(row["items"]), scores, int(row["charged"]), spent)


def entries_of(archive: pd.DataFrame, tasks: Sequence[str]) -> Iterator[Entry]:
    """The rows of an archive; a candidate that failed has no scores."""
    for row in archive.to_dict("records"):
        scores = tuple(float(row[name]) for name in tasks)
        numbers = {name: int(row[name]) for name in ("round", "items", "charged", "at")}
        known = scores if np.isfinite(scores).all() else None
        yield Entry(Candidate.from_json(str(row["candidate"])), str(row["kind"]), scores=known, **numbers)


def failures_of(table: pd.DataFrame) -> dict[Candidate, str]:
    """Why candidates of a table failed."""
    rows = table[table["failed"].notna()].to_dict("records")
    return {Candidate.from_json(str(row["candidate"])): str(row["failed"]) for row in rows}


def recipe_space(engine: Engine) -> RecipeSpace:
    """Recipes over the experts of a family, by the methods that the parameters name."""
    params = engine.workspace.params
    return RecipeSpace(params.sample.methods, engine.family.base, engine.family.experts, params.seed)


def archive_table(trial: Trial, anchors: Anchors, failed: dict[Candidate, str]) -> pd.DataFrame:
    """A row a candidate, in the order in which they were first scored.

    ``recipes`` holds, as YAML, those of its recipes that neither ``anchors.json`` nor an earlier row does.
    """
    told = {one.name for one in anchors.scored}
    rows = []
    for entry in trial.archive.entries:
        new = [model for model in entry.candidate.models if model in trial.recipes and model not in told]
        told.update(new)
        scores = entry.scores or [np.nan] * len(anchors.objectives)
        rows.append(
            {
                "candidate": entry.candidate.to_json(),
                "id": entry.candidate.id,
                "kind": entry.kind,
                "round": entry.round,
                "items": entry.items,
                "charged": entry.charged,
                "at": entry.at,
                "failed": failed.get(entry.candidate),
                "recipes": dump_recipes([trial.recipes[name] for name in new]) if new else None,
                **dict(zip(anchors.objectives, scores, strict=True)),
                "layers": entry.candidate.depth / trial.lab.layers,
            }
        )
    return pd.DataFrame(rows).astype({"failed": "string", "recipes": "string"})
