"""Search among inference paths: at random, by CMA-ES, by NSGA-II and by differential evolution.

All have HM3's pool, the experts and three anchors, and find the anchors first: parameter space, then data flow, as
Akiba et al. 2024 do. A path is an array of switches (``slots.py``). Their scaling of layer inputs has
no counterpart, since a candidate holds no scales.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import cma
import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.de import DE
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import TwoPointCrossover
from scipy.stats import norm

from models.front import Array
from models.merge.space import RecipeSpace
from models.preferences import preferences
from models.search.anchors import choose_anchors
from models.search.environment import PathRules, PathSpace
from models.search.trial import Trial
from tasks.bench.baselines.baseline import all_scored, directions, plain, utilities, whole
from tasks.bench.baselines.evolution import IDLE, Evolution
from tasks.bench.baselines.recipes import OFFSPRING, POPULATION, started
from tasks.bench.baselines.slots import Slots, Switches

FIRST = 0.35
"""Share of the budget that NSGA-II over recipes has, to find anchors."""
ANCHORS = 3
PREFERENCES = 16
"""Under which anchors are chosen."""
EACH = 40
"""Candidates that a preference gets at least, where an algorithm takes one at a time."""
OFF, ON = 1.0, 0.5
"""Switches that a variant of a path turns off and on, on average. Most switches are off, so flipping all alike would
almost only put layers in; that left NSGA-II over paths with a third of the hypervolume on the family `tiny`."""
CMA_POPULATION, DE_POPULATION = 10, 16
F, CR = 0.8, 0.5
"""Differential weight and crossover rate: usual ones (Storn & Price 1997)."""

Search = Callable[[Array, int], None]
"""Searches under a preference (K,) until the trial has spent so many item evaluations."""


class Flips(Mutation):  # type: ignore[misc] # pymoo has no types
    """Turns a few switches off and a few on."""

    def _do(self, problem: Problem, X: Switches, *, random_state: np.random.Generator, **how: Any) -> Switches:  # noqa: N803
        return np.asarray(X ^ (random_state.random(X.shape) < flips(X)))


def flips(switches: Switches) -> Array:
    """Probability (..., D) that each of some switches changes in a variant."""
    on = switches.sum(axis=-1, keepdims=True)
    off = switches.shape[-1] - on
    return np.asarray(np.minimum(np.where(switches, OFF / np.maximum(on, 1), ON / np.maximum(off, 1)), 0.4))


def pool(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> PathSpace:
    """Paths over the experts and the anchors, which are found first."""
    started(trial, space, rng, int(FIRST * trial.budget))
    merges = [one for one in plain(trial) if one.host in trial.recipes]
    wanted = preferences(len(trial.reward.scale.names), PREFERENCES, rng)
    chosen = choose_anchors(trial.costs(merges), wanted, ANCHORS) if merges else []
    return PathSpace((*space.experts, *(merges[i].host for i in chosen)), trial.lab.layers, rules)


def random_paths(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """Random legal paths; see ``BASELINES``."""
    paths, idle = pool(trial, space, rules, rng), 0
    while idle < IDLE:
        before = trial.spent
        if not all_scored(trial, [paths.random_path(rng) for _ in range(OFFSPRING)], "random"):
            return
        idle = idle + 1 if trial.spent == before else 0


def nsga2_paths(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """NSGA-II over switches; see ``BASELINES``."""
    slots = Slots(pool(trial, space, rules, rng))
    first = _first(trial, slots, POPULATION, rng)
    algorithm = NSGA2(
        pop_size=POPULATION,
        n_offsprings=OFFSPRING,
        sampling=first,
        crossover=TwoPointCrossover(),
        mutation=Flips(prob=1.0),
    )
    variables = {"n_var": len(slots), "xl": False, "xu": True, "vtype": bool}
    Evolution(trial, algorithm, variables, lambda on: slots.decode(on.astype(bool)), "path", rng).run(trial.budget)


def ea_paths(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """CMA-ES over switches; see ``BASELINES``."""
    slots = Slots(pool(trial, space, rules, rng))

    def search(preference: Array, limit: int) -> None:
        start = _best(trial, slots, preference, 1)[0]
        mean = np.where(start, 1, -1) * norm.isf(flips(start))  # standard deviations from zero
        options = {
            "popsize": CMA_POPULATION,
            "CMA_diagonal": True,
            "verbose": -9,
            "seed": np.nan,  # numpy's own generator is left alone
            "randn": lambda *shape: rng.standard_normal(shape),
        }
        algorithm = cma.CMAEvolutionStrategy(mean, 1.0, options)
        while not algorithm.stop():
            asked = algorithm.ask()
            candidates = [slots.decode(one > 0) for one in asked]
            if not all_scored(trial, candidates, "path", limit):
                return
            algorithm.tell(asked, (-utilities(trial, candidates, preference)).tolist())

    _one_by_one(trial, search)


def de_paths(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """Differential evolution over switches; see ``BASELINES``."""
    slots = Slots(pool(trial, space, rules, rng))

    def search(preference: Array, limit: int) -> None:
        first = np.where(_best(trial, slots, preference, DE_POPULATION, rng), 1.0, -1.0)
        algorithm = DE(pop_size=len(first), sampling=first, variant="DE/best/1/bin", F=F, CR=CR)
        problem = Problem(n_var=len(slots), n_obj=1, xl=-3.0, xu=3.0)
        algorithm.setup(problem, termination=NoTermination(), seed=int(rng.integers(2**31)), verbose=False)
        idle = 0
        while idle < IDLE:
            asked, before = algorithm.ask(), trial.spent
            candidates = [slots.decode(one > 0) for one in asked.get("X")]
            if not all_scored(trial, candidates, "path", limit):
                return
            asked.set("F", -utilities(trial, candidates, preference)[:, None])
            algorithm.tell(infills=asked)
            idle = idle + 1 if trial.spent == before else 0

    _one_by_one(trial, search)


def _one_by_one(trial: Trial, search: Search) -> None:
    """Share what is left of the budget over a few preferences; whatever a search leaves, later ones have."""
    wanted = directions(len(trial.reward.scale.names), trial.left // (EACH * trial.whole))
    share, idle = trial.left // len(wanted), 0
    for number, preference in enumerate(cycle(wanted), start=1):
        before = trial.spent
        search(preference, trial.budget if number >= len(wanted) else trial.budget - (len(wanted) - number) * share)
        idle = idle + 1 if trial.spent == before else 0
        if trial.left < trial.whole or idle == len(wanted):
            return


def _best(
    trial: Trial, slots: Slots, preference: Array, count: int, rng: np.random.Generator | None = None
) -> Switches:
    """Switches (count, D) of the best paths that are known under a preference; variants of those where they lack."""
    known = {one: switches for one in whole(trial) if (switches := slots.encode(one)) is not None}
    order = np.argsort(-utilities(trial, list(known), preference), kind="stable")
    found = np.array(list(known.values()))[order[:count]]
    return found if rng is None else _filled(found, count, rng)


def _first(trial: Trial, slots: Slots, count: int, rng: np.random.Generator) -> Switches:
    """Switches (count, D) of the pool's models and of variants of them."""
    models = map(slots.space.identity, reversed(slots.space.models))
    known = [slots.encode(one) for one in models if trial.archive[one].scores is not None]
    return _filled(np.array([one for one in known if one is not None][:count]), count, rng)


def _filled(found: Switches, count: int, rng: np.random.Generator) -> Switches:
    """What was found (N, D), filled up to ``count`` rows with variants of it, each in turn."""
    variants = found[np.arange(max(count - len(found), 0)) % len(found)]
    return np.concatenate([found, variants ^ (rng.random(variants.shape) < flips(variants))])
