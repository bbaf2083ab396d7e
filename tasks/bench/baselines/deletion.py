"""Layer deletion from the best recipes: greedily by what it costs, or at once by block influence.

No path rule binds these: any layer may go. Where depth is an objective a deletion is worth its loss as long as every
score stays better than the reference point; where it isn't, only if it gains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from models.candidate import Candidate, SourceLayer
from models.front import Array, scalarise
from models.merge.space import RecipeSpace
from models.preferences import preferences
from models.search.anchors import choose_anchors
from models.search.environment import PathRules
from models.search.trial import Trial
from tasks.bench.baselines.baseline import all_scored, directions, excess, plain, relative
from tasks.bench.baselines.evolution import IDLE
from tasks.bench.baselines.recipes import started

FIRST_GREEDY, FIRST_INFLUENCE = 0.35, 0.5
"""Share of the budget that NSGA-II over recipes has first. A greedy path costs several times as much as one by block
influence, which takes one candidate a layer."""
STARTS = 16
"""Recipes that are cut by block influence, at most, before more recipes are sought."""

Known = dict[tuple[frozenset[int], int], Array]
"""Layers that were deleted, and one more → what its removal then added to the costs (K_tasks,), when last seen."""


def without(candidate: Candidate, *steps: SourceLayer) -> Candidate:
    """A path less some of its layers, with the same host."""
    return Candidate(candidate.host, tuple(step for step in candidate.path if step not in steps))


def greedy_deletion(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """Greedy deletion for one preference after the other; see ``BASELINES``."""
    search = started(trial, space, rng, int(FIRST_GREEDY * trial.budget))
    known: Known = {}
    idle = 0
    for preference in _endless(trial.reward.tasks, rng):
        before = trial.spent
        starts = plain(trial)
        start = starts[int(scalarise(task_costs(trial, starts), preference).argmax())]
        delete_greedily(trial, start, preference, known)
        idle = idle + 1 if trial.spent == before else 0
        if trial.left < trial.whole or idle == IDLE:
            break
    search.run(trial.budget)


def delete_greedily(trial: Trial, start: Candidate, preference: Array, known: Known) -> list[Candidate]:
    """Drop the layer whose removal costs the utility least, again and again, as long as that is worth it.

    Lazily (Minoux 1978): by how much a layer's removal raised the costs is known from when it was tried last. Only the
    layer that looks best by that is tried anew, until one that was just tried is best. Where removals only cost more as
    others are made, in every task, that is what trying all layers at each step would choose. What was seen of another
    recipe in the same state is taken for this one's until it is tried.

    Args:
        trial: pays.
        start: an identity path, scored.
        preference: over the tasks (K_tasks,).
        known: grows by what is tried.

    Returns:
        The path after each deletion.
    """
    here, costs, gone = start, task_costs(trial, [start])[0], frozenset[int]()
    added: dict[SourceLayer, Array] = {}
    found: list[Candidate] = []
    while here.depth > 1:
        added.update((step, known[gone, step[1]]) for step in here.path if (gone, step[1]) in known)
        tried: set[SourceLayer] = set()
        while True:
            if untried := [step for step in here.path if step not in added]:
                steps = untried
            else:
                u = scalarise(costs + np.array([added[step] for step in here.path]), preference)
                steps = [here.path[int(u.argmax())]]
                if steps[0] in tried:
                    break
            children = [without(here, step) for step in steps]
            if not all_scored(trial, children, "deletion"):
                return found
            added.update(zip(steps, task_costs(trial, children) - costs, strict=True))
            known.update(((gone, step[1]), added[step]) for step in steps)
            tried.update(steps)
        loss = float(scalarise(costs, preference) - u.max())
        here, costs, gone = without(here, steps[0]), costs + added[steps[0]], gone | {steps[0][1]}
        found.append(here)
        if not worth(trial, here, loss):
            break
    return found


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
        if not worth(trial, here, float(loss.min())):
            return


def task_costs(trial: Trial, candidates: Sequence[Candidate]) -> Array:
    """Costs (N, K_tasks) of the tasks alone, without clipping.

    Which layer goes makes no difference to the depth, and where depth weighs most it would hide what the scores lose.
    """
    return relative(trial, candidates)[:, : trial.reward.tasks]


def worth(trial: Trial, candidate: Candidate, loss: float) -> bool:
    """Whether to go on behind a deletion that cost so much utility."""
    if trial.reward.tasks < len(trial.reward.scale.names):
        return bool(excess(trial, [candidate])[0] == 0)
    return loss < trial.reward.depth_cost / trial.lab.layers


def _endless(tasks: int, rng: np.random.Generator) -> Iterator[Array]:
    """Preferences over the tasks: those in the middle first, then at random."""
    yield from directions(tasks, tasks + 1)
    while True:
        yield rng.dirichlet(np.ones(tasks))
