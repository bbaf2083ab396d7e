"""Search among merge recipes: NSGA-II over methods and parameters, for the whole model or along its layers.

mergenetic (Minut et al. 2025) runs pymoo's NSGA-II over the weights and densities of one merge method. Here the method
is searched too, which contains that, and the first generation holds the merges that people try first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import RankAndCrowdingSurvival, binary_tournament
from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableGA, MixedVariableMating
from pymoo.core.population import Population
from pymoo.operators.selection.tournament import TournamentSelection

from models.merge.recipe import Recipe
from models.merge.space import RecipeSpace
from models.search.environment import PathRules
from models.search.trial import Trial
from tasks.bench.baselines.evolution import Evolution

POPULATION = 24
OFFSPRING = 12
"""Of a generation. Half a population turns over faster, which counts when there are few generations at all (Durillo et
al. 2009 find steady-state NSGA-II ahead of the generational one)."""

STOPS = 3
"""Values of an expert's weight along the layers."""
PLAIN = 0.4
"""Share of the budget after which per-layer weights are searched."""


def recipe_search(
    trial: Trial, space: RecipeSpace, rng: np.random.Generator, start: Sequence[Recipe] = ()
) -> Evolution:
    """NSGA-II over a space of recipes.

    Args:
        trial: pays.
        space: of recipes.
        rng: draws the first generation and seeds the algorithm.
        start: recipes of the first generation; what they leave of it is filled evenly.
    """
    points = [point for point in map(space.read, start) if point["method"] in space.methods][:POPULATION]
    points += space.sample(POPULATION - len(points), rng) if len(points) < POPULATION else []
    duplicates = MixedVariableDuplicateElimination()
    algorithm = MixedVariableGA(
        pop_size=POPULATION,
        n_offsprings=OFFSPRING,
        sampling=Population.new("X", np.array(points, dtype=object)),
        survival=RankAndCrowdingSurvival(),
        mating=MixedVariableMating(
            selection=TournamentSelection(func_comp=binary_tournament), eliminate_duplicates=duplicates
        ),
        eliminate_duplicates=duplicates,
        advance_after_initial_infill=True,
    )
    algorithm.tournament_type = "comp_by_dom_and_crowding"
    variables = {"vars": space.variables}
    return Evolution(trial, algorithm, variables, lambda point: trial.add(space.recipe(point)), "recipe", rng)


def started(trial: Trial, space: RecipeSpace, rng: np.random.Generator, limit: int) -> Evolution:
    """NSGA-II over recipes that has spent up to ``limit`` item evaluations."""
    search = recipe_search(trial, space, rng, list(space.plain_merges().values()))
    search.run(limit)
    return search


def nsga2_recipes(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """NSGA-II over recipes; see ``BASELINES``."""
    started(trial, space, rng, trial.budget)


def layered_recipes(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """NSGA-II over per-layer recipes, which starts from the front of NSGA-II over recipes; see ``BASELINES``."""
    plain = started(trial, space, rng, int(PLAIN * trial.budget))
    found = [trial.recipes[one.host] for one in plain.survivors() if one in trial.archive]
    recipe_search(trial, space.with_stops(STOPS), rng, found).run(trial.budget)
