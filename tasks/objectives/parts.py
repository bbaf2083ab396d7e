"""What objectives consist of: parts whose items are scored, and the kinds of scoring that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from models.candidate import Candidate
from models.paths.pool import Pool
from models.paths.prefix import Requests
from tasks.objectives.built_task import BuiltTask
from tasks.objectives.metrics import Metric

Span = tuple[int, int]
"""Items from the first on, up to the last but not with it."""

Answers = list[list[list[Any]]]
"""Of each item, for each of its requests what the model answered, as often as it was asked."""

OnScored = Callable[[float], None]
"""Is told how many more candidates are done, in parts of them."""


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no scores."""

    reason: str


class Kind(Protocol):
    """Scores the items of some parts, which may belong to several objectives."""

    parts: Sequence[Any]

    def part_values(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[list[float]] | Failure]:
        """For each candidate and part the values of the items in the part's span, higher is better."""

    def requests(self, pool: Pool, spans: Sequence[Span]) -> Requests:
        """What the models read of those items."""


@dataclass(frozen=True)
class TaskPart:
    """A part that is an lm-eval task."""

    name: str
    built: BuiltTask
    metric: Metric
    count: int
    tokens: Any
    """Token ids of what the model reads and predicts."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the items, in order."""
        return self.built.ids[: self.count]

    @property
    def definition(self) -> Any:
        """All that decides the scores beside the candidate."""
        asked = [[instance.arguments for instance in item] for item in self.built.requests]
        items = list(zip(self.ids, self.built.docs, asked, strict=False))
        return [self.name, self.built.text, self.metric.key, self.metric.factor, items, self.tokens]

    def values(self, answers: Answers, start: int) -> list[float] | Failure:
        """Value of each item from ``start`` on, higher is better."""
        found = self.built.metrics(answers, start)
        values = self.metric.values([one[self.metric.key] for one in found])
        for item, value in zip(self.ids[start:], values, strict=False):
            if not math.isfinite(value):
                return Failure(f"{self.name}: item {item}: its {self.metric.key[0]} is not finite")
        return values


@runtime_checkable
class TaskKind(Kind, Protocol):
    """Scores lm-eval tasks: models answer, and the tasks' metrics say what the answers are worth."""

    parts: Sequence[TaskPart]

    def answers(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[Answers] | Failure]:
        """For each candidate and part what lm-eval's model would answer to the items in the part's span."""

    def part_values(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[list[float]] | Failure]:
        """See ``Kind``."""
        return [self.worth(one, spans) for one in self.answers(pool, candidates, spans, on_scored)]

    def worth(self, answered: list[Answers] | Failure, spans: Sequence[Span]) -> list[list[float]] | Failure:
        """Values of one candidate's answers to each part, or why there are none."""
        if isinstance(answered, Failure):
            return answered
        values: list[list[float]] = []
        for part, (start, _), mine in zip(self.parts, spans, answered, strict=True):
            found = part.values(mine, start)
            if isinstance(found, Failure):
                return found
            values.append(found)
        return values
