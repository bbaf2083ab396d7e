"""Slopes of scores in a merge's coefficients, looked up in the journal first and written to it at once, like scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import linregress

from models.candidate import Candidate
from models.front import Array
from models.paths.pool import unwatched
from models.paths.prefix import CPU_TOKENS, GPU_TOKENS, Pair, PathLikelihoods, Requests
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
        self.experts = tuple(engine.family.experts)
        self.sources = [Candidate.identity(model, engine.layers) for model in ("base", *self.experts)]
        self.lessons = Lessons(self.objectives, self._worth)
        self.taught = tuple(name for name in self.objectives.names if self.lessons.has_answers(name))
        """Objectives that have right answers."""

    def slopes(self, weights: Array, items: Sequence[Sequence[int]]) -> list[Taught | None]:
        """See ``Teacher``."""
        engine, pool = self.engine, self.engine.pool
        named = zip(self.objectives.names, items, strict=True)
        asked = {name: [*some] for name, some in named if some and name in self.taught}
        key = engine.key(
            SPLIT,
            slopes=[[float(one).hex() for one in row] for row in weights],
            content=[pool.digest(source) for source in self.sources],
            items=asked,
        )
        size = 2 + weights.size
        if not engine.journal.find(key):
            lessons = tuple(self.lessons.lesson(pool, name, some) for name, some in asked.items())
            job = Slopes(self.experts, weights, lessons, engine.workspace.profile.checkpointing)
            (found,) = pool.run(job, [Candidate.identity("base", 1)], unwatched)
            scores = {
                name: (one.soft, one.real, *one.slopes.ravel().tolist())
                for name, one in zip(asked, found, strict=True)
                if one is not None
            }
            engine.journal.append([Entry(key, 0, size, scores, None if scores else "no slope is finite")])
        known = engine.journal.find(key)[0].scores
        return [_read(known[name], weights.shape) if name in known else None for name in self.objectives.names]

    def _worth(self, objective: str, part: int, pairs: Sequence[Pair]) -> tuple[float, float]:
        """What items are worth by their references' likelihood: least squares over base and experts.

        These are scored already, for free, and the likelihood of references is looked up in the journal like scores.
        """
        order = self.objectives.composed[objective].order
        mine = [number for number, other in enumerate(order) if other == part]
        scored = self.engine.scored(self.sources, SPLIT)
        likely = self._likelihoods(objective, pairs)
        known = [(x, one) for x, one in zip(likely, scored, strict=True) if x is not None and not one.failed]
        scores = [float(np.mean([one.items[objective][item] for item in mine])) for _, one in known]
        return line([x for x, _ in known], scores)

    def _likelihoods(self, objective: str, pairs: Sequence[Pair]) -> list[float | None]:
        """Of each source the mean log-likelihood of a reference's token, None where it is not finite."""
        engine, pool = self.engine, self.engine.pool
        keys = [engine.key(SPLIT, references=pairs, content=pool.digest(source)) for source in self.sources]
        lacking = {key: one for key, one in zip(keys, self.sources, strict=True) if not engine.journal.find(key)}
        if lacking:
            tokens = CPU_TOKENS if pool.device.type == "cpu" else GPU_TOKENS
            job = PathLikelihoods(Requests.from_pairs(pairs, pool.max_length, tokens))
            lengths = np.array([len(answer) for _, answer in pairs])
            entries = []
            for key, (likelihoods, _) in zip(lacking, pool.run(job, list(lacking.values()), unwatched), strict=True):
                values = likelihoods.numpy() / lengths
                sound = bool(np.isfinite(values).all())
                scores = {objective: tuple(values.tolist())} if sound else {}
                entries.append(Entry(key, 0, len(pairs), scores, None if sound else "no likelihood is finite"))
            engine.journal.append(entries)
        known = [engine.journal.find(key)[0] for key in keys]
        return [None if one.failed else float(np.mean(one.scores[objective])) for one in known]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope of the least squares line through points; a slope of 0 where all x are the same."""
    if len(set(x)) < 2:
        return float(np.mean(y)) if len(y) else 0.0, 0.0
    found = linregress(x, y)
    return float(found.intercept), float(found.slope)


def _read(numbers: Sequence[float], shape: tuple[int, ...]) -> Taught:
    soft, real, *slopes = numbers
    return Taught(soft, real, np.array(slopes).reshape(shape))
