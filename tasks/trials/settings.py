"""The hyperparameters of each stage's algorithm, from the parameters that a user sets."""

from __future__ import annotations

from models.agent.actor import ActorSettings
from models.agent.online import SearchSettings
from models.agent.phases import DatasetSettings, SampleSettings, TrainSettings
from tasks.schema.params import DatasetParams, SampleParams, SearchParams, TrainParams


def sample_settings(params: SampleParams) -> SampleSettings:
    """Hyperparameters of the recipe search."""
    return SampleSettings(candidates=params.candidates)


def dataset_settings(params: DatasetParams) -> DatasetSettings:
    """Hyperparameters of the offline data set."""
    return DatasetSettings(**params.model_dump())


def train_settings(params: TrainParams) -> TrainSettings:
    """Hyperparameters of the surrogate's first fit."""
    return TrainSettings(steps=params.steps)


def actor_settings(params: TrainParams) -> ActorSettings:
    """Hyperparameters of the actor's training."""
    return ActorSettings(share=params.share or None, items=params.items)


def search_settings(params: SearchParams) -> SearchSettings:
    """Hyperparameters of the online search."""
    return SearchSettings(**params.model_dump(include={"batch", "rungs", "keep"}))
