"""Layer deletion from the best recipes: greedily by what it costs, or at once by block influence.

No path rule binds these: any layer may go.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.candidate import Candidate
from models.front import Array, scalarise
from models.merge.space import RecipeSpace
from models.preferences import preferences
from models.search.anchors import choose_anchors
from models.search.deletion import Known, delete_greedily, task_costs, without, worth
from models.search.environment import PathRules
from models.search.trial import Trial
from tasks.bench.baselines.baseline import all_scored, directions, plain
from tasks.bench.baselines.evolution import IDLE
from tasks.bench.baselines.recipes import started

FIRST_GREEDY, FIRST_INFLUENCE = 0.35, 0.5
"""Share of the budget that NSGA-II over recipes has first. A greedy path costs several times as much as one by block
influence, which takes one candidate a layer."""
STARTS = 16
"""Recipes that are cut by block influence, at most, before more recipes are sought."""


def greedy_deletion(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """Greedy deletion for one preference after the other; see ``BASELINES``."""
    search = started(trial, space, rng, int(FIRST_GREEDY * trial.budget))
    known: Known = {}
    idle = 0
    for preference in _endless(trial.reward.tasks, rng):
        before = trial.spent
        starts = plain(trial)
        start = starts[int(scalarise(task_costs(trial, starts), preference).argmax())]
        delete_greedily(trial, start, preference, known, trial.archive.full)
        idle = idle + 1 if trial.spent == before else 0
        if trial.left < trial.whole or idle == IDLE:
            break
    search.run(trial.budget)


def block_influence(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """Deletion of 1 to L/2 layers in the order of their block influence; see ``BASELINES``."""
    search = started(trial, space, rng, int(FIRST_INFLUENCE * trial.budget))
    starts = plain(trial)
    wanted = preferences(len(trial.reward.scale.names), STARTS, rng)
    for i in choose_anchors(trial.costs(starts), wanted, STARTS):
        if trial.left < 2 * trial.whole:
            break
        influence = trial.influence(starts[i])
        if influence is not None:
            delete_by_influence(trial, starts[i], influence)
    search.run(trial.budget)


def delete_by_influence(trial: Trial, start: Candidate, influence: Array) -> None:
    """Drop the 1 to L/2 layers of least influence (L,), as long as that is worth it."""
    order = np.argsort(influence, kind="stable")
    here = start
    for step in (start.path[i] for i in order[: trial.lab.layers // 2]):
        before, here = here, without(here, step)
        if not all_scored(trial, [here], "deletion"):
            return
        loss = task_costs(trial, [here]) - task_costs(trial, [before])
        if not worth(trial, task_costs(trial, [here])[0], float(loss.min())):
            return


def _endless(tasks: int, rng: np.random.Generator) -> Iterator[Array]:
    """Preferences over the tasks: those in the middle first, then at random."""
    yield from directions(tasks, tasks + 1)
    while True:
        yield rng.dirichlet(np.ones(tasks))
