"""Trains one model of a made family in a process of its own, with one thread: the same bytes for the same job.

The job is one line of JSON on standard input; progress, and at last the result, are lines of JSON on standard output.
It ends with the process that asked for it.

A base's matrices learn by Muon (Jordan et al. 2024), all else by Adam; an expert goes on from the base with AdamW. In
every step layers are skipped at random as in stochastic depth (Huang et al. 2016), and some are passed twice, so that a
model bears changes of its path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tasks.project.processes import end_with_owner
from tasks.schema.params import ZooParams

COOLING = 0.5
"""Last share of the base's steps in which its learning rates fall to zero."""

RAMP = 0.6
"""First share of the base's steps in which skipping and repeating grow to their full rate."""

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Training:
    """What to train; each family adds on what."""

    out: str
    """Folder of the model."""
    base: str | None
    """Folder of the base, from which an expert goes on."""
    task: str | None
    """The expert's own task."""
    seed: int
    steps: int
    params: dict[str, Any]
    """``ZooParams``."""


Job = TypeVar("Job", bound=Training)


@dataclass(frozen=True)
class Plan:
    """How a model learns."""

    schedules: list[LambdaLR]
    """One an optimiser."""
    strength: float
    """Of the rates of skipping and repeating, their full size."""
    ramp: float
    """Steps until they have it."""


def base_plan(model: nn.Module, inner: Collection[str], params: ZooParams, steps: int) -> Plan:
    """Muon for the parameters named ``inner`` and Adam for all else, constant and then falling to zero."""
    matrices = [one for name, one in model.named_parameters() if name in inner]
    others = [one for name, one in model.named_parameters() if name not in inner]
    muon = torch.optim.Muon(matrices, lr=params.muon_rate, weight_decay=0.0)
    adam = torch.optim.Adam(others, lr=params.adam_rate, betas=BETAS)
    schedules = [LambdaLR(one, lambda step: min(1.0, (1 - step / steps) / COOLING)) for one in (muon, adam)]
    return Plan(schedules, 1.0, RAMP * steps)


def expert_plan(model: nn.Module, params: ZooParams, steps: int) -> Plan:
    """AdamW for what requires a gradient, falling to zero."""
    tuned = [one for one in model.parameters() if one.requires_grad]
    adam = torch.optim.AdamW(tuned, lr=params.expert_rate, betas=BETAS, weight_decay=0.0)
    return Plan([LambdaLR(adam, lambda step: 1 - step / steps)], 0.5, 1.0)


def descend(model: nn.Module, plan: Plan, steps: int, loss_at: Callable[[float], Tensor]) -> None:
    """Take the steps, and report each.

    ``loss_at`` gives the loss of the next batch, at the present rate of skipping and repeating over their full one.
    """
    for step in range(steps):
        loss = loss_at(plan.strength * min(1.0, step / plan.ramp))
        loss.backward()  # type: ignore[no-untyped-call]
        for schedule in plan.schedules:
            schedule.optimizer.step()
            schedule.step()
        # zeros, not None: a layer that the next step skips keeps its momentum, and Muon its step
        model.zero_grad(set_to_none=False)
        report(step=step + 1, loss=round(loss.item(), 2))


def draw_path(params: ZooParams, strength: float, generator: np.random.Generator) -> list[int]:
    """Layers in their order, each skipped or passed twice at random; never none."""
    while True:
        draws = generator.random(params.layers)
        times = np.where(draws < strength * params.skip, 0, np.where(draws > 1 - strength * params.repeat, 2, 1))
        if times.any():
            return [int(layer) for layer in np.repeat(np.arange(params.layers), times)]


def distance(parameters: Sequence[Tensor], base: Sequence[Tensor]) -> float:
    """Length of the task vector over the length of the base, ‖Θ − Θ₀‖ / ‖Θ₀‖."""
    moved = sum(
        float((ours.detach() - theirs).double().square().sum()) for ours, theirs in zip(parameters, base, strict=True)
    )
    return float((moved / sum(float(theirs.double().square().sum()) for theirs in base)) ** 0.5)


def report(**fields: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def do(kind: Callable[..., Job], train: Callable[[Job], dict[str, Any]]) -> None:
    """Read the job, do it."""
    job = kind(**json.loads(sys.stdin.readline()))
    end_with_owner()
    torch.set_num_threads(1)
    report(**train(job))
