"""The engine as the place where a trial builds and scores its models, on the search split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from models.candidate import Candidate
from models.front import Array
from models.merge.recipe import Recipe
from models.paths.influence import Influence
from models.paths.pool import unwatched
from models.paths.slopes import Taught
from models.search.features import layer_statistics
from models.sources.architecture import architecture_of
from tasks.project.progress import Bar
from tasks.scoring.engine import Engine, Scored
from tasks.scoring.slopes import Teaching

SPLIT = "search"


class EngineLab:
    """What an engine has of the models and scores of a family. Implements :class:`models.search.trial.Lab`."""

    def __init__(self, engine: Engine, bar: Bar | None = None) -> None:
        """Nothing is scored yet; ``bar`` is advanced by one for each candidate that is."""
        self.engine = engine
        self.bar = bar
        objectives = engine.objectives(SPLIT)
        self.names = objectives.names
        self.counts = tuple(objectives.count(name) for name in objectives.names)
        """Items of each task objective (K_tasks)."""
        self.failures: dict[Candidate, str] = {}
        """Why candidates failed."""

    @property
    def layers(self) -> int:
        """See ``Lab``."""
        return self.engine.layers

    def add(self, recipe: Recipe) -> Candidate:
        """See ``Lab``."""
        return self.engine.add(recipe)

    def mean_scores(self, candidates: Sequence[Candidate], start: int, stop: int) -> list[tuple[float, ...] | None]:
        """See ``Lab``; a task without items in the range has NaN."""
        return [self._mean(one) for one in self.engine.scored(candidates, SPLIT, start, stop, self.bar)]

    def influence(self, candidate: Candidate) -> Array | None:
        """See ``Lab``."""
        pool = self.engine.pool
        asked = Influence(tuple(self.engine.objectives(SPLIT).requests(pool)))
        found: Array = pool.run(asked, [candidate], unwatched)[0]
        return found if np.isfinite(found).all() else None

    def statistics(self, models: Sequence[str], on_tensor: Callable[[], None] | None = None) -> Array:
        """See ``Lab``; ``on_tensor`` is called for every tensor of the base that is done."""
        engine, base = self.engine, self.engine.source("base")
        pool = {name: engine.source(name) for name in models}
        group = architecture_of(base.config).group
        return layer_statistics(base, pool, list(engine.family.experts), engine.layers, group, on_tensor)

    @property
    def answered(self) -> tuple[int, ...]:
        """See ``Lab``."""
        taught = self.teaching.taught
        return tuple(n if one in taught else 0 for n, one in zip(self.counts, self.names, strict=True))

    def slopes(self, weights: Array, items: Sequence[Sequence[int]]) -> list[Taught | None]:
        """See ``Lab``."""
        return self.teaching.slopes(weights, items)

    @cached_property
    def teaching(self) -> Teaching:
        """What answers the actor."""
        return Teaching(self.engine)

    def _mean(self, one: Scored) -> tuple[float, ...] | None:
        if one.failed:
            self.failures[one.candidate] = one.failed
            return None
        return tuple(float(np.mean(values)) if values else np.nan for values in one.items.values())
