"""Items of the splits, and what the models are trained on: a function of the seed and of the numbers asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.errors import BadInput
from tasks.families.tiny import arithmetic, code, translation
from tasks.families.tiny.examples import Example, divide
from tasks.objectives.items import SPLITS
from tasks.schema.params import ZooParams
from tasks.schema.profile import Items

TASKS = {"translation": translation, "math": arithmetic, "code": code}


@dataclass(frozen=True)
class TaskExamples:
    """Training examples of one task, and the items of its splits."""

    training: list[Example]
    items: dict[str, list[Example]]


def make_splits(items: Mapping[str, Items], params: ZooParams, seed: int) -> dict[str, TaskExamples]:
    """Examples of every task.

    The items of a task are drawn from its held-out prompts, every split with the same mixture of kinds, and shuffled
    before they are split. The seed decides on the order of examples, and on which prompts are held out.

    Raises:
        BadInput: a task can't make as many.
    """
    made = {}
    for number, (task, grammar) in enumerate(TASKS.items()):
        generator = np.random.default_rng([seed, number])
        seen, held_out = divide(grammar.kinds(), seed, generator)
        sizes = [getattr(items[task], split) for split in SPLITS]
        count = getattr(params, f"{task}_examples")
        for field, asked, there in ((f"zoo.{task}_examples", count, seen), (f"items of {task}", sum(sizes), held_out)):
            if asked > len(there):
                raise BadInput(f"{field}: {asked} asked for, the made family has {len(there)}; ask for fewer")
        drawn = [held_out[index] for index in generator.permutation(sum(sizes))]
        ends = np.cumsum([0, *sizes])
        splits = {split: drawn[ends[i] : ends[i + 1]] for i, split in enumerate(SPLITS)}
        made[task] = TaskExamples(seen[:count], splits)
    return made
