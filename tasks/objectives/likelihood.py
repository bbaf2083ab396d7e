"""Tasks that ask for log-likelihoods: of a continuation, of several choices, or of a whole text in windows.

The requests of all objectives are scored together, in one trie over the candidates' paths (``models/paths/prefix.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, GPU_TOKENS, Answer, Pair, PathLikelihoods, Requests
from tasks.objectives.built_task import BuiltTask
from tasks.objectives.parts import Answers, Failure, OnScored, Span, TaskKind, TaskPart
from tasks.objectives.tokens import encode, windows

ROLLING = "loglikelihood_rolling"

WHOLE = 2**40
"""A window that no text fills."""

Shape = tuple[tuple[int, ...], ...]
"""Of each item of a part, the number of pairs in each of its requests."""


def tokens_of(tokenizer: Any, built: BuiltTask) -> tuple[tuple[tuple[Pair, ...], ...], ...]:
    """Of each item and request its pairs of context and continuation; a rolling text is one pair.

    Raises:
        BadInput: an item has an empty prompt or answer.
    """
    asked = [instance for item in built.requests for instance in item]
    if any(instance.arguments[-1] == "" for instance in asked):
        pairs: Sequence[Sequence[Pair]] = [[((), ())] * (instance.arguments[-1] == "") for instance in asked]
    elif asked[0].request_type == ROLLING:
        pairs = windows(tokenizer, asked, WHOLE)
    else:
        pairs = [[pair] for pair in encode(tokenizer, asked)]
    found = iter(pairs)
    items = tuple(tuple(tuple(next(found)) for _ in item) for item in built.requests)
    for item, requests in zip(built.ids, items, strict=True):
        if any(not context or not continuation for request in requests for context, continuation in request):
            raise BadInput(f"{built.label}: item {item}: has an empty prompt or answer; mend its file")
    return items


class Likelihood(TaskKind):
    """Scores parts whose answers are log-likelihoods."""

    def __init__(self, parts: Sequence[TaskPart], tokenizer: Any) -> None:
        self.parts = parts
        self.tokenizer = tokenizer
        self._jobs: dict[tuple[tuple[Span, ...], int, int], tuple[PathLikelihoods, list[Shape]]] = {}

    def answers(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[Answers] | Failure]:
        """For each candidate and part what lm-eval's model would answer to the items in the part's span."""
        job, shapes = self._built(pool, tuple(spans))
        if not job.requests.count:
            on_scored(len(candidates))
            return [[[] for _ in self.parts] for _ in candidates]
        return [
            self._answers(map(Answer, likelihoods.tolist(), matching.tolist()), shapes, spans)
            for likelihoods, matching in pool.run(job, candidates, on_scored)
        ]

    def requests(self, pool: Pool, spans: Sequence[Span]) -> Requests:
        """The requests of those items in batches."""
        return self._built(pool, tuple(spans))[0].requests

    def _answers(
        self, pairs: Iterator[tuple[float, bool]], shapes: Sequence[Shape], spans: Sequence[Span]
    ) -> list[Answers] | Failure:
        found: list[Answers] = []
        for part, shape, (start, _) in zip(self.parts, shapes, spans, strict=True):
            rolling = part.built.requests[0][0].request_type == ROLLING
            mine: Answers = []
            for number, item in enumerate(shape, start=start):
                requests: list[list[Any]] = []
                for count in item:
                    scores = list(islice(pairs, count))
                    if any(likelihood != likelihood for likelihood, _ in scores):
                        return Failure(f"{part.name}: item {part.ids[number]}: its log-likelihood is not finite")
                    requests.append([sum(likelihood for likelihood, _ in scores)] if rolling else scores)
                mine.append(requests)
            found.append(mine)
        return found

    def _built(self, pool: Pool, spans: tuple[Span, ...]) -> tuple[PathLikelihoods, list[Shape]]:
        """The requests of some items in batches, as a job, and how they belong to the items."""
        tokens = CPU_TOKENS if pool.device.type == "cpu" else GPU_TOKENS
        key = spans, pool.max_length, tokens
        if key not in self._jobs:
            pairs: list[Pair] = []
            shapes: list[Shape] = []
            for part, (start, stop) in zip(self.parts, spans, strict=True):
                items = part.tokens[start:stop]
                if items and part.built.requests[0][0].request_type == ROLLING:
                    asked = [instance for item in part.built.requests[start:stop] for instance in item]
                    found = iter(windows(self.tokenizer, asked, pool.max_length))
                    items = [[next(found) for _ in item] for item in items]
                pairs += [pair for item in items for request in item for pair in request]
                shapes.append(tuple(tuple(map(len, item)) for item in items))
            requests = Requests.from_pairs(pairs, pool.max_length, tokens)
            self._jobs[key] = PathLikelihoods(requests, shares=True), shapes
        return self._jobs[key]
