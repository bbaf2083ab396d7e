"""Stage `sample`: search the parameter level, and choose the anchors.

NSGA-II (pymoo) over a mixed space of merge methods and their parameters, scored on the search split. Base, experts and
plain merges are scored first. Ideal and nadir are fixed here, over base and experts (method.md, sections 1 and 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import RankAndCrowdingSurvival, binary_tournament
from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableGA, MixedVariableMating
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.selection.tournament import TournamentSelection

from models.candidate import Candidate
from models.front import REFERENCE, Array, Scale, utility
from models.merge.recipe import Recipe, dump_recipes, recipe_name
from models.preferences import preferences
from tasks.engine import Engine, Scored
from tasks.progress import Bar, Progress
from tasks.recipes import build_recipe, mixed_space, plain_merges
from tasks.records import Anchors, ScoredModel
from tasks.schema import SampleParams
from tasks.workspace import Workspace


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``anchors.json`` and ``anchors/``."""
    params, seed = workspace.params.sample, workspace.params.seed
    engine = Engine(workspace)
    sources = [Candidate.identity(name, engine.layers) for name in ("base", *engine.family.experts)]
    plain = plain_merges(engine.family, seed)
    with progress.bar("scoring recipes", len(sources) + len(plain) + params.candidates, "recipes") as bar:
        free = engine.score(sources, "search", bar=bar)
        scale = source_scale(engine, free)
        scored = [_record("base" if one.candidate.host == "base" else "expert", one) for one in free]
        merged = engine.score([engine.add(recipe) for recipe in plain.values()], "search", bar=bar)
        for (title, recipe), one in zip(plain.items(), merged, strict=True):
            scored.append(_record("baseline", one, recipe, title))
        scored += explore(engine, params, scale, seed, bar)
    wanted = preferences(len(scale.names), params.preferences, np.random.default_rng([seed, 1]))
    charged = sum(one.recipe is not None for one in scored)
    result = Anchors(
        objectives=list(scale.names),
        ideal=dict(zip(scale.names, scale.ideal, strict=True)),
        nadir=dict(zip(scale.names, scale.nadir, strict=True)),
        spent=charged * engine.cost("search"),
        anchors=choose_anchors(scored, scale, wanted, params.anchors),
        scored=scored,
    )
    result.write(workspace.run)
    progress.message(f"{charged} recipes scored; anchors: {', '.join(result.anchors)}")


def source_scale(engine: Engine, sources: Sequence[Scored]) -> Scale:
    """Ideal and nadir of the task objectives, over base and experts."""
    scores = np.array([one.mean() for one in sources])
    return Scale(engine.objectives("search").names, tuple(scores.max(axis=0)), tuple(scores.min(axis=0)))


def explore(engine: Engine, params: SampleParams, scale: Scale, seed: int, bar: Bar) -> list[ScoredModel]:
    """NSGA-II over merge recipes on the vector of costs, ``params.candidates`` of them."""
    problem = Problem(vars=mixed_space(params.methods, list(engine.family.experts)), n_obj=len(scale.names))
    duplicates = MixedVariableDuplicateElimination()
    algorithm = MixedVariableGA(
        pop_size=params.population,
        survival=RankAndCrowdingSurvival(),
        mating=MixedVariableMating(
            selection=TournamentSelection(func_comp=binary_tournament), eliminate_duplicates=duplicates
        ),
        eliminate_duplicates=duplicates,
        advance_after_initial_infill=True,
    )
    algorithm.tournament_type = "comp_by_dom_and_crowding"
    algorithm.setup(problem, seed=seed, verbose=False)
    found: dict[str, ScoredModel] = {}
    while len(found) < params.candidates:
        population: Population = algorithm.ask()
        asked = [build_recipe(point, engine.family, seed) for point in population.get("X")]
        recipes = {recipe_name(recipe): recipe for recipe in asked}
        new = [name for name in recipes if name not in found][: params.candidates - len(found)]
        for one in engine.score([engine.add(recipes[name]) for name in new], "search", bar=bar):
            found[one.candidate.host] = _record("recipe", one, recipes[one.candidate.host])
            engine.pool.discard(one.candidate.host)
        if len(found) < params.candidates:
            population.set("F", np.array([_costs(found[recipe_name(recipe)], scale) for recipe in asked]))
            algorithm.tell(infills=population)
    return list(found.values())


def choose_anchors(scored: Sequence[ScoredModel], scale: Scale, wanted: Array, count: int) -> list[str]:
    """The recipes that together serve the preferences best: greedy on the sum of each preference's best utility."""
    merges = [one for one in scored if one.recipe is not None and not one.failed]
    gains = utility(np.array([_costs(one, scale) for one in merges]), wanted)
    chosen: list[int] = []
    reached = np.full(len(wanted), -np.inf)
    while len(chosen) < min(count, len(merges)):
        totals = np.maximum(gains, reached).sum(axis=1)
        totals[chosen] = -np.inf
        chosen.append(int(totals.argmax()))
        reached = np.maximum(reached, gains[chosen[-1]])
    return [merges[index].name for index in chosen]


def _costs(one: ScoredModel, scale: Scale) -> Array:
    """Costs ``(K,)``; those of a failed candidate are the worst there are."""
    if one.failed:
        return np.full(len(scale.names), REFERENCE)
    return scale.costs([one.scores[name] for name in scale.names])


def _record(kind: str, one: Scored, recipe: Recipe | None = None, title: str | None = None) -> ScoredModel:
    name = one.candidate.host
    text = dump_recipes([recipe.model_copy(update={"name": name})]) if recipe is not None else None
    return ScoredModel(name, kind, title or name, text, one.means(), one.failed)
