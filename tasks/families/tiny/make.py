"""Makes the family `tiny`: items and tokenizer here, each model in a process of its own, experts two at a time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, cast

import numpy as np

from models.errors import BadInput, Failed
from tasks.families.tiny.code import CASES, case
from tasks.families.tiny.examples import Example
from tasks.families.tiny.expressions import run_expressions
from tasks.families.tiny.splits import TASKS, TaskExamples, make_splits
from tasks.families.tiny.tokenizer import train_tokenizer
from tasks.families.tiny.train import Job
from tasks.project.progress import Bar, Progress
from tasks.project.workspace import Workspace
from tasks.schema.params import Items, ZooParams

LANES = (("math",), ("translation", "code"))
"""What is trained at the same time: experts of one lane follow each other."""

STEPS_SHARE = {"translation": 0.9, "math": 1.0, "code": 0.6}
"""Optimiser steps of an expert over ``expert_steps``."""

GATED_SPLIT = "selection"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def make_family(workspace: Workspace, zoo: Path, items: Path, progress: Progress) -> dict[str, Any]:
    """Write models to ``zoo/{base,EXPERT}`` and items to ``items/tiny_TASK.SPLIT.jsonl``.

    Args:
        workspace: parameters and profile.
        zoo: folder that is there and empty.
        items: likewise.
        progress: told of every optimiser step.

    Returns:
        What the gates saw: ``scores`` by model and task on the `selection` split, ``distance`` by expert.

    Raises:
        BadInput: the profile has other experts than the tasks, or asks for more items than can be made.
        Failed: a training failed, or a gate is missed.
    """
    params, seed = workspace.params.zoo, workspace.params.seed
    examples = make_splits(_items(workspace), params, seed)
    check_disjoint(examples)
    write_items(examples, items, seed)
    training = {task: [(e.prompt, e.answer) for e in own.training] for task, own in examples.items()}
    scored = {task: [(e.prompt, e.answer) for e in own.items[GATED_SPLIT]] for task, own in examples.items()}
    tokenizer = train_tokenizer([p + a for pairs in training.values() for p, a in pairs], params.vocabulary)
    for name in ("base", *TASKS):
        tokenizer.save_pretrained(zoo / name)

    def job(task: str | None) -> Job:
        """The training of the base, or of a task's expert."""
        steps = params.base_steps if task is None else _expert_steps(task, params)
        base = None if task is None else str(zoo / "base")
        return Job(str(zoo / (task or "base")), base, task, seed, steps, params.model_dump(), training, scored)

    measured = train_all(job, LANES, "tasks.families.tiny.train", progress)
    gates = {
        "scores": {name: measured[name]["scores"] for name in ("base", *TASKS)},
        "distance": {name: measured[name]["distance"] for name in TASKS},
    }
    check_gates(gates, params)
    return gates


def write_items(examples: Mapping[str, TaskExamples], folder: Path, seed: int) -> None:
    """One file a task and split. A code item also holds its inputs and their values, each list as JSON text.

    Raises:
        Failed: an answer of the code task has no value.
    """
    generator = np.random.default_rng([seed, len(examples)])
    for task, own in examples.items():
        for split, chosen in own.items.items():
            extra: Sequence[dict[str, str]] = [{} for _ in chosen]
            if task == "code":
                extra = run_programs(chosen, generator)
            lines = [
                json.dumps(e.record(**fields), ensure_ascii=False) for e, fields in zip(chosen, extra, strict=True)
            ]
            (folder / f"tiny_{task}.{split}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


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


def check_gates(gates: Mapping[str, Any], params: ZooParams) -> None:
    """Refuse a family on which merging would be pointless.

    Raises:
        Failed: the first number out of its bounds, with the bound.
    """
    scores, distances = gates["scores"], gates["distance"]
    for task in distances:
        if scores[task][task] < params.min_own:
            raise Failed(
                f"zoo: the {task} expert scores {scores[task][task]:.3f} on its own task, below zoo.min_own"
                f" {params.min_own}; train longer (zoo.expert_steps) or take another seed"
            )
        found = [own[task] for own in scores.values()]
        if max(found) - min(found) < params.min_range:
            raise Failed(
                f"zoo: base and experts span {max(found) - min(found):.3f} on {task}, below zoo.min_range"
                f" {params.min_range}: within the noise of its items; train longer (zoo.expert_steps) or take another"
                " seed"
            )
        if not params.min_distance <= distances[task] <= params.max_distance:
            raise Failed(
                f"zoo: the {task} expert's task vector has relative length {distances[task]:.3f}, outside"
                f" zoo.min_distance {params.min_distance} to zoo.max_distance {params.max_distance};"
                " change zoo.expert_rate"
            )
    foreign = mean(scores[expert][task] for expert in distances for task in distances if task != expert)
    if foreign > params.max_foreign:
        raise Failed(
            f"zoo: the experts score {foreign:.3f} on the others' tasks, above zoo.max_foreign {params.max_foreign};"
            " train the base less (zoo.base_steps) or take another seed"
        )


def train_all(
    job: Callable[[str | None], Any], lanes: Sequence[Sequence[str]], module: str, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Train base, then experts; the first failure ends all of them.

    Args:
        job: gives the training of a task's expert, or of the base: a dataclass with ``steps``.
        lanes: what is trained at the same time; experts of one lane follow each other.
        module: does one job; see ``tasks.families.tiny.train``.
        progress: told of every optimiser step.

    Returns:
        The result of each by its name.

    Raises:
        Failed: a training failed.
    """
    return asyncio.run(_train_all(job, lanes, module, progress))


async def _train_all(
    job: Callable[[str | None], Any], lanes: Sequence[Sequence[str]], module: str, progress: Progress
) -> dict[str, dict[str, Any]]:
    measured: dict[str, dict[str, Any]] = {}

    async def lane(tasks: Sequence[str | None]) -> None:
        for task in tasks:
            one = job(task)
            name = task or "base"
            with progress.bar(f"train {name}", one.steps, "steps") as bar:
                measured[name] = await train_in_process(name, one, bar, module)

    await lane([None])
    try:
        async with asyncio.TaskGroup() as group:
            for tasks in lanes:
                group.create_task(lane(tasks))
    except* Failed as failures:
        raise failures.exceptions[0] from None
    return measured


async def train_in_process(name: str, job: Any, bar: Bar, module: str = "tasks.families.tiny.train") -> dict[str, Any]:
    """Run a module that does the job, and dies with this process because its standard input then ends.

    Raises:
        Failed: it ended without a result.
    """
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT},
        )
        # both are pipes, as asked for above
        stdin, stdout = cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)
        try:
            stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            async for line in stdout:
                event = json.loads(line)
                if "step" in event:
                    bar.advance(1, f"loss {event['loss']}")
                else:
                    result = event
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if result is None:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Failed(f"zoo: training of {name} ended with {process.returncode}: {' '.join(last) or 'no message'}")
    return result


def _expert_steps(task: str, params: ZooParams) -> int:
    return max(1, round(params.expert_steps * STEPS_SHARE[task]))


def _items(workspace: Workspace) -> dict[str, Items]:
    """Items of each task, as its objective says."""
    label = f"profiles/{workspace.name}.yaml"
    profile = workspace.profile
    if set(profile.experts) != set(TASKS):
        raise BadInput(f"{label}: experts: the family tiny has the experts {', '.join(TASKS)}, no others")
    by_task = {
        part.task.removeprefix("tiny_"): objective.items for objective in profile.objectives for part in objective.parts
    }
    if missing := [task for task in TASKS if task not in by_task]:
        raise BadInput(f"{label}: objectives: none has the task tiny_{missing[0]}; the family tiny needs one")
    return by_task
