"""Stage `train`: the surrogate, from all that was scored before the search (method.md, section 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.agent import Agent, AgentConfig
from models.agent.phases import new_judge, train
from tasks.project.progress import Progress
from tasks.project.records import read_offline, write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import open_pool, path_space
from tasks.trials.settings import train_settings
from tasks.trials.trial import open_trial, recipe_space


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``agent/`` and ``train.csv``."""
    params, seed = workspace.params.train, workspace.params.seed
    engine, anchors = open_pool(workspace, progress)
    paths = path_space(engine, anchors)
    offline = read_offline(workspace.run, anchors.objectives)
    trial = open_trial(workspace, EngineLab(engine), anchors, offline)
    judge = new_judge(trial, recipe_space(engine))
    with progress.bar("training", params.steps, "steps") as bar:
        rng = np.random.default_rng([seed, 3])
        rows = train(trial, judge, train_settings(params), rng, lambda _: bar.advance(1))
    config = AgentConfig(paths.models, paths.layers, paths.rules, trial.reward.scale)
    Agent(config, judge.surrogate).save(workspace.run / "agent")
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    progress.message(
        f"learned from {len(offline)} paths and {len(trial.recipes)} recipes; "
        f"{rows[-1]['held_out']:.0%} of the variance on held-out ones is left unexplained"
    )
