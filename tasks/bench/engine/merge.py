"""`hm3 merge` against `mergekit-yaml`: whole processes, from four checkpoints on disk to the merged one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import safe_open

from tasks.bench.engine.families import SMALL, SMOLLM2_135M, write_family
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.bench.process import program, run_measured
from tasks.project.offline import offline_environment

METHODS = {"TIES": "ties", "DARE-TIES": "dare_ties"}
WEIGHTS, DENSITY = (0.6, 0.5, 0.4), 0.5

EXACT = 1e-6
"""Greatest difference of a weight that TIES may show."""

IN_DISTRIBUTION = 0.01
"""Greatest relative difference of the task vectors' L1 norms under DARE-TIES, whose masks are random."""


@benchmark(
    "merge",
    "`hm3 merge` against `mergekit-yaml`, whole processes, four SmolLM2-135M-sized checkpoints",
    "≥ 3× faster, at most half the memory",
    "TIES gives every weight within 1e-6, but for those of which a task vector's magnitude is just the threshold: "
    "of these mergekit's unstable sort keeps others; DARE-TIES, whose masks are random, gives the same tensors, "
    "shapes and number formats, and an L1 norm of the task vector within 1 %",
    cases=list(METHODS),
    measures=[Measure("*", "wall", bound=3.0), Measure("*", "memory", bound=2.0), Measure("*", "cpu")],
    repetitions=3,
)
def merge(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Merge with both tools in turn, each time from the same checkpoints into a new folder."""
    ours, theirs = program("hm3"), program("mergekit-yaml")
    with bench.progress.bar("writing checkpoints"):
        family = write_family(bench.folder / "models", 3, SMALL if bench.small else SMOLLM2_135M, bench.seed)
    environment = {**offline_environment(bench.workspace.state), "OMP_WAIT_POLICY": "passive"}
    for case, repetition in todo:
        seed = bench.seed + repetition
        recipe = bench.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(document(METHODS[case], family, seed)), encoding="utf-8")
        folders = bench.folder / "ours", bench.folder / "theirs"
        commands = (
            [ours, "merge", str(recipe), str(folders[0])],
            [theirs, str(recipe), str(folders[1]), "--quiet", "--no-write-model-card", "--random-seed", str(seed)],
        )
        one, other = (run_measured(command, bench.folder, environment) for command in commands)
        same, note = compare(METHODS[case], *folders, family)
        for folder in folders:
            shutil.rmtree(folder)
        yield [
            Row(case, repetition, "wall", "s", one.wall, other.wall, checked=same, note=note),
            Row(case, repetition, "memory", "MB", one.memory, other.memory, checked=same, note=note),
            Row(case, repetition, "cpu", "s", one.cpu, other.cpu, checked=same, note=note),
        ]


def document(method: str, family: dict[str, Path], seed: int) -> dict[str, object]:
    """A recipe that both tools read."""
    experts = [folder for name, folder in family.items() if name != "base"]
    return {
        "merge_method": method,
        "base_model": str(family["base"]),
        "models": [
            {"model": str(folder), "parameters": {"weight": weight, "density": DENSITY}}
            for folder, weight in zip(experts, WEIGHTS, strict=True)
        ],
        "parameters": {"seed": seed} if method == "dare_ties" else {},
        "dtype": "float32",
    }


def compare(method: str, ours: Path, theirs: Path, family: dict[str, Path]) -> tuple[bool, str]:
    """Whether two merges are the same as far as the method lets them be, and how far they differ."""
    greatest, norms, apart, unexplained = 0.0, [0.0, 0.0], 0, 0
    with ExitStack() as stack:
        one, other, base, *experts = (
            stack.enter_context(safe_open(folder / "model.safetensors", "pt"))
            for folder in (ours, theirs, family["base"], *(path for name, path in family.items() if name != "base"))
        )
        if set(one.keys()) != set(other.keys()):
            return False, "other tensors"
        for name in one.keys():  # noqa: SIM118 (the file isn't iterable)
            pair = [one.get_tensor(name), other.get_tensor(name)]
            if pair[0].shape != pair[1].shape or pair[0].dtype != pair[1].dtype:
                return False, f"{name}: other shape or dtype"
            start = base.get_tensor(name)
            for side, tensor in enumerate(pair):
                norms[side] += float((tensor - start).abs().sum(dtype=torch.float64))
            differs = (pair[0] - pair[1]).abs() > EXACT
            if method == "ties" and differs.any():
                free = at_a_threshold([expert.get_tensor(name) - start for expert in experts])
                apart += int((differs & free).sum())
                unexplained += int((differs & ~free).sum())
            greatest = max(greatest, float((pair[0] - pair[1]).abs().masked_fill(differs, 0).max()))
    if method == "ties":
        return unexplained == 0, f"greatest difference {greatest:.1e}, but for {apart} weights at the threshold"
    distance = abs(norms[0] / norms[1] - 1)
    return distance <= IN_DISTRIBUTION, f"L1 norms {distance:.2%} apart"


def at_a_threshold(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Entries at which the magnitude of a task vector is the smallest that TIES keeps of it, bool ``(…)``."""
    free = torch.zeros_like(deltas[0], dtype=torch.bool)
    for delta in deltas:
        magnitude, kept = delta.abs(), max(1, int(DENSITY * delta.numel()))
        free |= magnitude == float(
            np.partition(magnitude.flatten().numpy(), delta.numel() - kept)[delta.numel() - kept]
        )
    return free
