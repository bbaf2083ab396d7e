"""Exact scoring of many paths at once: shared prefixes of layers are computed once.

The candidates form a trie: its root is the host's embedding, each edge is a layer. It is walked depth-first for one
batch of requests at a time, so that the hidden states that are held are those of the branches above the current layer.
The same batches pass through the same layers whichever candidates are scored together: the scores equal those of
scoring each candidate alone, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.candidate import Candidate, SourceLayer
from models.paths.ends import SOFTNESS, Ends, leads
from models.paths.pool import Pool
from models.paths.threads import one_thread_each

CPU_TOKENS, GPU_TOKENS = 1024, 16384
"""Tokens of a batch of requests, padding included: what a core's cache holds, and what fills a GPU."""

LOGITS = 2**24
"""Numbers that the logits of one step may have."""

HIDDEN_BYTES = 2**30
"""Bytes of hidden states that may be kept at branches."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""


class Scorable(Protocol):
    """Requests that pass through the layers together."""

    @property
    def rows(self) -> Tensor:
        """Which request each row is, ``(B,)``."""

    @property
    def inputs(self) -> Tensor:
        """What the embedding reads, ``(B, …)``."""

    def to(self, device: torch.device) -> Scorable:
        """The same batch on a device."""

    def real(self, hidden: Tensor) -> Tensor:
        """Which hidden states ``(B, T, D)`` are those of tokens and not of padding, ``(B, T)`` bool."""

    def answering(self, hidden: Tensor) -> Tensor:
        """Which of them an answer is read from, ``(B, T)`` bool."""

    def likelihoods(self, ends: Ends, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each answer ``(B,)`` in float64, and how far it is the likeliest ``(B,)``, on the CPU.

        From the last layer's hidden states ``(B, T, D)`` and what lies behind it.
        """

    def soft(self, ends: Ends, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with slopes: log-likelihoods ``(B,)``, how surely each is given ``(B,)``, and whether it is.

        Surely means the product over its tokens of the sigmoid of a token's lead over the likeliest other one.
        """


class Answer(tuple[float, bool]):
    """A log-likelihood, and whether greedy decoding gives the continuation: what lm-eval's models answer, and more."""

    matching: float
    """Share of the continuation's tokens that greedy decoding gives, each behind the right ones."""

    def __new__(cls, likelihood: float, matching: float) -> Answer:
        """From what :func:`path_likelihoods` gives with ``shares``."""
        made = super().__new__(cls, (likelihood, matching == 1))
        made.matching = matching
        return made


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

    @property
    def inputs(self) -> Tensor:
        """What the embedding reads: the token ids."""
        return self.ids

    def real(self, hidden: Tensor) -> Tensor:
        """What lies up to the last scored position, ``(B, T)`` bool: a continuation ends its request."""
        last = torch.zeros_like(self.rows).scatter_reduce(0, self.row, self.column, "amax")
        return torch.arange(hidden.shape[1], device=last.device) <= last.unsqueeze(1)

    def answering(self, hidden: Tensor) -> Tensor:
        """What the continuation is predicted from, ``(B, T)`` bool."""
        found = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        found[self.row, self.column] = True
        return found

    def likelihoods(self, ends: Ends, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each row's continuation, and the share of its tokens that greedy decoding gives."""
        return _continuations(ends, hidden, self)

    def soft(self, ends: Ends, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Scorable``."""
        logits = ends.logits(hidden[self.row, self.column])
        likelihood, lead = leads(logits, self.target)
        parts = (likelihood, logsigmoid(lead / SOFTNESS), (lead <= 0).to(lead.dtype))
        rows = [one.new_zeros(len(self.rows)).index_add(0, self.row, one) for one in parts]
        return rows[0], rows[1].exp(), rows[2] == 0


@dataclass(frozen=True)
class Requests:
    """Requests in batches that depend on nothing but the requests and the token budget."""

    count: int
    batches: tuple[Scorable, ...]

    @classmethod
    def from_pairs(cls, pairs: Sequence[Pair], max_length: int, tokens: int = CPU_TOKENS) -> Requests:
        """Batches of requests, longest first, so that memory runs out at once or not at all.

        Args:
            pairs: contexts and continuations, neither empty. What is too long loses tokens on the left.
            max_length: longest sequence that the model takes.
            tokens: budget of a batch, at least one request.
        """
        return cls.from_groups([[pair] for pair in pairs], max_length, tokens)

    @classmethod
    def from_groups(cls, groups: Sequence[Sequence[Pair]], max_length: int, tokens: int = CPU_TOKENS) -> Requests:
        """The same of requests that belong together, numbered through all groups; those of one are in one batch."""
        firsts = list(accumulate(map(len, groups), initial=0))
        longest = [max(sum(map(len, pair)) for pair in group) for group in groups]
        order = sorted(range(len(groups)), key=lambda index: (-longest[index], index))
        batches = []
        while order:
            width = max(1, min(longest[order[0]] - 1, max_length)) * max(map(len, groups))
            size = max(1, tokens // width)
            chosen, order = order[:size], order[size:]
            numbers = [firsts[index] + place for index in chosen for place in range(len(groups[index]))]
            pairs = [pair for index in chosen for pair in groups[index]]
            read = [[*context, *continuation][-max_length - 1 :][:-1] for context, continuation in pairs]
            batches.append(_batch(numbers, read, [continuation for _, continuation in pairs]))
        return cls(firsts[-1], tuple(batches))


def _batch(rows: Sequence[int], read: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Batch:
    ids = torch.zeros(len(rows), max(map(len, read)), dtype=torch.long)
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


def trie(candidates: Sequence[Candidate], numbers: Sequence[int] | None = None) -> dict[str, Node]:
    """The prefixes of the candidates by host, in the order of the candidates; of all, or of those ``numbers`` alone."""
    roots: dict[str, Node] = {}
    for number in range(len(candidates)) if numbers is None else numbers:
        candidate = candidates[number]
        node = roots.setdefault(candidate.host, Node())
        for step in candidate.path:
            node = node.children.setdefault(step, Node())
        node.candidates.append(number)
    return roots


def path_likelihoods(
    pool: Pool,
    candidates: Sequence[Candidate],
    requests: Requests,
    on_scored: Callable[[int], None] | None = None,
    *,
    hidden_bytes: int = HIDDEN_BYTES,
    walk: Callable[..., None] | None = None,
    shares: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Log-likelihoods of the answers under each candidate, and whether it takes them for the likeliest.

    An answer is a continuation, which greedy decoding then gives, or the class of an image (``models.paths.vision``).

    On the CPU as many batches run at once as torch has threads, each in one thread: that is faster than sharing the
    small sums of one batch among threads, and makes the scores independent of the number of threads.

    Args:
        candidates: C of them; prefixes that they share are computed once a batch.
        requests: N of them.
        on_scored: told how many more candidates are done.
        hidden_bytes: what the hidden states kept at branches may hold in all; what must go is computed again.
        walk: how a batch passes the trie, in place of :func:`depth_first`, with the same arguments.
        shares: give the share of a continuation's tokens that greedy decoding gives, instead of whether it gives all.

    Returns:
        For each candidate ``(N,)`` float64 log-likelihoods and ``(N,)`` bools, on the CPU. A log-likelihood that is not
        finite is NaN, and its bool is false. With ``shares`` float64 in place of bools.

    Raises:
        BadInput: a candidate can't be built from the pool.
    """
    for candidate in candidates:
        pool.check(candidate)
    found = Likelihoods(len(candidates), requests, on_scored)
    workers = torch.get_num_threads() if pool.device.type == "cpu" else 1

    def run(batch: Scorable, roots: dict[str, Node]) -> None:
        with torch.inference_mode():
            for host, root in roots.items():
                (walk or depth_first)(pool, host, root, batch.to(pool.device), found, hidden_bytes // workers)

    for group in pool.fitting(candidates):
        run_group = partial(run, roots=trie(candidates, group))
        if pool.device.type != "cpu":
            for batch in requests.batches:
                run_group(batch)
        else:
            one_thread_each(run_group, requests.batches)
    return list(zip(found.likelihoods, found.shares if shares else found.shares == 1, strict=True))


@dataclass(frozen=True)
class PathLikelihoods:
    """The job (:class:`models.paths.pool.Job`) of :func:`path_likelihoods` for some requests."""

    requests: Requests
    shares: bool = False
    """Give shares in place of bools."""

    def run(
        self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each candidate ``(N,)`` log-likelihoods, and bools or shares."""
        return path_likelihoods(pool, candidates, self.requests, on_done, shares=self.shares)


@dataclass
class Branch:
    """A prefix whose hidden states further layers will take."""

    steps: tuple[SourceLayer, ...]
    hidden: Tensor | None
    """``(B, T, D)``, or ``None`` where they had to make room."""
    children: list[tuple[SourceLayer, Node]]
    """Those still to be walked, the next one last."""


def depth_first(pool: Pool, host: str, root: Node, batch: Scorable, found: Likelihoods, hidden_bytes: int) -> None:
    """Score every candidate behind one host on one batch, depth-first."""
    ends = pool.ends(host)
    start, calls = ends.embed(batch.inputs)

    def run(step: SourceLayer, hidden: Tensor) -> Tensor:
        return calls[step[1]].replay(pool.block(*step), hidden)

    branches = [Branch((), start, list(reversed(root.children.items())))]
    most = max(1, hidden_bytes // start.nbytes)
    while branches:
        branch = branches[-1]
        step, node = branch.children.pop()
        if branch.hidden is None:
            branch.hidden = reduce(lambda hidden, one: run(one, hidden), branch.steps, start)
        hidden = run(step, branch.hidden)
        if not branch.children:
            branches.pop()
        if node.candidates:
            found.add(node.candidates, batch, *batch.likelihoods(ends, hidden))
        if node.children:
            branches.append(Branch((*branch.steps, step), hidden, list(reversed(node.children.items()))))
        held = [one for one in branches if one.hidden is not None]
        for one in held[: len(held) - most]:  # the shallowest are needed last and cheapest to compute again
            one.hidden = None


def _continuations(ends: Ends, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-likelihood ``(B,)`` of each row's continuation, summed in float64, and the share of right argmaxes."""
    chosen = hidden[batch.row, batch.column]
    values, matches = [], []
    rows = max(1, LOGITS // ends.vocabulary)
    for states, target in zip(torch.split(chosen, rows), torch.split(batch.target, rows), strict=True):
        logits = ends.logits(states)
        scores = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
        values.append(scores.gather(1, target.unsqueeze(1)).squeeze(1).double())
        matches.append(scores.argmax(dim=-1) == target)
    row, count = batch.row.cpu(), len(batch.rows)
    likelihood = torch.zeros(count, dtype=torch.float64).index_add_(0, row, torch.cat(values).cpu())
    right = torch.zeros(count, dtype=torch.float64).index_add_(0, row, torch.cat(matches).double().cpu())
    share = right / torch.bincount(row, minlength=count)
    finite = likelihood.isfinite()
    return likelihood.masked_fill(~finite, torch.nan), share * finite


class Likelihoods:
    """What has been scored; a candidate is done when it was scored on every batch."""

    def __init__(self, candidates: int, requests: Requests, on_scored: Callable[[int], None] | None) -> None:
        self.likelihoods = torch.zeros(candidates, requests.count, dtype=torch.float64)
        self.shares = torch.zeros(candidates, requests.count, dtype=torch.float64)
        self.batches = len(requests.batches)
        self.on_scored = on_scored
        self.done = 0
        self.lock = threading.Lock()

    def add(self, candidates: Sequence[int], batch: Scorable, likelihoods: Tensor, shares: Tensor) -> None:
        """Scores ``(B,)`` of candidates with one path on one more batch."""
        rows = batch.rows.cpu()
        for number in candidates:
            self.likelihoods[number, rows] = likelihoods
            self.shares[number, rows] = shares
        with self.lock:
            before, self.done = self.done // self.batches, self.done + len(candidates)
            if self.on_scored and self.done // self.batches > before:
                self.on_scored(self.done // self.batches - before)
