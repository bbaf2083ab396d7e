"""Exact scoring of many paths at once: shared prefixes of layers are computed once.

The candidates form a trie: its root is the host's embedding, each edge is a layer. It is walked depth-first for one
batch of requests at a time, so that the hidden states that are held are those of the branches above the current layer.
The same batches pass through the same layers whichever candidates are scored together: the scores equal those of
scoring each candidate alone, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.candidate import Candidate, SourceLayer
from models.pool import Ends, Pool

CPU_TOKENS, GPU_TOKENS = 1024, 16384
"""Tokens of a batch of requests, padding included: what a core's cache holds, and what fills a GPU."""

LOGITS = 2**24
"""Numbers that the logits of one step may have."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""


@dataclass(frozen=True)
class Batch:
    """Requests of similar length, padded on the right: under causal attention no token sees the padding."""

    rows: Tensor
    """Which request each row is, ``(B,)``."""
    ids: Tensor
    """Token ids that are read, ``(B, T)``."""
    row: Tensor
    """Row of each scored position, ``(P,)``."""
    column: Tensor
    """Column of each scored position, ``(P,)``: its logits predict the target."""
    target: Tensor
    """Token id that each scored position should predict, ``(P,)``."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(one.to(device) for one in (self.rows, self.ids, self.row, self.column, self.target)))


@dataclass(frozen=True)
class Requests:
    """Teacher-forced requests in batches that depend on nothing but the requests and the token budget."""

    count: int
    batches: tuple[Batch, ...]

    @classmethod
    def from_pairs(cls, pairs: Sequence[Pair], max_length: int, tokens: int = CPU_TOKENS) -> Requests:
        """Batches of requests, longest first, so that memory runs out at once or not at all.

        Args:
            pairs: contexts and continuations, neither empty. What is too long loses tokens on the left.
            max_length: longest sequence that the model takes.
            tokens: budget of a batch, at least one request.
        """
        order = sorted(range(len(pairs)), key=lambda index: (-sum(map(len, pairs[index])), index))
        read = {index: [*pairs[index][0], *pairs[index][1]][-max_length - 1 :][:-1] for index in order}
        batches = []
        while order:
            size = max(1, tokens // len(read[order[0]]))
            chosen, order = order[:size], order[size:]
            batches.append(_batch(chosen, [read[index] for index in chosen], [pairs[index][1] for index in chosen]))
        return cls(len(pairs), tuple(batches))


def _batch(rows: Sequence[int], read: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Batch:
    ids = torch.zeros(len(rows), len(read[0]), dtype=torch.long)
    row: list[int] = []
    column: list[int] = []
    target: list[int] = []
    for number, (tokens, continuation) in enumerate(zip(read, continuations, strict=True)):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        kept = continuation[-len(tokens) :]
        row += [number] * len(kept)
        column += range(len(tokens) - len(kept), len(tokens))
        target += kept
    return Batch(torch.tensor(rows), ids, torch.tensor(row), torch.tensor(column), torch.tensor(target))


@dataclass
class Node:
    """A prefix of layers behind one host."""

    children: dict[SourceLayer, Node] = field(default_factory=dict)
    candidates: list[int] = field(default_factory=list)
    """Candidates whose path ends here."""


def trie(candidates: Sequence[Candidate]) -> dict[str, Node]:
    """The prefixes of the candidates by host, in the order of the candidates."""
    roots: dict[str, Node] = {}
    for number, candidate in enumerate(candidates):
        node = roots.setdefault(candidate.host, Node())
        for step in candidate.path:
            node = node.children.setdefault(step, Node())
        node.candidates.append(number)
    return roots


def score_paths(
    pool: Pool,
    candidates: Sequence[Candidate],
    requests: Requests,
    on_scored: Callable[[int], None] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Log-likelihoods of the continuations under each candidate, and whether greedy decoding gives them.

    On the CPU as many batches run at once as torch has threads, each in one thread: that is faster than sharing the
    small sums of one batch among threads, and makes the scores independent of the number of threads.

    Args:
        pool: the models on the candidates' paths.
        candidates: C of them; prefixes that they share are computed once a batch.
        requests: N of them.
        on_scored: told how many more candidates are done.

    Returns:
        For each candidate ``(N,)`` float64 log-likelihoods and ``(N,)`` bools, on the CPU. A log-likelihood that is not
        finite is NaN, and its bool is false.

    Raises:
        BadInput: a candidate can't be built from the pool.
    """
    for candidate in candidates:
        pool.check(candidate)
    likelihoods = torch.zeros(len(candidates), requests.count, dtype=torch.float64)
    greedy = torch.zeros(len(candidates), requests.count, dtype=torch.bool)
    roots = trie(candidates)
    progress = _Shares(len(requests.batches), on_scored)

    def score(batch: Batch) -> None:
        with torch.inference_mode():
            for host, root in roots.items():
                _walk(pool, host, root, batch, likelihoods, greedy, progress)

    if pool.device.type != "cpu":
        for batch in requests.batches:
            score(batch)
    else:
        _one_thread_each(score, requests.batches)
    return list(zip(likelihoods, greedy, strict=True))


def _one_thread_each(score: Callable[[Batch], None], batches: Sequence[Batch]) -> None:
    """Score the batches in as many threads as torch has, with torch itself in one thread in each of them."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        try:
            for _ in executor.map(score, batches):
                pass
        finally:
            torch.set_num_threads(threads)


def _walk(
    pool: Pool, host: str, root: Node, batch: Batch, likelihoods: Tensor, greedy: Tensor, progress: _Shares
) -> None:
    """Score every candidate behind one host on one batch, depth-first."""
    ends = pool.ends(host)
    on_device = batch.to(pool.device)
    hidden, arguments = ends.embed(on_device.ids)
    pending = [(step, child, hidden) for step, child in reversed(root.children.items())]
    while pending:
        step, node, hidden = pending.pop()
        hidden = pool.block(*step)(hidden, **arguments[step[1]])
        if node.candidates:
            values, matches = _continuations(ends, hidden, on_device)
            for number in node.candidates:
                likelihoods[number, batch.rows] = values
                greedy[number, batch.rows] = matches
            progress.add(len(node.candidates))
        pending += [(step, child, hidden) for step, child in reversed(node.children.items())]


def _continuations(ends: Ends, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-likelihood ``(B,)`` of each row's continuation, summed in float64, and whether each argmax is its target."""
    chosen = hidden[batch.row, batch.column]
    values, matches = [], []
    rows = max(1, LOGITS // ends.config.vocab_size)
    for states, target in zip(torch.split(chosen, rows), torch.split(batch.target, rows), strict=True):
        scores = torch.log_softmax(ends.logits(states).float(), dim=-1)
        values.append(scores.gather(1, target.unsqueeze(1)).squeeze(1).double())
        matches.append(scores.argmax(dim=-1) == target)
    row, count = batch.row.cpu(), len(batch.rows)
    likelihood = torch.zeros(count, dtype=torch.float64).index_add_(0, row, torch.cat(values).cpu())
    misses = torch.zeros(count, dtype=torch.long).index_add_(0, row, (~torch.cat(matches)).long().cpu())
    finite = likelihood.isfinite()
    return likelihood.masked_fill(~finite, torch.nan), (misses == 0) & finite


class _Shares:
    """Counts a candidate as done when it was scored on every batch."""

    def __init__(self, batches: int, on_scored: Callable[[int], None] | None) -> None:
        self.batches = batches
        self.on_scored = on_scored
        self.done = 0
        self.lock = threading.Lock()

    def add(self, candidates: int) -> None:
        """So many candidates were scored on one more batch."""
        with self.lock:
            before, self.done = self.done // self.batches, self.done + candidates
            if self.on_scored and self.done // self.batches > before:
                self.on_scored(self.done // self.batches - before)
