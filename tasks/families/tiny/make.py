"""Makes the family `tiny`: items and tokenizer here, each model in a process of its own, experts two at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import Failed
from tasks.families.made import GATED_SPLIT, check_profile, trained
from tasks.families.tiny.code import CASES, case
from tasks.families.tiny.examples import Example
from tasks.families.tiny.expressions import run_expressions
from tasks.families.tiny.splits import TASKS, TaskExamples, make_splits
from tasks.families.tiny.tokenizer import train_tokenizer
from tasks.families.tiny.train import Job
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace

LANES = (("math",), ("translation", "code"))
"""What is trained at the same time: experts of one lane follow each other."""

CALIBRATING = 600
"""Training examples of a task that are written beside the items: 10,000 tokens and more."""

STEPS_SHARE = {"translation": 0.9, "math": 1.0, "code": 0.6}
"""Optimiser steps of an expert over ``expert_steps``."""


def make_family(workspace: Workspace, zoo: Path, items: Path, progress: Progress) -> dict[str, Any]:
    """Write models to ``zoo/{base,EXPERT}`` and items to ``items/tiny_TASK.SPLIT.jsonl``; both folders are empty.

    Some training examples lie beside them, as split ``train``.

    Returns:
        What the gates saw; see :func:`trained`, also for what is raised.

    Raises:
        BadInput: the profile has other experts than the tasks, or asks for more items than can be made.
    """
    params, seed = workspace.params.zoo, workspace.params.seed
    counts = {part.task.removeprefix("tiny_"): one.items for one in workspace.profile.objectives for part in one.parts}
    check_profile(workspace, TASKS, counts, "task tiny_")
    examples = make_splits(counts, params, seed)
    check_disjoint(examples)
    write_items(examples, items, seed)
    write_training(examples, items, seed)
    training = {task: [(e.prompt, e.answer) for e in own.training] for task, own in examples.items()}
    scored = {task: [(e.prompt, e.answer) for e in own.items[GATED_SPLIT]] for task, own in examples.items()}
    tokenizer = train_tokenizer([p + a for pairs in training.values() for p, a in pairs], params.vocabulary)
    for name in ("base", *TASKS):
        tokenizer.save_pretrained(zoo / name)

    return trained(workspace, zoo, Job, {"training": training, "scored": scored}, STEPS_SHARE, LANES, progress)


def write_items(examples: Mapping[str, TaskExamples], folder: Path, seed: int) -> None:
    """One file a task and split. A code item also holds its inputs and their values, each list as JSON text.

    Raises:
        Failed: an answer of the code task has no value.
    """
    generator = np.random.default_rng([seed, len(examples)])
    for task, own in examples.items():
        for split, chosen in own.items.items():
            write_rows(folder / f"tiny_{task}.{split}.jsonl", task, chosen, generator)


def write_training(examples: Mapping[str, TaskExamples], folder: Path, seed: int) -> None:
    """The first training examples of each task as ``tiny_TASK.train.jsonl``, with the fields of its items.

    Raises:
        Failed: an answer of the code task has no value.
    """
    generator = np.random.default_rng([seed, len(examples), 1])
    for task, own in examples.items():
        write_rows(folder / f"tiny_{task}.train.jsonl", task, own.training[:CALIBRATING], generator)


def write_rows(path: Path, task: str, chosen: Sequence[Example], generator: np.random.Generator) -> None:
    """Examples of a task as JSON lines."""
    extra: Sequence[dict[str, str]] = run_programs(chosen, generator) if task == "code" else [{} for _ in chosen]
    lines = [json.dumps(e.record(**fields), ensure_ascii=False) for e, fields in zip(chosen, extra, strict=True)]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def run_programs(chosen: Sequence[Example], generator: np.random.Generator) -> list[dict[str, str]]:
    """Inputs of each program and its values on them. They are JSON text because a column of a data set has one type."""
    inputs = [[case(example.variable, generator) for _ in range(CASES)] for example in chosen]
    outputs = run_expressions([example.answer for example in chosen], inputs)
    for example, values in zip(chosen, outputs, strict=True):
        if None in values:
            raise Failed(f"zoo: program {example.answer.strip()!r} has no value on one of its inputs")
    return [{"inputs": json.dumps(a), "outputs": json.dumps(b)} for a, b in zip(inputs, outputs, strict=True)]


def check_disjoint(examples: Mapping[str, TaskExamples]) -> None:
    """Refuse a prompt that is in two splits, in training and a split, or twice in one.

    Raises:
        Failed: there is one.
    """
    for task, own in examples.items():
        seen: dict[str, str] = {}
        for split, chosen in {"training": own.training, **own.items}.items():
            for example in chosen:
                if example.prompt in seen:
                    raise Failed(f"zoo: {task}: prompt {example.prompt!r} is in {seen[example.prompt]} and in {split}")
                seen[example.prompt] = split
