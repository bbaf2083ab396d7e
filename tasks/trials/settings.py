"""The hyperparameters of each stage's algorithm, from the parameters that a user sets."""

from __future__ import annotations

from models.agent.offline import TrainSettings
from models.agent.online import SearchSettings
from models.agent.phases import AgentSettings, DatasetSettings, SampleSettings
from models.agent.player import PlayerSettings
from models.agent.ppo import PPOSettings
from tasks.schema.params import DatasetParams, SampleParams, SearchParams, TrainParams


def sample_settings(params: SampleParams) -> SampleSettings:
    """Hyperparameters of the recipe search."""
    return SampleSettings(candidates=params.candidates)


def dataset_settings(params: DatasetParams) -> DatasetSettings:
    """Hyperparameters of the offline data set."""
    return DatasetSettings(edits=params.edits, random=params.random, items=params.items, deletions=params.deletions)


def train_settings(params: TrainParams) -> AgentSettings:
    """Hyperparameters of the networks and of their offline training."""
    training = TrainSettings(
        steps=params.steps,
        batch=params.batch,
        learning_rate=params.learning_rate,
        expectile=params.expectile,
        relabels=params.relabels,
        patience=params.patience,
    )
    return AgentSettings(hidden=params.hidden, dropout=params.dropout, training=training)


def search_settings(params: SearchParams) -> SearchSettings:
    """Hyperparameters of the online search."""
    ppo = PPOSettings(rollouts=params.rollouts, epochs=params.ppo_epochs)
    return SearchSettings(
        batch=params.batch,
        rungs=params.rungs,
        keep=params.keep,
        stops=params.stops,
        player=PlayerSettings(beam=params.beam, epsilon=params.epsilon, ppo=ppo),
    )
