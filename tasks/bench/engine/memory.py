"""Resident memory while a pool grows: what is built of its models is bounded by the LRU, not by their number."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from models.candidate import Candidate
from models.errors import Failed
from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.paths.pool import Pool
from models.paths.prefix import Requests, path_likelihoods
from models.search.environment import PathSpace
from models.sources.checkpoint import Source, open_checkpoint
from tasks.bench.engine.families import SMALL, Sizes, random_pairs, write_family
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.bench.process import MEGABYTE

SIZES = Sizes(layers=12, width=256, feed_forward=768, heads=4, kv_heads=4, vocabulary=2000)
ANCHORS, SMALL_ANCHORS = 12, 4
REQUESTS, SMALL_REQUESTS = 128, 8

HELD = 2.5
"""Bound of the LRU, in anchors: it is full before growth is looked at."""


@dataclass(frozen=True)
class Job:
    """What the process that is measured does."""

    folders: dict[str, str]
    """Base and experts."""
    anchors: int
    requests: int
    seed: int


@dataclass(frozen=True)
class Look:
    """What was seen after all paths over so many anchors were scored."""

    anchors: int
    resident: float
    """Megabytes of the process."""
    held: float
    """Megabytes of the pool's LRU."""
    bound: float
    """Most that the LRU may hold, in megabytes."""
    whole: float
    """Megabytes of all anchors, if each were kept."""
    right: bool
    """Whether the bound is kept, and the first anchor still scores the same bit for bit."""


@benchmark(
    "memory",
    "resident memory as a pool grows from 1 to 12 anchors while paths over all of them are scored",
    "flat: from 3 to 12 anchors it grows by at most a tenth of what the new anchors take",
    "the LRU keeps its bound, and the first anchor scores the same bit for bit however often it was rebuilt",
    cases=["anchors"],
    measures=[Measure("anchors", "resident memory", "growth", bound=0.1), Measure("anchors", "held", "growth")],
    repetitions=3,
)
def memory(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Let a process of its own add one anchor after the other."""
    with bench.progress.bar("writing checkpoints"):
        family = write_family(bench.folder / "models", 3, SMALL if bench.small else SIZES, bench.seed)
    folders = {name: str(folder) for name, folder in family.items()}
    anchors, requests = (SMALL_ANCHORS, SMALL_REQUESTS) if bench.small else (ANCHORS, REQUESTS)
    for case, repetition in todo:
        rows = []
        for look in looks(Job(folders, anchors, requests, bench.seed + repetition)):
            note = f"LRU of {look.bound:.0f} MB"
            for quantity, value in (("resident memory", look.resident), ("held", look.held)):
                rows.append(Row(case, repetition, quantity, "MB", value, look.whole, look.anchors, look.right, note))
        yield rows


def looks(job: Job) -> list[Look]:
    """What the process of a job sees.

    Raises:
        Failed: it ended early.
    """
    command = [sys.executable, "-P", "-m", "tasks.bench.engine.memory"]
    done = subprocess.run(command, input=json.dumps(asdict(job)), capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise Failed(f"bench memory: ended with {done.returncode}: {' '.join(last) or 'no message'}")
    return [Look(**json.loads(line)) for line in done.stdout.splitlines()]


def grow(job: Job) -> Iterator[Look]:
    """Add an anchor, score paths over all of them, look; and again."""
    sources = {name: open_checkpoint(Path(folder)) for name, folder in job.folders.items()}
    base = sources["base"]
    whole = model_bytes(base)
    pool = Pool(base.config, max_bytes=int(HELD * whole))
    requests = Requests.from_pairs(random_pairs(job.requests, base.config["vocab_size"], job.seed), pool.max_length)
    rng, first, right = np.random.default_rng(job.seed), None, True
    names: list[str] = []
    for number in range(job.anchors):
        names.append(f"anchor-{number + 1}")
        pool.add(names[-1], anchor(sources, rng))
        space = PathSpace(tuple(names), pool.layers)
        paths = [Candidate.identity(name, pool.layers) for name in names]
        paths += [space.random_path(rng) for _ in names]
        likelihoods, _ = path_likelihoods(pool, paths, requests)[0]
        first = likelihoods if first is None else first
        right = right and torch.equal(first, likelihoods) and pool.held_bytes <= pool.max_bytes
        gc.collect()
        resident = psutil.Process().memory_info().rss
        held, bound, kept = pool.held_bytes / MEGABYTE, pool.max_bytes / MEGABYTE, whole * len(names) / MEGABYTE
        yield Look(len(names), resident / MEGABYTE, held, bound, kept, right)


def model_bytes(source: Source) -> int:
    """Bytes of a model's tensors, a tied head not counted again."""
    return sum(source.tensor(name).nbytes for name in source.names())


def anchor(sources: Mapping[str, Source], rng: np.random.Generator) -> MergedSource:
    """A TIES merge of all experts with weights of its own."""
    models = [
        {"model": name, "parameters": {"weight": float(rng.uniform(0.2, 1)), "density": 0.5}}
        for name in sources
        if name != "base"
    ]
    recipe = Recipe.model_validate({"merge_method": "ties", "base_model": "base", "models": models})
    return MergedSource(recipe, sources.__getitem__)


if __name__ == "__main__":
    for look in grow(Job(**json.loads(sys.stdin.read()))):
        sys.stdout.write(json.dumps(asdict(look)) + "\n")
