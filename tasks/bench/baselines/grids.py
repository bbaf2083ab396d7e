"""The merges that people tune by hand: six methods, each over the grid that its authors tune it on.

One coefficient serves all experts, as in the papers. The methods take turns, and each goes through its grid from coarse
to fine, so that wherever the budget cuts, what was tried is spread over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product, zip_longest

import numpy as np

from models.front import Array, Indices
from models.merge.recipe import Recipe
from models.merge.space import RecipeSpace
from models.search.environment import PathRules
from models.search.trial import Trial
from tasks.bench.baselines.baseline import all_scored


@dataclass(frozen=True)
class Grid:
    """One method and its values."""

    method: str
    first: tuple[float, ...]
    """What is tried first: the authors' own choice without validation data, or the point nearest to it."""
    own: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Parameters that each expert has, the same for all."""
    shared: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Parameters of the whole merge."""

    def recipes(self, space: RecipeSpace) -> list[Recipe]:
        """Its recipes from coarse to fine."""
        points = np.array(list(product(*self.own.values(), *self.shared.values())))
        found = []
        for row in points[coarse_to_fine(points, np.array(self.first))].tolist():
            own = dict(zip(self.own, row, strict=False))
            shared = dict(zip(self.shared, row[len(own) :], strict=True))
            found.append(space.make(self.method, dict.fromkeys(space.experts, own), shared))
        return found


def steps(low: float, high: float, step: float) -> list[float]:
    """Values from low to high, both included."""
    return [round(float(value), 4) for value in np.arange(low, high + step / 2, step)]


def grids(experts: int) -> list[Grid]:
    """The grids for so many experts.

    - Uniform average: model soup, Wortsman et al. 2022.
    - Task arithmetic: λ to 1 in steps of 0.05 (Ilharco et al. 2023, who recommend 0.4 without validation).
    - TIES: keeps 10, 20 or 30 %, λ 0.8 to 3 in steps of 0.1 (Yadav et al. 2023, appendix; 20 % and 1 without).
    - DARE-TIES: drop rates 0.1 to 0.9, scaling 0.5 or 1 (Yu et al. 2024, appendix).
    - PCB: keeps 5 or 10 %, λ 0.5 to 3 in steps of 0.1 (Du et al. 2024 and their code).
    - Consensus: mask λ 0.2 to 0.6, two tasks agree, α 0.1 to 1 in steps of 0.1 (Wang et al. 2024, their code).
    """
    return [
        Grid("linear", (1 / experts,), {"weight": [round(1 / experts, 6)]}),
        Grid("task_arithmetic", (0.4,), {"weight": steps(0.05, 1, 0.05)}),
        Grid("ties", (1.0, 0.2, 1.0), {"weight": [1.0], "density": [0.1, 0.2, 0.3]}, {"lambda": steps(0.8, 3, 0.1)}),
        Grid("dare_ties", (0.5, 0.5), {"weight": [0.5, 1.0], "density": steps(0.1, 0.9, 0.1)}),
        Grid("pcb", (1.0, 0.1, 1.0), {"weight": [1.0]}, {"density": [0.05, 0.1], "lambda": steps(0.5, 3, 0.1)}),
        Grid(
            "consensus",
            (1.0, 0.4, 0.4),
            {"weight": [1.0], "mask_lambda": steps(0.2, 0.6, 0.1)},
            {"lambda": steps(0.1, 1, 0.1)},
        ),
    ]


def coarse_to_fine(points: Array, first: Array) -> Indices:
    """An order of points (N, D): that nearest to ``first`` (D,), then always the one farthest from those before."""
    width = np.ptp(points, axis=0)
    scaled = points / np.where(width > 0, width, 1.0)
    order = [int(np.square(scaled - first / np.where(width > 0, width, 1.0)).sum(axis=1).argmin())]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        nearest = np.minimum(nearest, np.square(scaled - scaled[order[-1]]).sum(axis=1))
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return np.array(order, dtype=np.int64)


def search_grids(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """All grids, the methods in turn; see ``BASELINES``."""
    turns = chain(*zip_longest(*(grid.recipes(space) for grid in grids(len(space.experts)))))
    all_scored(trial, [trial.add(recipe) for recipe in turns if recipe is not None], "recipe")
