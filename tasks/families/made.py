"""What the made families share: a process a training, and gates that say whether merging is worth it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, cast

from models.errors import BadInput, Failed
from tasks.families.training import Training
from tasks.project.processes import OWNER
from tasks.project.progress import Bar, Progress
from tasks.project.workspace import Workspace
from tasks.schema.params import ZooParams

GATED_SPLIT = "selection"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def check_profile(workspace: Workspace, tasks: Collection[str], named: Collection[str], what: str) -> None:
    """Raises BadInput if the profile has other experts than the family's tasks, or names too few as objectives."""
    label, family = f"profiles/{workspace.name}.yaml", workspace.profile.made
    if set(workspace.profile.experts) != set(tasks):
        raise BadInput(f"{label}: experts: the family {family} has the experts {', '.join(tasks)}, no others")
    if missing := [task for task in tasks if task not in named]:
        raise BadInput(f"{label}: objectives: none has the {what}{missing[0]}; the family {family} needs one")


def trained(
    workspace: Workspace,
    zoo: Path,
    kind: Callable[..., Training],
    data: Mapping[str, Any],
    shares: Mapping[str, float],
    lanes: Sequence[Sequence[str]],
    progress: Progress,
) -> dict[str, Any]:
    """Train base, then experts, and check the gates; the first failure ends all of them.

    Args:
        workspace: its parameters say how long is trained, and the gates' bounds.
        zoo: folder of the models.
        kind: of trainings, in the module that does one.
        data: what it adds to every training.
        shares: optimiser steps of each task's expert over ``expert_steps``.
        lanes: what is trained at the same time; experts of one lane follow each other.
        progress: told of every optimiser step.

    Returns:
        What the gates saw: ``scores`` by model and task on the `selection` split, ``distance`` by expert.

    Raises:
        Failed: a training failed, or a gate is missed.
    """
    params, measured = workspace.params.zoo, dict[str, dict[str, Any]]()

    async def lane(tasks: Sequence[str | None]) -> None:
        for task in tasks:
            name, base = task or "base", str(zoo / "base") if task else None
            steps = max(1, round(params.expert_steps * shares[task])) if task else params.base_steps
            job = kind(str(zoo / name), base, task, workspace.params.seed, steps, params.model_dump(), **data)
            with progress.bar(f"train {name}", steps, "steps") as bar:
                measured[name] = await train_in_process(name, job, bar)

    async def all_lanes() -> None:
        await lane([None])
        try:
            async with asyncio.TaskGroup() as group:
                for tasks in lanes:
                    group.create_task(lane(tasks))
        except* Failed as failures:
            raise failures.exceptions[0] from None

    asyncio.run(all_lanes())
    gates = {
        "scores": {name: measured[name]["scores"] for name in ("base", *shares)},
        "distance": {name: measured[name]["distance"] for name in shares},
    }
    check_gates(gates, params)
    return gates


async def train_in_process(name: str, job: Training, bar: Bar) -> dict[str, Any]:
    """Run the module of a training, which does it and ends with this process.

    Raises:
        Failed: it ended without a result.
    """
    result: dict[str, Any] | None = None
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", type(job).__module__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT, OWNER: str(os.getpid())},
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
