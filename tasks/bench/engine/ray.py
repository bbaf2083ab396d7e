"""The engine on Ray workers of this machine against the engine in one process, and what that says of large clusters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.candidate import Candidate
from models.search.environment import PathSpace
from tasks.bench.engine.cluster import Costs, Course, Load, simulate
from tasks.bench.engine.families import OPEN_GATES, make_project
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine, Scored

CANDIDATES = 64
"""Paths that are scored for one time."""

ITEM_SECONDS = 0.2
"""Assumed of a 7B model: an item on one GPU, half a second where text is generated, a tenth where it is not."""

BYTES = 4 * 13.5e9
"""Base and three experts of ``llama2-7b`` in 16 bits."""

NETWORK = 1.25e9
"""Assumed: 10 Gbit/s."""

ROUND_SECONDS = 2.0
"""Assumed of 32 layers: proposals and learning between two rounds; `hm3 bench front` measures 0.5 s on `tiny`."""

SEARCH = Load(budget=200_000, batch=16, rungs=(128, 496, 608), keep=0.25)
"""Stage `search` of ``llama2-7b``: four objectives with 32 items each, then 128, then all."""

SIMULATED = (8, 64, 512)
GPUS_A_NODE = 8


@benchmark(
    "ray",
    "candidates scored by Ray workers of this machine, against one process; and a model of 7B on larger clusters",
    "≥ 1.7× with two workers, at most 5 % slower with one",
    "every item score is the same bit for bit",
    cases=["1 worker", "2 workers", *(f"7B modelled, {count} workers" for count in SIMULATED)],
    small_cases=["2 workers", "7B modelled, 64 workers"],
    measures=[
        Measure("1 worker", "wall", bound=0.95),
        Measure("2 workers", "wall", bound=1.7),
        Measure("7B modelled*", "wall, rounds of 16"),
        Measure("7B modelled*", "wall, rounds of two a worker"),
    ],
    repetitions=3,
)
def ray(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Score new random paths with both engines, one torch thread each; the models are built by other paths before."""
    driver: tuple[float, float] | None = None
    workspace: Workspace | None = None
    for case, repetition in todo:
        if workspace is None:
            workspace = one_thread(make_project(bench, None, parameters(bench)))
        if driver is None or "modelled" not in case:
            workers = 2 if "modelled" in case else int(case.split()[0])
            rows, driver = measured(bench, workspace, workers, case, repetition)
        if "modelled" in case:
            rows = modelled(case, repetition, driver)
        yield rows


def parameters(bench: Bench) -> dict[str, object]:
    """Of the project whose family is scored."""
    zoo = {"layers": 3, "base_steps": 40, "expert_steps": 20} if bench.small else {}
    return {"zoo": {**zoo, **OPEN_GATES}, "seed": bench.seed}


def one_thread(workspace: Workspace) -> Workspace:
    """The same, with one torch thread a process."""
    return replace(workspace, profile=workspace.profile.model_copy(update={"threads": 1}))


def measured(
    bench: Bench, workspace: Workspace, workers: int, case: str, repetition: int
) -> tuple[list[Row], tuple[float, float]]:
    """Rows of a case, and the driver's CPU seconds for a chunk and for each candidate in it."""
    count = 8 if bench.small else CANDIDATES
    rng = np.random.default_rng([bench.seed, workers, repetition])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = Engine(workspace, bench.folder / f"inline-{workers}-{repetition}")
        chosen = random_paths(alone, 2 * count, rng)
        alone.scored(chosen[count:], "search")
        began = time.perf_counter()
        wanted = alone.scored(chosen[:count], "search")
        theirs = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    found, ours, cpu, chunks, sharing = on_workers(
        workspace, workers, chosen, count, bench.folder / f"ray-{workers}-{repetition}"
    )
    same = found == wanted
    note = f"{count} paths, {chunks} chunks"
    rows = [
        Row(case, repetition, "wall", "s", ours, theirs, None, same, note),
        Row(case, repetition, "driver's cpu a chunk", "s", cpu / chunks, None, None, same, note),
        Row(case, repetition, "weights into the store", "s", sharing, None, None, same, note),
    ]
    return rows, (cpu / chunks / 2, cpu / count / 2)


def random_paths(engine: Engine, count: int, rng: np.random.Generator) -> list[Candidate]:
    """Different legal paths over the experts."""
    space = PathSpace(tuple(engine.family.experts), engine.layers)
    found: dict[Candidate, None] = {}
    while len(found) < count:
        found[space.random_path(rng)] = None
    return list(found)


def on_workers(
    workspace: Workspace, workers: int, chosen: Sequence[Candidate], count: int, journal: Path
) -> tuple[list[Scored], float, float, int, float]:
    """Scores of the first ``count``, wall seconds, the driver's CPU seconds, chunks, and seconds to share weights."""
    wanted = workspace.profile.ray.model_copy(update={"workers": workers, "cpus": 1.0, "address": None})
    workspace = replace(workspace, profile=workspace.profile.model_copy(update={"ray": wanted}), engine="ray")
    engine = Engine(workspace, journal)
    from ray import shutdown

    from tasks.scoring.ray_pool import RayPool

    pool = engine.pool
    assert isinstance(pool, RayPool)  # noqa: S101 (the engine was asked for)
    try:
        began = time.perf_counter()
        fleet = pool.fleet
        sharing = time.perf_counter() - began
        fleet.wait(workers)
        engine.scored(chosen[count:], "search")
        before = len(list(journal.glob("*.jsonl")))
        began, cpu = time.perf_counter(), time.process_time()
        found = engine.scored(chosen[:count], "search")
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        chunks = len(list(journal.glob("*.jsonl"))) - before
    finally:
        pool.close()
        shutdown()
    return found, wall, cpu, chunks, sharing


def modelled(case: str, repetition: int, driver: tuple[float, float]) -> list[Row]:
    """Hours of a search on so many GPUs against those on one, with the driver's costs as they were measured here."""
    workers = int(case.split()[-2])
    costs = Costs(ITEM_SECONDS, *driver, ROUND_SECONDS, BYTES, NETWORK)
    rows = []
    for name, batch in (("rounds of 16", SEARCH.batch), ("rounds of two a worker", max(SEARCH.batch, 2 * workers))):
        load = replace(SEARCH, batch=batch)
        alone, many = (simulate(costs, load, size, -(-size // GPUS_A_NODE), repetition) for size in (1, workers))
        rows.append(
            Row(
                *(case, repetition, f"wall, {name}", "h", many.seconds / 3600, alone.seconds / 3600),
                note=described(many),
            )
        )
    return rows


def described(course: Course) -> str:
    """What holds a cluster back."""
    return (
        f"workers busy {course.busy:.0%}, driver {course.driver:.1%}, weights on every node after"
        f" {course.sharing:.0f} s, {course.rounds} rounds"
    )
