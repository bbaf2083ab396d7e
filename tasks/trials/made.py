"""`hm3 choose --prefer`: a model that the actor makes for exactly one preference, and what the critic foresees of it.

No search and no score is needed: the actor gives the merge, the critic the layers that can go, where depth counts in
the preference or is bounded. With ``evaluate`` it is scored on `search` and `selection`, and kept like a find.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.agent.agent import load_agent
from models.agent.phases import new_judge
from models.agent.proposals import Proposer
from models.candidate import Candidate
from models.front import Array
from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes
from tasks.front.choice import Wish
from tasks.front.found import RECIPE, Made, folder_of, keep
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.records import read_archive, write_text
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.trials.lab import EngineLab
from tasks.trials.pool import add_recipes, open_pool, path_space, rebuilt_by_mergekit
from tasks.trials.repair import recipe_block
from tasks.trials.targeted import on_selection, reopened
from tasks.trials.trial import recipe_space


def make_for(workspace: Workspace, front: Front, wish: Wish, evaluate: bool, progress: Progress) -> Made:
    """Make a model for a wish.

    Args:
        workspace: its agent and archive must be there.
        front: what the wish was parsed by.
        wish: preference and requirements; those on scores hold for what is foreseen, where they can.
        evaluate: score it, and keep it as a member beside the front.

    Raises:
        BadInput: a file is missing or of another version.
    """
    archive = read_archive(workspace.run, front.tasks)
    agent = load_agent(workspace.run / "agent")
    engine, anchors = open_pool(workspace, progress)
    add_recipes(engine, archive)
    trial = reopened(front, EngineLab(engine), archive, wish)
    space, paths = recipe_space(engine), path_space(engine, anchors)
    judge = new_judge(trial, space)
    judge.surrogate = agent.surrogate
    judge.learn(trial.archive, np.random.default_rng([workspace.params.seed, 9]), steps=0)
    tasks = of_tasks(wish.weights, len(front.tasks))
    whole = trial.add(agent.actor.recipe(space, tasks))
    proposer = Proposer(trial, judge, space, paths, stops=1)
    options = [whole]
    if wish.max_layers is not None or (trial.reward.depth_counts and wish.weights[-1] > 0):
        shortest = min(trial.reward.shortest, wish.max_layers or engine.layers)
        options += proposer.deletions(wish.weights[None], [whole], shortest)
    depths = np.array([one.depth for one in options])
    chosen = options[int(trial.reward.utility(judge.costs(options), depths, wish.weights).argmax())]
    mean, deviation = (row[0] for row in judge.expect([chosen]))
    foreseen = {name: (float(m), float(s)) for name, m, s in zip(front.tasks, mean, deviation, strict=True)}
    if engine.repairs is not None:
        engine.repairs = engine.repairs.of_members()  # calibrated where it is scored, or merged
    weights = dict(zip(agent.actor.experts, agent.actor.weights(tasks).tolist(), strict=True))
    file, member = write(workspace, engine, chosen), None
    if evaluate:
        trial.archive.record(chosen, "actor", 0, trial.archive.full, None)
        (found,) = on_selection(engine, trial, front, [chosen], wish, progress)
        member = keep(workspace, replace(found, mergekit=file[1]), file[2])
    return Made(chosen.id, chosen.depth, file[0], weights, foreseen, member)


def of_tasks(weights: Array, count: int) -> Array:
    """The part of a preference (K,) that is over the tasks (K_tasks,), as one of its own; alike where it has none."""
    tasks = weights[:count]
    return tasks / tasks.sum() if tasks.any() else np.full(count, 1 / count)


def write(workspace: Workspace, engine: Engine, candidate: Candidate) -> tuple[str, str, str]:
    """Write a recipe into the state folder; its file, how well mergekit rebuilds it, and its text."""
    block = recipe_block(workspace, engine, candidate)
    recipes = path_recipe(candidate, engine.recipes, engine.locate, engine.layers, block)
    path, text = folder_of(workspace) / candidate.id / RECIPE, dump_recipes(recipes)
    write_text(path, text)
    shown = path.relative_to(workspace.root) if path.is_relative_to(workspace.root) else path
    return str(shown), rebuilt_by_mergekit(engine, candidate, recipes), text
