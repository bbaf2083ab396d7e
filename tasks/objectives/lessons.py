"""Items with their right answers as lessons for the actor, and what an answer to each is worth.

What an answer is worth is asked of the task's own metric, item by item, with answers that are made up: how its value
changes with a log-likelihood, and with whether greedy decoding gives the answer. Whatever a metric is called, its slope
is known then. Where answers are written freely, the likelihood of a reference that the metric takes stands for them
(``references``); what that is worth is seen from models that were scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from typing import Any

import torch

from models.files import reading
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, GPU_TOKENS, Answer, Pair, Requests
from models.paths.slopes import Choice, Lesson
from models.paths.vision import ImageItems, image_requests
from tasks.objectives.images.objective import ImageObjective
from tasks.objectives.kinds import is_generated
from tasks.objectives.objectives import Composed, Objectives
from tasks.objectives.parts import Failure, TaskPart
from tasks.objectives.references import references
from tasks.objectives.right_answers import CHOICES, choice_of

PROBES = (-1.0, -2.0, -3.0)
"""Log-likelihoods with which a metric is probed."""

LIKELY, UNLIKELY = -1e-3, -1e3
"""The same for one choice and the others: so far apart that lengths don't matter."""

BY_LENGTH = "acc_norm"
"""lm-eval's metric that divides log-likelihoods by the length of the choices."""

Worth = Callable[[str, int, Sequence[Pair]], tuple[float, float]]
"""Of an objective's part, by name and number: what its items are worth on average by the mean log-likelihood of a token
of these references, as offset and slope."""


@dataclass(frozen=True)
class Item:
    """One item with its right answer; see :class:`models.paths.slopes.Lesson`."""

    pairs: tuple[Pair, ...]
    offset: float = 0.0
    slope: float = 0.0
    gain: float = 0.0
    choice: Choice | None = None


class Lessons:
    """The items of each objective of a split, as lessons."""

    def __init__(self, objectives: Objectives, worth: Worth = lambda *_: (0.0, 1.0)) -> None:
        """Nothing is looked at yet; where no model is scored yet, references are worth something."""
        self.objectives = objectives
        self.worth = worth
        self._items = cache(self._found)

    def has_answers(self, objective: str) -> bool:
        """Whether every item of an objective has a right answer whose worth is known."""
        composed = self.objectives.composed[objective]
        return isinstance(composed.parts[0], ImageObjective) or None not in self._items(objective)

    def __str__(self) -> str:
        """Which objectives teach something."""
        silent = [name for name in self.objectives.names if not self.has_answers(name)]
        written = [name for name in self.objectives.names if name not in silent and self._is_written(name)]
        said = "learns from every objective"
        if silent:
            said = f"learns nothing from {', '.join(silent)}, which has no right answers of a known worth"
        return f"{said}; from {', '.join(written)}, how likely reference answers are" if written else said

    def lesson(self, pool: Pool, objective: str, items: Sequence[int]) -> Lesson:
        """Some items of an objective that has answers."""
        composed = self.objectives.composed[objective]
        if isinstance(composed.parts[0], ImageObjective):
            return _of_images(pool, composed.parts[0], items)
        chosen = [one for one in map(self._items(objective).__getitem__, items) if one is not None]
        tokens = CPU_TOKENS if pool.device.type == "cpu" else GPU_TOKENS
        requests = Requests.from_groups([one.pairs for one in chosen], pool.max_length, tokens)
        slope: list[float] = []
        gain: list[float] = []
        choices: list[Choice] = []
        for one in chosen:
            first = len(slope)
            slope += [one.slope] * len(one.pairs)
            gain += [one.gain] * len(one.pairs)
            if (choice := one.choice) is not None:
                rows = tuple(range(first, len(slope)))
                choices.append(replace(choice, rows=rows))
        return Lesson(
            requests,
            len(chosen),
            sum(one.offset for one in chosen),
            torch.tensor(slope, dtype=torch.float64),
            torch.tensor(gain, dtype=torch.float64),
            tuple(choices),
        )

    def _found(self, objective: str) -> list[Item | None]:
        composed: Composed = self.objectives.composed[objective]
        parts = [self._of_part(objective, number, part) for number, part in enumerate(composed.parts)]
        return composed.merged(parts)

    def _is_written(self, objective: str) -> bool:
        parts = self.objectives.composed[objective].parts
        return any(isinstance(part, TaskPart) and is_generated(part.built) for part in parts)

    def _of_part(self, objective: str, number: int, part: TaskPart) -> list[Item | None]:
        if is_generated(part.built):
            return self._of_written(objective, number, part)
        if part.built.task.OUTPUT_TYPE == CHOICES:
            return [_of_choices(part, number) for number in range(part.count)]
        return [_of_likelihood(part, number) for number in range(part.count)]

    def _of_written(self, objective: str, number: int, part: TaskPart) -> list[Item | None]:
        """Items by their references; where the metric takes none, another of the task in an item's place.

        So tasks keep their shares of an objective. There are none where it takes only half of them, or where the
        models that write better are not those that find the references likelier.
        """
        chat = self.objectives.workspace.profile.chat_template
        with reading(f"{part.built.label}: task {part.built.name}", "mend the rows that it reads", "has no answers"):
            found = references(part, self.objectives.tokenizer(), chat)
        taken = [pair for pair in found if pair is not None]
        if 2 * len(taken) <= part.count:
            return [None] * part.count
        offset, slope = self.worth(objective, number, taken)
        if not slope > 0:
            return [None] * part.count
        others = cycle(taken)
        return [Item((pair,), offset, slope / len(pair[1])) for pair in (one or next(others) for one in found)]


def _of_likelihood(part: TaskPart, number: int) -> Item | None:
    """An item whose value is linear in one log-likelihood and in whether greedy decoding gives the answer."""
    requests = part.tokens[number]
    rolling = part.built.requests[number][0].request_type == "loglikelihood_rolling"
    if len(requests) != 1:
        return None

    def worth(likelihood: float, given: float) -> float:
        return _worth(part, number, [[likelihood if rolling else Answer(likelihood, given)]])

    first, second, third = (worth(one, 0.0) for one in PROBES)
    slope, gain = first - second, worth(PROBES[0], 1.0) - first
    linear = abs(slope - (second - third)) <= 1e-6 * (abs(slope) + 1e-12)
    if not (linear and (slope or gain)):
        return None
    return Item(tuple(requests[0]), first - slope * PROBES[0], slope, gain)


def _of_choices(part: TaskPart, number: int) -> Item | None:
    """An item whose value depends on which of several answers is the likeliest."""
    instances, requests = part.built.requests[number], part.tokens[number]
    right = choice_of(part.built.task, instances[0].doc)
    if right is None or len(requests) < 2 or len(requests) != len(instances):
        return None

    def worth(best: int) -> float:
        return _worth(part, number, [[Answer(LIKELY if i == best else UNLIKELY, 0.0)] for i in range(len(requests))])

    low = worth((right + 1) % len(requests))
    gain = worth(right) - low
    if not gain:
        return None
    by_length = part.metric.key[0] == BY_LENGTH
    texts = part.built.task.doc_to_choice(instances[0].doc)
    factors = tuple(1 / len(text) if by_length else 1.0 for text in texts)
    pairs = tuple(pair for request in requests for pair in request)
    return Item(pairs, low, choice=Choice((), right, factors, gain))


def _worth(part: TaskPart, number: int, answers: list[list[Any]]) -> float:
    """Value of one item whose requests are answered so; NaN where it has none."""
    found = part.values([answers], number)
    return float("nan") if isinstance(found, Failure) else found[0]


def _of_images(pool: Pool, part: ImageObjective, items: Sequence[int]) -> Lesson:
    index = torch.tensor(items, dtype=torch.long)
    chosen = ImageItems(part.items.pixels[index], part.items.labels[index], part.items.head)
    by_metric = torch.full((len(items),), part.scale, dtype=torch.float64)
    nothing = torch.zeros_like(by_metric)
    slope, gain = (nothing, by_metric) if part.metric == "acc" else (by_metric, nothing)
    return Lesson(image_requests(pool, [chosen]), len(items), 0.0, slope, gain)
