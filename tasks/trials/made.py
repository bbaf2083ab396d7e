"""`hm3 choose --prefer`: a model that the actor makes for exactly one preference, and what the critic foresees of it.

No search and no score is needed: the actor gives the merge, the critic the layers that can go, where depth counts in
the preference or is bounded. With ``evaluate`` it is scored on `search` and `selection`, and kept like a find.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.agent.proposals import Proposer
from models.errors import Failed
from models.preferences import over_tasks
from tasks.front.choice import Wish
from tasks.front.found import RECIPE, Made, folder_of, keep
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.workspace import Workspace
from tasks.trials.pool import recipe_of
from tasks.trials.reopened import on_selection, reopen


def make_for(workspace: Workspace, front: Front, wish: Wish, evaluate: bool, progress: Progress) -> Made:
    """Make a model for a wish.

    Args:
        workspace: its agent and archive must be there.
        front: what the wish was parsed by.
        wish: preference and requirements; those on scores hold for what is foreseen, where they can.
        evaluate: score it, and keep it as a member beside the front.

    Raises:
        BadInput: a file is missing or of another version.
        Failed: what was made gives no finite scores.
    """
    run = reopen(workspace, front, wish, progress)
    engine, trial, judge, actor = run.engine, run.trial, run.judge, run.agent.actor
    judge.learn(trial.archive, np.random.default_rng([workspace.params.seed, 9]), steps=0)
    tasks = over_tasks(wish.weights, len(front.tasks))
    whole = trial.add(actor.recipe(run.space, tasks))
    proposer = Proposer(trial, judge, run.space, run.paths)
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
    text, level = recipe_of(workspace, engine, chosen)
    path, member = folder_of(workspace) / chosen.id / RECIPE, None
    if evaluate:
        found = on_selection(engine, trial, front, [chosen], wish, progress)
        if not found:
            raise Failed(f"{chosen.id}: the model that was made gives no finite scores")
        member = keep(workspace, replace(found[0], mergekit=level), text)
    else:
        write_text(path, text)
    file = path.relative_to(workspace.root) if path.is_relative_to(workspace.root) else path
    weights = dict(zip(actor.experts, actor.weights(tasks).tolist(), strict=True))
    return Made(chosen.id, chosen.depth, str(file), weights, foreseen, member)
