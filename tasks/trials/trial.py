"""Trials over a profile's models: what the stages before have scored, and the recipes that may be tried."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from models.candidate import Candidate
from models.merge.space import RecipeSpace
from models.search.archive import Archive, Entry
from models.search.reward import Reward
from models.search.trial import Trial
from tasks.project.records import Anchors
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.trials.lab import EngineLab
from tasks.trials.pool import full_scale


def open_trial(
    workspace: Workspace, lab: EngineLab, anchors: Anchors, offline: pd.DataFrame, budget: int, trained: int = 0
) -> Trial:
    """A trial that has scored what the stages ``sample`` and ``dataset`` have, and may go on to a budget.

    Training the actor has been charged ``trained`` item evaluations.
    """
    archive = Archive(known(lab.engine, anchors, offline), lab.counts)
    spent = anchors.spent + int(offline["charged"].sum()) + trained
    reward = Reward(full_scale(workspace, anchors), lab.layers)
    trial = Trial(lab, reward, archive, budget, spent)
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


def recipe_space(engine: Engine) -> RecipeSpace:
    """Recipes over the experts of a family, by the methods that the parameters name."""
    params = engine.workspace.params
    return RecipeSpace(params.sample.methods, engine.family.base, engine.family.experts, params.seed)
