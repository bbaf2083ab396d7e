"""A pipeline's run as it ended, opened again for one wish: what `hm3 choose` begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from models.agent.agent import Agent, load_agent
from models.agent.judge import Judge
from models.agent.phases import new_judge
from models.candidate import Candidate
from models.merge.space import RecipeSpace
from models.search.archive import Archive
from models.search.bounds import BoundedReward
from models.search.environment import PathSpace
from models.search.trial import Trial
from tasks.front.choice import SPLIT, Wish
from tasks.front.front import Front, Member
from tasks.project.progress import Progress
from tasks.project.records import read_archive
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.trials.lab import SPLIT as SEARCHED
from tasks.trials.lab import EngineLab
from tasks.trials.pool import add_recipes, open_pool, path_space
from tasks.trials.trial import entries_of, recipe_space


@dataclass(frozen=True)
class Reopened:
    """A run as it ended."""

    engine: Engine
    agent: Agent
    trial: Trial
    """With the wish's requirements in its reward, and nothing left to spend."""
    judge: Judge
    """With the agent's surrogate, which has not seen the archive yet."""
    space: RecipeSpace
    paths: PathSpace


def reopen(workspace: Workspace, front: Front, wish: Wish, progress: Progress) -> Reopened:
    """Open a run again.

    Raises:
        BadInput: agent, archive or a model is missing or of another version.
    """
    archive = read_archive(workspace.run, front.tasks)
    agent = load_agent(workspace.run / "agent")
    engine, anchors = open_pool(workspace, progress)
    add_recipes(engine, archive)
    trial, space = reopened(front, EngineLab(engine), archive, wish), recipe_space(engine)
    judge = new_judge(trial, space)
    judge.surrogate = agent.surrogate
    return Reopened(engine, agent, trial, judge, space, path_space(engine, anchors))


def reopened(front: Front, lab: EngineLab, archive: pd.DataFrame, wish: Wish) -> Trial:
    """The trial of the pipeline as it ended, with the requirements in its reward and nothing left to spend."""
    above, below = (tuple(wish.bounds(front.scale, upwards=upwards)) for upwards in (True, False))
    reward = BoundedReward(
        front.scale, lab.layers, costs_at_most=above, costs_at_least=below, depth_at_most=wish.max_layers
    )
    spent = int(archive["charged"].sum())
    trial = Trial(lab, reward, Archive(entries_of(archive, front.tasks), lab.counts), spent, spent)
    trial.recipes.update(lab.engine.recipes)
    return trial


def on_selection(
    engine: Engine, trial: Trial, front: Front, candidates: Sequence[Candidate], wish: Wish, progress: Progress
) -> list[Member]:
    """The candidates as they would be members, scored on `search` and `selection`; those that fail are left out.

    What the trial has not scored is the actor's.
    """
    with progress.bar(f"choosing on {SPLIT}", len(candidates), "candidates") as bar:
        scored = engine.scored(candidates, SPLIT, bar=bar)
    serves = {name: round(float(one), 4) for name, one in zip(front.objectives, wish.weights, strict=True)}
    result = []
    for one in (some for some in scored if some.failed is None):
        depth = {"layers": one.candidate.depth / engine.layers} if "layers" in front.objectives else {}
        searched = engine.scored([one.candidate], SEARCHED)[0].means()
        result.append(
            Member(
                id=one.candidate.id,
                name=one.candidate.id,
                layers=one.candidate.depth,
                path=one.candidate.path,
                host=one.candidate.host,
                recipe="",
                serves=serves,
                mergekit="",
                scores={SEARCHED: searched | depth, SPLIT: one.means() | depth},
                kind=trial.archive[one.candidate].kind if one.candidate in trial.archive else "actor",
            )
        )
    return result
