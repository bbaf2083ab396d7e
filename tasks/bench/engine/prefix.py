"""The trie of `path_likelihoods` against scoring the same different paths one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.candidate import Candidate
from models.paths.pool import Pool
from models.paths.prefix import Requests, path_likelihoods
from models.search.environment import PathSpace
from tasks import dataset, sample
from tasks.bench.engine.by_depth import by_depth
from tasks.bench.engine.families import OPEN_GATES, make_project
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.bench.process import edges, timed
from tasks.trials.pool import open_pool, path_space

SETS = ("random", "edits")
DEPTHS, SMALL_DEPTHS = (8, 30), (3,)

PATHS = 64
"""Different paths that are scored together."""

ITEMS = 64
"""Items a task."""

PARENTS = 4
"""Good paths that are edited, as many as for a preference in the search."""

BATCHED = 1e-5
"""Greatest difference of a log-likelihood when all states of a depth pass a layer as one batch."""

Scores = Sequence[tuple[Tensor, Tensor]]


def cases(depths: Sequence[int]) -> list[str]:
    """Every set over a family of every depth."""
    return [f"{name}, L = {depth}" for depth in depths for name in SETS]


@dataclass(frozen=True)
class Family:
    """A pool whose blocks are built, what is scored on it, and where paths come from."""

    pool: Pool
    requests: Requests
    space: PathSpace
    good: tuple[Candidate, ...]


@benchmark(
    "prefix",
    "shared prefixes computed once, against the same 64 different paths scored one by one",
    "≥ 1.6× on edits, never slower on random paths",
    "every log-likelihood and greedy match is the same bit for bit; by depth, log-likelihoods within 1e-5",
    cases=cases(DEPTHS),
    small_cases=cases(SMALL_DEPTHS),
    measures=[
        Measure("random*", "wall", bound=1.0),
        Measure("edits*", "wall", bound=1.6),
        Measure("*", "cpu"),
        Measure("*", "layer forwards"),
        Measure("*", "wall by depth"),
    ],
)
def prefix(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Score two sets of paths, new ones in every repetition, over trained families of different depth."""
    families: dict[int, Family] = {}
    for case, repetition in todo:
        name, depth = case.split(", L = ")
        if int(depth) not in families:
            families[int(depth)] = make_family(bench, int(depth))
        family = families[int(depth)]
        rng = np.random.default_rng([bench.seed, SETS.index(name), int(depth), repetition])
        chosen = paths_of(name, family, 8 if bench.small else PATHS, rng)
        together, ours = timed(path_likelihoods, family.pool, chosen, family.requests)
        alone, theirs = timed(one_by_one, family, chosen)
        same, note = identical(together, alone), f"{len(chosen)} paths"
        batched, wide = timed(path_likelihoods, family.pool, chosen, family.requests, walk=by_depth)
        apart = greatest_difference(batched, alone)
        close, far = apart <= BATCHED, f"greatest difference {apart:.1e}"
        yield [
            Row(case, repetition, "wall", "s", ours.wall, theirs.wall, None, same, note),
            Row(case, repetition, "cpu", "s", ours.cpu, theirs.cpu, None, same, note),
            Row(case, repetition, "layer forwards", "", edges(chosen), sum(one.depth for one in chosen), None, same),
            Row(case, repetition, "wall by depth", "s", wide.wall, theirs.wall, None, close, far),
        ]


def make_family(bench: Bench, layers: int) -> Family:
    """Base, experts and anchors of a depth, and good paths of them: the stages, with less of each."""
    params = {
        "zoo": {
            "layers": layers,
            **({"base_steps": 200, "expert_steps": 100} if bench.small else {}),
            **OPEN_GATES,
        },
        "sample": {"candidates": 6 if bench.small else 24, "anchors": 3},
        "dataset": {"edits": 12, "random": 4, "items": 8} if bench.small else {"edits": 120, "random": 40, "items": 32},
        "seed": bench.seed,
    }
    workspace = make_project(bench, layers, params)
    for stage in (sample, dataset):
        stage.run(workspace, bench.progress)
    engine, anchors = open_pool(workspace, bench.progress)
    space = path_space(engine, anchors)
    objectives = engine.objectives("search")
    requests = Requests.from_pairs(
        [
            pair
            for one in objectives.composed.values()
            for part in one.parts
            for item in part.tokens[:ITEMS]
            for request in item
            for pair in request
        ],
        engine.pool.max_length,
    )
    path_likelihoods(engine.pool, [space.identity(model) for model in space.models], requests)  # builds every block
    known = pd.read_parquet(workspace.run / "offline.parquet")
    known = known[known["failed"].isna()]
    best = known.assign(mean=known[anchors.objectives].mean(axis=1)).sort_values("mean", ascending=False, kind="stable")
    good = tuple(Candidate.from_json(text) for text in best["candidate"][:PARENTS])
    return Family(engine.pool, requests, space, good)


def paths_of(name: str, family: Family, count: int, rng: np.random.Generator) -> list[Candidate]:
    """So many different paths of a set; fewer only if it is nearly exhausted."""
    found: dict[Candidate, None] = {}
    for path in itertools.islice(draws(name, family, count, rng), 100 * count):
        found[path] = None
        if len(found) == count:
            break
    return list(found)


def draws(name: str, family: Family, count: int, rng: np.random.Generator) -> Iterator[Candidate]:
    """Paths of a set without end, as a round of the search draws them: edits from ``PARENTS`` good paths in turn."""
    while True:
        if name == "random":
            yield family.space.random_path(rng)
        else:
            for path in family.good:
                yield from family.space.edits(path, rng, -(-count // PARENTS))


def one_by_one(family: Family, chosen: Sequence[Candidate]) -> Scores:
    """Each path as if there were no other."""
    return [score for one in chosen for score in path_likelihoods(family.pool, [one], family.requests)]


def identical(ours: Scores, theirs: Scores) -> bool:
    """Whether all numbers are the same bit for bit."""
    return all(
        torch.equal(one, other) for pair in zip(ours, theirs, strict=True) for one, other in zip(*pair, strict=True)
    )


def greatest_difference(ours: Scores, theirs: Scores) -> float:
    """Greatest relative difference of a log-likelihood, in terms of 1 or its size, whichever is more."""
    return max(
        float(((one - other).abs() / other.abs().clamp_min(1)).max())
        for (one, _), (other, _) in zip(ours, theirs, strict=True)
    )
