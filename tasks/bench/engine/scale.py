"""How the time of a candidate grows: with its layers, the experts that are merged, its width, and the items."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from models.candidate import Candidate
from models.paths.pool import Pool
from models.paths.prefix import Requests, path_likelihoods
from models.sources.checkpoint import Checkpoint, open_checkpoint
from tasks.bench.engine.families import Sizes, random_pairs, write_family
from tasks.bench.engine.memory import anchor, model_bytes
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.bench.process import timed

CANDIDATES = 3
"""Recipes that are merged and scored for one time: their median."""


@dataclass(frozen=True)
class Problem:
    """What one candidate takes."""

    layers: int = 8
    experts: int = 3
    width: int = 96
    items: int = 192

    @property
    def sizes(self) -> Sizes:
        """Shape of its models."""
        return Sizes(self.layers, self.width, 3 * self.width, self.width // 16, self.width // 16, 600)


GRID = {
    "layers": [Problem(layers=one) for one in (4, 8, 16, 32)],
    "experts": [Problem(experts=one) for one in (2, 3, 5, 8)],
    "width": [Problem(width=one) for one in (64, 128, 256, 512)],
    "items": [Problem(items=one) for one in (48, 96, 192, 384)],
}
SMALL = Problem(layers=2, width=32, items=16)
SMALL_GRID = {
    "layers": [replace(SMALL, layers=one) for one in (2, 4, 8)],
    "experts": [replace(SMALL, experts=one) for one in (2, 3, 5)],
    "width": [replace(SMALL, width=one) for one in (32, 64, 128)],
    "items": [replace(SMALL, items=one) for one in (8, 16, 32)],
}


@benchmark(
    "scale",
    "time a candidate, merged and scored in memory, as layers, experts, width and items grow",
    "no worse than linear in layers, experts, parameters and items: exponent ≤ 1.1",
    "every log-likelihood is finite",
    cases=list(GRID),
    measures=[Measure("*", "wall", "slope", bound=1.1), Measure("*", "cpu", "slope")],
)
def scale(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Time the same candidate at growing sizes, one size after the other, again in every repetition."""
    for case, repetition in todo:
        rows = []
        for problem in (SMALL_GRID if bench.small else GRID)[case]:
            folder = bench.folder / "models"
            family = write_family(folder, problem.experts, problem.sizes, bench.seed)
            sources = {name: open_checkpoint(one) for name, one in family.items()}
            parameters, wall, cpu, finite = time_candidates(sources, problem, bench.seed + repetition)
            shutil.rmtree(folder)
            x = parameters if case == "width" else getattr(problem, case)
            note = f"{parameters / 1e6:.2f} million parameters"
            rows += [
                Row(case, repetition, quantity, "s", value, None, x, finite, note)
                for quantity, value in (("wall", wall), ("cpu", cpu))
            ]
        yield rows


def time_candidates(sources: dict[str, Checkpoint], problem: Problem, seed: int) -> tuple[int, float, float, bool]:
    """Parameters of a candidate, median wall and CPU seconds to merge and score one, and whether all scores are finite.

    One more comes first and is not timed: it maps the files and starts the threads.
    """
    base = sources["base"]
    pool, rng = Pool(base.config), np.random.default_rng(seed)
    pairs = random_pairs(problem.items, base.config["vocab_size"], seed)
    requests = Requests.from_pairs(pairs, pool.max_length)
    finite, usages = True, []

    def merge_and_score() -> torch.Tensor:
        pool.add("merged", anchor(sources, rng))
        (likelihoods, _) = path_likelihoods(pool, [Candidate.identity("merged", pool.layers)], requests)[0]
        pool.discard("merged")
        return likelihoods

    for _ in range(CANDIDATES + 1):
        likelihoods, usage = timed(merge_and_score)
        finite = finite and bool(likelihoods.isfinite().all())
        usages.append(usage)
    parameters = model_bytes(base) // 4
    return parameters, median(one.wall for one in usages[1:]), median(one.cpu for one in usages[1:]), finite
