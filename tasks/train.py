"""Stage `train`: actor, critic and surrogate from the offline data set (method.md, section 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.features import FEATURES, layer_statistics
from models.agent.networks import Agent, AgentConfig
from models.agent.offline import OfflineData, TrainSettings, train_offline
from models.architecture import architecture_of
from models.candidate import Candidate
from tasks.pool import full_scale, open_pool, path_space
from tasks.progress import Bar, Progress
from tasks.records import write_table
from tasks.workspace import Workspace


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``agent/`` and ``train.csv``."""
    params = workspace.params.train
    engine, anchors = open_pool(workspace)
    space = path_space(engine, anchors)
    data = offline_data(pd.read_parquet(workspace.run / "offline.parquet"), anchors.objectives)
    base = engine.source("base")
    with progress.bar("layer statistics", len(base.names()), "tensors") as bar:
        statistics = layer_statistics(
            base,
            {name: engine.source(name) for name in space.models},
            list(engine.family.experts),
            engine.layers,
            architecture_of(base.config).group,
            bar.advance,
        )
    config = AgentConfig(
        space.models,
        engine.layers,
        space.rules,
        full_scale(workspace, anchors),
        FEATURES,
        hidden=params.hidden,
        ensemble=params.ensemble,
        dropout=params.dropout,
    )
    agent = Agent(config, statistics, workspace.params.seed)
    settings = TrainSettings(
        params.steps, params.batch, params.learning_rate, params.expectile, params.relabels, params.patience
    )
    networks = params.ensemble + 2
    with progress.bar("training", networks * params.steps, "steps") as bar:
        rng = np.random.default_rng([workspace.params.seed, 3])
        rows = train_offline(agent, data, settings, rng, _Steps(bar, params.steps))
    agent.save(workspace.run / "agent")
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    progress.message(f"trained on {len(data.candidates)} paths; {agent.parameters / 1e6:.1f} million parameters")


def offline_data(table: pd.DataFrame, objectives: list[str]) -> OfflineData:
    """The paths of the offline data set that could be scored."""
    sound = table[table["failed"].isna()]
    return OfflineData(
        tuple(Candidate.from_json(text) for text in sound["candidate"]),
        sound[objectives].to_numpy(dtype=float),
        sound["items"].to_numpy(dtype=np.int64),
    )


class _Steps:
    """Moves one bar over the steps of all networks; one that stops early counts as done when the next begins."""

    def __init__(self, bar: Bar, steps: int) -> None:
        self.bar, self.steps, self.seen = bar, steps, list[str]()

    def __call__(self, network: str, step: int, _: int) -> None:
        if network not in self.seen:
            self.seen.append(network)
        self.bar.advance((len(self.seen) - 1) * self.steps + step - self.bar.completed, note=network)
