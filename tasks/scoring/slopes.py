"""Slopes of scores in a merge's coefficients, looked up in the journal first and written to it at once, like scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.candidate import Candidate
from models.front import Array
from models.paths.pool import unwatched
from models.paths.slopes import Slopes, Taught
from tasks.objectives.lessons import Lessons
from tasks.scoring.engine import Engine
from tasks.scoring.journal import Entry

SPLIT = "search"


class Teaching:
    """An engine's answers to the actor. Implements :class:`models.agent.actor.Teacher`."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is looked at yet."""
        self.engine = engine
        self.objectives = engine.objectives(SPLIT)
        self.lessons = Lessons(self.objectives)
        self.experts = tuple(engine.family.experts)
        self.taught = tuple(name for name in self.objectives.names if self.lessons.has_answers(name))
        """Objectives that have right answers."""

    def slopes(self, weights: Array, items: Sequence[Sequence[int]]) -> list[Taught | None]:
        """See ``Teacher``."""
        engine, pool = self.engine, self.engine.pool
        named = zip(self.objectives.names, items, strict=True)
        asked = {name: [*some] for name, some in named if some and name in self.taught}
        models = ("base", *self.experts)
        key = engine.key(
            SPLIT,
            slopes=[[float(one).hex() for one in row] for row in weights],
            content=[pool.digest(Candidate.identity(model, engine.layers)) for model in models],
            items=asked,
        )
        size = 2 + weights.size
        if not engine.journal.find(key):
            lessons = tuple(self.lessons.lesson(pool, name, some) for name, some in asked.items())
            (found,) = pool.run(Slopes(self.experts, weights, lessons), [Candidate.identity("base", 1)], unwatched)
            scores = {
                name: (one.soft, one.real, *one.slopes.ravel().tolist())
                for name, one in zip(asked, found, strict=True)
                if one is not None
            }
            engine.journal.append([Entry(key, 0, size, scores, None if scores else "no slope is finite")])
        known = engine.journal.find(key)[0].scores
        return [_read(known[name], weights.shape) if name in known else None for name in self.objectives.names]


def _read(numbers: Sequence[float], shape: tuple[int, ...]) -> Taught:
    soft, real, *slopes = numbers
    return Taught(soft, real, np.array(slopes).reshape(shape))
