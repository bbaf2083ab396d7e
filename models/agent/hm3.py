"""HM3 as one function of a trial: sample, data set, first fit of the surrogate and online search in a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from models.agent.actor import Actor, ActorSettings, new_actor, steps_of
from models.agent.judge import Judge
from models.agent.online import Search, SearchSettings
from models.agent.phases import (
    DatasetSettings,
    SampleSettings,
    TrainSettings,
    anchors,
    new_judge,
    offline_paths,
    sample,
    teach,
    train,
)
from models.front import Array
from models.merge.space import RecipeSpace
from models.preferences import preferences_for
from models.search.environment import PathRules, PathSpace
from models.search.trial import Trial


@dataclass(frozen=True)
class HM3Settings:
    """Hyperparameters of all phases. None leaves a phase out."""

    preferences: int = 16
    anchors: int = 3
    sample: SampleSettings | None = field(default_factory=SampleSettings)
    dataset: DatasetSettings | None = field(default_factory=DatasetSettings)
    actor: ActorSettings | None = field(default_factory=ActorSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    search: SearchSettings = field(default_factory=SearchSettings)


@dataclass(frozen=True)
class Searched:
    """What is known when a search ends."""

    rows: list[dict[str, float]]
    """Of the online search."""
    judge: Judge
    paths: PathSpace
    """Over its pool."""
    actor: Actor | None


def hm3(
    trial: Trial,
    space: RecipeSpace,
    rules: PathRules,
    rng: np.random.Generator,
    settings: HM3Settings,
    on_round: Callable[[dict[str, float]], None] | None = None,
    wanted: Array | None = None,
) -> Searched:
    """Spend the budget of a trial, in which base and experts are scored.

    Args:
        trial: pays.
        space: of recipes.
        rules: of paths.
        rng: every choice.
        settings: hyperparameters.
        on_round: called with each row of the online search.
        wanted: preferences (M, K) to search for, one alone for its utility; by default some that cover them all.
    """
    if wanted is None:
        wanted = preferences_for(trial.reward.scale.names, settings.preferences, rng)
    pool = tuple(space.experts)
    if settings.sample is not None:
        sample(trial, space, wanted, settings.sample, rng)
        pool += tuple(anchors(trial, wanted, settings.anchors))
    paths = PathSpace(pool, trial.lab.layers, rules)
    if settings.dataset is not None:
        spare = trial.lab.layers - trial.reward.shortest
        found = offline_paths(paths, settings.dataset, rng, spare, pool[len(space.experts) :])
        new = [path for path in found if path not in trial.archive]
        trial.spend_on(new, [found[path] for path in new], min(settings.dataset.items, trial.archive.full))
    judge = new_judge(trial, space)
    actor = new_actor(trial, space) if settings.actor else None
    online = Search(trial, judge, space, paths, wanted, settings.search, rng, actor, on_round)
    if settings.actor is not None:
        teach(online, settings.actor, steps_of(trial, settings.actor))
    train(trial, judge, settings.train, rng)
    rows = online.run()
    return Searched(rows, judge, paths, actor)
