"""Tasks that ask for text: greedy or sampled generation through lm-eval's own model class, on a path in memory.

That class sorts prompts by length, pads them on the left, and ends at the task's stop strings; the KV cache is indexed
by position on the path (``models/paths/path.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.candidate import Candidate
from models.errors import BadInput, one_line
from models.paths.path import path_model
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, GPU_TOKENS, Requests
from tasks.objectives.built_task import BuiltTask
from tasks.objectives.metrics import repeats
from tasks.objectives.parts import Answers, Failure, OnScored, Span, TaskKind, TaskPart

OUTPUT = "generate_until"
"""lm-eval's output type."""

SEED = 1234
"""What lm-eval's own command seeds torch with; set anew for each candidate, where answers are sampled."""


class NotFinite(ArithmeticError):
    """A model's logits hold NaN."""


class Watch:
    """Looks at each step of a generation: refuses NaN, and tells how far it is."""

    def __init__(self, total: int, on_scored: OnScored) -> None:
        self.total = total
        self.on_scored = on_scored
        self.done = 0
        self.told = 0.0
        self.rows = self.step = self.steps = 0

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What ``transformers`` calls with the logits ``(B, V)`` of each step."""
        if scores.isnan().any():
            raise NotFinite
        self.step += 1
        self._tell(self.rows * min(1.0, self.step / self.steps))
        return scores

    def begin(self, rows: int, steps: int) -> None:
        """A batch of so many rows begins, which takes so many steps at most."""
        self.rows, self.step, self.steps = rows, 0, steps

    def end(self) -> None:
        """The batch is done."""
        self.done += self.rows
        self.rows = 0
        self._tell(0)

    def _tell(self, rows: float) -> None:
        share = (self.done + rows) / self.total
        self.on_scored(share - self.told)
        self.told = share


def tokens_of(tokenizer: Any, built: BuiltTask) -> list[list[list[int]]]:
    """Token ids of each item's prompts."""
    return [[tokenizer.encode(instance.arguments[0]) for instance in item] for item in built.requests]


@dataclass(frozen=True)
class Writing:
    """Answers to prompts, as a :class:`models.paths.pool.Job`."""

    asked: tuple[Any, ...]
    """lm-eval's instances, one as often as it is answered."""
    tokenizer: Any
    batch: int
    name: str
    """Of the first objective, for what failures say."""
    label: str
    """Likewise, for errors."""

    def run(
        self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]
    ) -> list[list[str] | Failure]:
        """The answers of each candidate; see :meth:`Generation.answers`."""
        return [self._answers(pool, candidate, on_done) for candidate in candidates]

    def _answers(self, pool: Pool, candidate: Candidate, on_done: Callable[[float], None]) -> list[str] | Failure:
        from lm_eval.models.huggingface import HFLM
        from transformers import LogitsProcessorList

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        model = HFLM(path_model(pool, candidate), tokenizer=self.tokenizer, batch_size=self.batch)
        watch, generate = Watch(len(self.asked), on_done), model._model_generate

        def watched(context: torch.Tensor, max_length: int, **options: Any) -> torch.Tensor:
            watch.begin(len(context), max_length - context.shape[1])
            found: torch.Tensor = generate(
                context=context, max_length=max_length, logits_processor=LogitsProcessorList([watch]), **options
            )
            watch.end()
            return found

        model._model_generate = watched
        devices = [pool.device] if pool.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(SEED)
            try:
                answers: list[str] = model.generate_until(list(self.asked), disable_tqdm=True)
            except NotFinite:
                on_done(1 - watch.told)
                return Failure(f"{self.name}: its logits are not finite")
            except AssertionError as error:
                raise BadInput(f"{self.label}: {one_line(error)}") from None
        return answers


class Generation(TaskKind):
    """Scores parts whose answers are texts."""

    def __init__(self, parts: Sequence[TaskPart], tokenizer: Any, batch: int) -> None:
        """Nothing is computed yet; ``batch``: prompts that are answered at once."""
        self.parts = parts
        self.tokenizer = tokenizer
        self.batch = batch
        self._jobs: dict[tuple[Span, ...], Writing] = {}

    def answers(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[Answers] | Failure]:
        """For each candidate and part what lm-eval's model answers to the items in the part's span.

        Raises:
            BadInput: an answer may get longer than the models can take.
        """
        chosen = [part.built.requests[start:stop] for part, (start, stop) in zip(self.parts, spans, strict=True)]
        asked = [instance for items in chosen for item in items for instance in item for _ in range(times(instance))]
        if not asked:
            on_scored(len(candidates))
            return [[[] for _ in self.parts] for _ in candidates]
        first = self.parts[0]
        made = Writing(tuple(asked), self.tokenizer, self.batch, first.name, first.built.label)
        job = self._jobs.setdefault(tuple(spans), made)
        return [
            one if isinstance(one, Failure) else _shaped(chosen, iter(one))
            for one in pool.run(job, candidates, on_scored)
        ]

    def requests(self, pool: Pool, spans: Sequence[Span]) -> Requests:
        """The prompts of those items in batches, whose last token counts as their answer."""
        tokens = CPU_TOKENS if pool.device.type == "cpu" else GPU_TOKENS
        items = [item for part, span in zip(self.parts, spans, strict=True) for item in part.tokens[slice(*span)]]
        prompts = [prompt for item in items for prompt in item]
        return Requests.from_pairs([(one[:-1], one[-1:]) for one in prompts], pool.max_length, tokens)


def _shaped(chosen: Sequence[Any], answers: Iterator[str]) -> list[Answers]:
    """Answers by part, item and request, each as often as it was asked for."""

    def answer(instance: Any) -> list[str]:
        return [next(answers) for _ in range(times(instance))] * (repeats(instance) // times(instance))

    return [[[answer(instance) for instance in item] for item in items] for items in chosen]


def times(instance: Any) -> int:
    """How often a prompt has to be answered: a greedy answer is the same each time."""
    sampled = instance.arguments[1].get("do_sample") or instance.arguments[1].get("temperature", 0.0) > 0
    return repeats(instance) if sampled else 1
