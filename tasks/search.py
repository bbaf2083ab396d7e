"""Stage `search`: the online search over recipes and paths, from what the stages before have learned (method.md)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.agent import load_agent
from models.agent.online import Search
from models.agent.phases import new_judge
from models.errors import BadInput
from models.preferences import preferences_for
from tasks.project.progress import Progress
from tasks.project.records import read_archive, write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import add_recipes, open_pool, path_space
from tasks.trials.settings import search_settings
from tasks.trials.trial import archive_table, failures_of, go_on, recipe_space


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``archive.parquet``, every candidate that was ever scored, and ``search.csv``, a row a round."""
    params = workspace.params.search
    engine, anchors = open_pool(workspace, progress)
    agent = load_agent(workspace.run / "agent")
    trained = read_archive(workspace.run, anchors.objectives, "train")
    add_recipes(engine, trained)
    lab = EngineLab(engine)
    trial = go_on(workspace, lab, anchors, trained, params.budget, agent.config.spent)
    if trial.left <= 0:
        raise BadInput(
            f"params.yaml: search.budget: {params.budget}, of which sample, dataset and train have spent"
            f" {trial.spent}; raise it, or lower train.share, sample.candidates, dataset.edits or dataset.random"
        )
    rng = np.random.default_rng([workspace.params.seed, 5])
    wanted = preferences_for(agent.config.scale.names, params.preferences, rng)
    paths, space = path_space(engine, anchors), recipe_space(engine)
    judge = new_judge(trial, space)
    judge.surrogate = agent.surrogate
    with progress.bar("searching", trial.left, "item evaluations") as bar:
        trial.on_spent = bar.advance

        def on_round(row: dict[str, float]) -> None:
            bar.advance(0, f"HV {row['hv']:.3f}")

        search = Search(trial, judge, space, paths, wanted, search_settings(params), rng, agent.actor, on_round)
        rows = search.run()
    failed = failures_of(trained) | lab.failures
    write_table(workspace.run / "archive.parquet", archive_table(trial, anchors, failed))
    write_table(workspace.run / "search.csv", pd.DataFrame(rows))
    progress.message(f"{len(trial.archive)} candidates scored, {trial.spent} item evaluations in all")
