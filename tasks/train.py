"""Stage `train`: actor and critic (method.md, section 4).

The actor, a merge for every preference, is trained by the gradient of the merged model; the critic, a surrogate of the
scores, from all that was scored before the search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from models.agent.actor import new_actor, train_actor
from models.agent.agent import Agent, AgentConfig
from models.agent.phases import new_judge, train
from tasks.project.progress import Progress
from tasks.project.records import read_offline, write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import open_pool, path_space
from tasks.trials.settings import actor_settings, train_settings
from tasks.trials.trial import open_trial, recipe_space


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``agent/`` and ``train.csv``."""
    params, seed = workspace.params.train, workspace.params.seed
    engine, anchors = open_pool(workspace, progress)
    paths = path_space(engine, anchors)
    offline = read_offline(workspace.run, anchors.objectives)
    lab = EngineLab(engine)
    trial = open_trial(workspace, lab, anchors, offline, workspace.params.search.budget)
    space = recipe_space(engine)
    actor, rows = new_actor(trial, space), list[dict[str, Any]]()
    settings, began = actor_settings(params), trial.spent
    steps = settings.steps(trial.budget, trial.left, lab.answered, trial.reward.depth_counts)
    with progress.bar("training the actor", steps, "steps") as bar:
        rows += train_actor(actor, trial, settings, np.random.default_rng([seed, 8]), lambda _: bar.advance(1))
    spent = trial.spent - began
    judge = new_judge(trial, space)
    with progress.bar("training the critic", params.steps, "steps") as bar:
        rng = np.random.default_rng([seed, 3])
        rows += train(trial, judge, train_settings(params), rng, lambda _: bar.advance(1))
    config = AgentConfig(paths.models, paths.layers, paths.rules, trial.reward.scale, actor.experts, spent)
    Agent(config, actor, judge.surrogate).save(workspace.run / "agent")
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    progress.message(f"actor: {steps} steps, {spent:,} item evaluations; it {lab.teaching.lessons}")
    progress.message(
        f"critic: from {len(offline)} paths and {len(trial.recipes)} recipes; "
        f"{rows[-1]['held_out']:.0%} of the variance on held-out ones is left unexplained"
    )
