"""Greedy deletion: the layers of a model go one by one, each the one whose removal costs a preference least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress

import numpy as np

from models.candidate import Candidate, SourceLayer
from models.front import REFERENCE, Array, scalarise
from models.search.trial import Trial

Known = dict[tuple[frozenset[int], int], Array]
"""Layers that were deleted, and one more → what its removal then added to the costs (K_tasks,), when last seen."""

KIND = "deletion"


def without(candidate: Candidate, *steps: SourceLayer) -> Candidate:
    """A path less some of its layers, with the same host."""
    return Candidate(candidate.host, tuple(step for step in candidate.path if step not in steps))


def delete_greedily(
    trial: Trial,
    start: Candidate,
    preference: Array,
    known: Known,
    items: int,
    shortest: int = 1,
    legal: Callable[[Sequence[Candidate]], Iterable[bool]] | None = None,
) -> list[Candidate]:
    """Drop the layer whose removal costs the utility least, again and again, as long as that is worth it.

    Lazily (Minoux 1978): by how much a layer's removal raised the costs is known from when it was tried last. Only the
    layer that looks best by that is tried anew, until one that was just tried is best. Where removals only cost more as
    others are made, in every task, that is what trying all layers at each step would choose. What was seen of another
    recipe in the same state is taken for this one's until it is tried.

    Args:
        trial: pays; where it can't any more, the deletion ends.
        start: an identity path, scored on so many items at least.
        preference: over the tasks (K_tasks,).
        known: grows by what is tried.
        items: of each task on which paths are scored, from the first.
        shortest: fewest layers that are left.
        legal: which of some paths are; by default all.

    Returns:
        The path after each deletion.
    """
    here, costs, gone = start, task_costs(trial, [start], items)[0], frozenset[int]()
    added: dict[SourceLayer, Array] = {}
    found: list[Candidate] = []
    while here.depth > shortest:
        steps = list(here.path)
        if legal is not None:
            steps = list(compress(steps, legal([without(here, step) for step in steps])))
        if not steps:
            break
        added.update((step, known[gone, step[1]]) for step in steps if (gone, step[1]) in known)
        tried: set[SourceLayer] = set()
        while True:
            asked = [step for step in steps if step not in added]
            if not asked:
                u = scalarise(costs + np.array([added[step] for step in steps]), preference)
                asked = [steps[int(u.argmax())]]
                if asked[0] in tried:
                    break
            children = [without(here, step) for step in asked]
            if trial.spend_on(children, KIND, items) < len(children):
                return found
            added.update(zip(asked, task_costs(trial, children, items) - costs, strict=True))
            known.update(((gone, step[1]), added[step]) for step in asked)
            tried.update(asked)
        loss = float(scalarise(costs, preference) - u.max())
        here, costs, gone = without(here, asked[0]), costs + added[asked[0]], gone | {asked[0][1]}
        found.append(here)
        if not worth(trial, costs, loss):
            break
    return found


def task_costs(trial: Trial, candidates: Sequence[Candidate], items: int | None = None) -> Array:
    """Costs (N, K_tasks) of the tasks alone, without clipping, over so many first items or over all.

    Which layer goes makes no difference to the depth, and where depth weighs most it would hide what the scores lose.
    """
    return trial.relative(candidates, items)[:, : trial.reward.tasks]


def worth(trial: Trial, costs: Array, loss: float) -> bool:
    """Whether to go on behind a deletion that led to such costs (K_tasks,) and cost so much utility.

    Where depth is an objective, as long as every score stays better than the reference point; else only if it gains.
    """
    if trial.reward.depth_counts:
        return bool((costs <= REFERENCE).all())
    return loss < trial.reward.depth_cost / trial.lab.layers
