"""Stage `train`: surrogate, critic and actor from the offline data set (method.md, section 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.phases import new_agent, new_judge, train
from tasks.project.progress import Bar, Progress
from tasks.project.records import write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import open_pool, path_space
from tasks.trials.settings import train_settings
from tasks.trials.trial import open_trial, recipe_space

NETWORKS = ("surrogate", "critic", "actor")


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``agent/`` and ``train.csv``."""
    params, seed = workspace.params.train, workspace.params.seed
    engine, anchors = open_pool(workspace)
    paths = path_space(engine, anchors)
    offline = pd.read_parquet(workspace.run / "offline.parquet")
    lab = EngineLab(engine)
    trial = open_trial(workspace, lab, anchors, offline)
    with progress.bar("layer statistics", len(engine.source("base").names()), "tensors") as bar:
        statistics = lab.statistics(paths.models, bar.advance)
    settings = train_settings(params)
    agent = new_agent(trial, paths, statistics, settings, seed)
    judge = new_judge(trial, recipe_space(engine))
    with progress.bar("training", len(NETWORKS) * params.steps, "steps") as bar:
        rng = np.random.default_rng([seed, 3])
        rows = train(trial, agent, judge, settings.training, rng, _Steps(bar, params.steps))
    agent.surrogate = judge.surrogate
    agent.save(workspace.run / "agent")
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    progress.message(
        f"trained on {len(offline)} paths and {len(trial.recipes)} recipes; "
        f"{agent.parameters / 1e6:.1f} million parameters"
    )


class _Steps:
    """Moves one bar over the steps of all networks; one that stops early counts as done when the next begins."""

    def __init__(self, bar: Bar, steps: int) -> None:
        self.bar, self.steps = bar, steps

    def __call__(self, network: str, step: int, _: int) -> None:
        done = NETWORKS.index(network) * self.steps + step
        self.bar.advance(done - self.bar.completed, note=network)
