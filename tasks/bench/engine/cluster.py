"""A model of a search on many workers: rounds of rungs, each of which waits for its last candidate.

The driver is one process: it hands out chunks, journals and judges them one after the other, and proposes between the
rounds. Workers take the next chunk when they are free. First every node has to get the weights, from the driver's own.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.scoring.engine import SHARED_CHUNK


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds."""

    item: float
    """An item of a candidate of full depth on one worker."""
    chunk: float
    """Driver: a chunk handed out, journalled and judged."""
    candidate: float
    """Driver: what each candidate in it adds."""
    round: float
    """Driver: what is done between two rounds, proposals and learning."""
    weights: float
    """Bytes of base and experts."""
    network: float
    """Bytes a second that leave the driver's node."""


@dataclass(frozen=True)
class Load:
    """A search."""

    budget: int
    """Item evaluations."""
    batch: int
    """Candidates of a round."""
    rungs: tuple[int, ...]
    """Items of a candidate at each rung of successive halving, the last one all of them."""
    keep: float
    """Share that is promoted."""
    spread: float = 0.15
    """Standard deviation of a candidate's depth over its mean."""


@dataclass(frozen=True)
class Course:
    """How a search went."""

    seconds: float
    busy: float
    """Share of their time that workers were scoring."""
    driver: float
    """Share of the time that the driver was at work."""
    sharing: float
    """Seconds until the last node had the weights."""
    rounds: int


def simulate(costs: Costs, load: Load, workers: int, nodes: int, seed: int = 0) -> Course:
    """Let a search run on so many workers.

    Args:
        costs: of its parts.
        load: the search.
        workers: of all nodes together.
        nodes: that each need the weights.
        seed: of the candidates' depths.
    """
    rng = np.random.default_rng(seed)
    sharing = costs.weights * nodes / costs.network
    now, spent, scoring, driving, rounds = sharing, 0.0, 0.0, 0.0, 0
    while spent < load.budget:
        rounds += 1
        count, before = load.batch, 0
        for items in load.rungs:
            work = (items - before) * costs.item * np.maximum(0.3, rng.normal(1, load.spread, count))
            end, driven = rung(work, workers, costs)
            now, spent = now + end, spent + count * (items - before)
            scoring, driving = scoring + float(work.sum()), driving + driven
            count, before = max(1, round(load.keep * count)), items
        now, driving = now + costs.round, driving + costs.round
    return Course(now, scoring / (now * workers), driving / now, sharing, rounds)


def rung(work: Sequence[float] | np.ndarray, workers: int, costs: Costs) -> tuple[float, float]:
    """Seconds until the last candidate of a rung is scored and written down, and those that the driver was at work.

    Args:
        work: seconds of each candidate on a worker.
        workers: that take chunks as they get free.
        costs: of the driver.
    """
    size = max(1, min(SHARED_CHUNK, -(-len(work) // (2 * workers))))
    chunks = [list(work[first : first + size]) for first in range(0, len(work), size)]
    free = [0.0] * workers
    driver = driven = 0.0
    done: list[float] = []
    for chunk in chunks:
        cost = (costs.chunk + costs.candidate * len(chunk)) / 2  # half of it before, half behind
        driver, driven = driver + cost, driven + 2 * cost
        start = max(driver, heapq.heappop(free))
        heapq.heappush(free, start + sum(chunk))
        heapq.heappush(done, start + sum(chunk))
    while done:
        driver = max(driver, heapq.heappop(done)) + (costs.chunk + costs.candidate * size) / 2
    return driver, driven
