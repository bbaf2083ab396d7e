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
    return DatasetSettings(**params.model_dump())


def train_settings(params: TrainParams) -> AgentSettings:
    """Hyperparameters of the networks and of their offline training."""
    training = TrainSettings(**params.model_dump(exclude={"hidden", "dropout"}))
    return AgentSettings(hidden=params.hidden, dropout=params.dropout, training=training)


def search_settings(params: SearchParams) -> SearchSettings:
    """Hyperparameters of the online search."""
    ppo = PPOSettings(rollouts=params.rollouts, epochs=params.ppo_epochs)
    player = PlayerSettings(beam=params.beam, epsilon=params.epsilon, ppo=ppo)
    return SearchSettings(**params.model_dump(include={"batch", "rungs", "keep", "stops"}), player=player)
