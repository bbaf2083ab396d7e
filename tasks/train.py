"""Stage `train`: surrogate, critic and actor from the offline data set (method.md, section 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.phases import new_agent, new_judge, train
from tasks.project.progress import Progress
from tasks.project.records import read_offline, write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import open_pool, path_space
from tasks.trials.settings import train_settings
from tasks.trials.trial import open_trial, recipe_space

NETWORKS = ("surrogate", "critic", "actor")


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``agent/`` and ``train.csv``."""
    params, seed = workspace.params.train, workspace.params.seed
    engine, anchors = open_pool(workspace, progress)
    paths = path_space(engine, anchors)
    offline = read_offline(workspace.run, anchors.objectives)
    lab = EngineLab(engine)
    trial = open_trial(workspace, lab, anchors, offline)
    with progress.bar("layer statistics", len(engine.source("base").names()), "tensors") as bar:
        statistics = lab.statistics(paths.models, bar.advance)
    settings = train_settings(params)
    agent = new_agent(trial, paths, statistics, settings, seed)
    judge = new_judge(trial, recipe_space(engine))
    with progress.bar("training", len(NETWORKS) * params.steps, "steps") as bar:

        def on_step(network: str, step: int, _: int) -> None:
            done = NETWORKS.index(network) * params.steps + step  # one that stops early is done when the next begins
            bar.advance(done - bar.completed, note=network)

        rows = train(trial, agent, judge, settings.training, np.random.default_rng([seed, 3]), on_step)
    agent.surrogate = judge.surrogate
    agent.save(workspace.run / "agent")
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    progress.message(
        f"trained on {len(offline)} paths and {len(trial.recipes)} recipes; "
        f"{agent.parameters / 1e6:.1f} million parameters"
    )
