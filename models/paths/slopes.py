"""How the scores of a merge change with its coefficients: one forward and one backward pass of the merged model.

θ_l = Θ₀_l + Σ_k a_kl δ_kl is built a layer at a time as a part of the graph. What comes back through a tensor is at
once reduced to ⟨δ_k, ∂/∂θ⟩, a number an expert: there are no gradients of the model's size, and no optimiser's state.
Batches run in a thread each and their slopes are added in order, so that they don't depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.candidate import Candidate
from models.front import Array
from models.paths.ends import SOFTNESS, Ends
from models.paths.pool import Filled, Pool, shallow_clone
from models.paths.prefix import Requests, Scorable
from models.paths.threads import single_threads


@dataclass(frozen=True)
class Choice:
    """An item whose answer is the likeliest of several requests."""

    rows: tuple[int, ...]
    """Its requests."""
    right: int
    """Which of them is the right one."""
    factors: tuple[float, ...]
    """What each log-likelihood is multiplied by before they are compared: one over its length, or 1."""
    gain: float
    """What the right choice is worth."""


@dataclass(frozen=True)
class Lesson:
    """Items of one task with their right answers, and what answers are worth.

    An item is worth its ``offset``, and for each of its requests ``slope`` × log-likelihood + ``gain`` × whether greedy
    decoding gives it; items of several choices are told by :class:`Choice`.
    """

    requests: Requests
    items: int
    offset: float
    """The sum over its items."""
    slope: Tensor
    """``(R,)`` float64."""
    gain: Tensor
    """``(R,)`` float64."""
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Taught:
    """What a merge is worth on a lesson, and how that changes with its coefficients."""

    soft: float
    """Mean value of its items, where an answer that is nearly given counts nearly."""
    real: float
    """The same as the metric has it."""
    slopes: Array
    """∂ soft / ∂ a, ``(E, L)``."""


@dataclass(frozen=True)
class Slopes:
    """The job (:class:`models.paths.pool.Job`) for lessons under one merge."""

    experts: tuple[str, ...]
    """Names of the E experts in the pool, whose base is ``base``."""
    weights: Array
    """Coefficients a ``(E, L)``; what lies outside the layers goes with the first of them, as mergekit has it."""
    lessons: tuple[Lesson, ...]
    checkpointing: bool = False
    """Compute each layer a second time instead of keeping what it needs for the way back."""

    def run(
        self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]
    ) -> list[list[Taught | None]]:
        """What is taught by each lesson, None where a number is not finite; the same for every candidate."""
        workers = torch.get_num_threads() if pool.device.type == "cpu" else 1
        work = [(lesson, batch) for lesson in self.lessons for batch in lesson.requests.batches]
        with single_threads(workers) as threads:
            parts = list(threads.map(lambda one: self._slope(pool, *one), work))
        found: list[Taught | None] = []
        for lesson in self.lessons:
            mine = [part for part, (other, _) in zip(parts, work, strict=True) if other is lesson]
            soft, real = (lesson.offset + np.sum([sums for sums, _ in mine], axis=0)) / lesson.items
            slopes = torch.stack([one for _, one in mine]).sum(dim=0) / lesson.items
            sound = bool(torch.isfinite(slopes).all()) and np.isfinite(soft)
            found.append(Taught(float(soft), float(real), slopes.numpy()) if sound else None)
        on_done(len(candidates))
        return [found for _ in candidates]

    def _slope(self, pool: Pool, lesson: Lesson, batch: Scorable) -> tuple[Array, Tensor]:
        """Sums of the values of a batch's items, soft and real, and the slopes of the first."""
        with torch.inference_mode(False), torch.enable_grad():
            weights = torch.tensor(self.weights, requires_grad=True)
            on_device = batch.to(pool.device)
            ends, hidden = merged_states(pool, self.experts, weights, on_device.inputs, self.checkpointing)
            likelihood, sure, given = on_device.soft(ends, hidden)
            soft, real = values(lesson, batch.rows, likelihood.double().cpu(), sure.double().cpu(), given.cpu())
            (slopes,) = torch.autograd.grad(soft, weights)
        return np.array([float(soft.detach()), real]), slopes


def values(lesson: Lesson, rows: Tensor, likelihood: Tensor, sure: Tensor, given: Tensor) -> tuple[Tensor, float]:
    """Sum of the values of a batch's items without their offsets, soft and real.

    Args:
        lesson: what its items are worth.
        rows: which request each row is, ``(B,)``.
        likelihood: of each answer, ``(B,)``.
        sure: how surely greedy decoding gives it, ``(B,)``.
        given: whether it does, ``(B,)``.
    """
    slope, gain = lesson.slope[rows], lesson.gain[rows]
    soft = (slope * likelihood + gain * sure).sum()
    real = float((slope * likelihood.detach() + gain * given).sum())
    place = {row: number for number, row in enumerate(rows.tolist())}
    for choice in lesson.choices:
        if choice.rows[0] not in place:
            continue
        compared = torch.stack([likelihood[place[row]] * f for row, f in zip(choice.rows, choice.factors, strict=True)])
        others = torch.cat([compared[: choice.right], compared[choice.right + 1 :]])
        lead = compared[choice.right] - others.max()
        soft = soft + choice.gain * torch.sigmoid(lead / SOFTNESS)
        real += choice.gain * float(lead > 0)
    return soft, real


def merged_states(
    pool: Pool, experts: Sequence[str], weights: Tensor, inputs: Tensor, checkpointing: bool = False
) -> tuple[Ends, Tensor]:
    """The merge's ends, and its last layer's hidden states ``(B, T, D)``, with slopes in the weights ``(E, L)``."""
    models = ("base", *experts)
    whole = merged_module(weights[:, 0], [pool.ends(model).model for model in models])
    ends = pool.around(whole)
    hidden, calls = ends.embed(inputs)

    def layer(number: int, hidden: Tensor, own: Tensor) -> Tensor:
        block = merged_module(own, [pool.block(model, number) for model in models])
        return calls[number].replay(block, hidden)

    for number in range(pool.layers):
        own = weights[:, number]
        if checkpointing:
            hidden = checkpoint(partial(layer, number), hidden, own, use_reentrant=False)
        else:
            hidden = layer(number, hidden, own)
    return ends, hidden


def merged_module(weights: Tensor, models: Sequence[Filled]) -> Filled:
    """A module of the base, first of the models, and E experts, whose tensors have slopes in the weights ``(E,)``."""
    base, *experts = models
    clone = shallow_clone(base)
    others = [dict(_tensors(expert)) for expert in experts]
    merged: dict[int, Tensor] = {}
    for name, tensor in _tensors(base):
        if id(tensor) not in merged:  # a tied head is the embedding's tensor
            merged[id(tensor)] = Merged.apply(weights, tensor, *(one[name] for one in others))  # type: ignore[no-untyped-call]
        owner, _, leaf = name.rpartition(".")
        clone.get_submodule(owner)._parameters[leaf] = merged[id(tensor)]  # type: ignore[assignment] # part of a graph
    return clone


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_parameters(remove_duplicate=False)


class Merged(torch.autograd.Function):
    """Θ₀ + Σ_k a_k δ_k, through which slopes reach the coefficients alone."""

    @staticmethod
    def forward(context: Any, weights: Tensor, base: Tensor, *experts: Tensor) -> Tensor:
        """The merged tensor, from coefficients ``(E,)``, in the base's dtype."""
        context.models = base, experts
        context.dtype = weights.dtype
        merged = base.clone()
        for weight, expert in zip(weights.tolist(), experts, strict=True):
            merged.add_(expert - base, alpha=weight)
        return merged

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """⟨δ_k, ∂/∂θ⟩ of each expert."""
        base, experts = context.models
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        gradient = gradients[0].to(wide).flatten()
        slopes = [torch.dot((expert - base).to(wide).flatten(), gradient) for expert in experts]
        return torch.stack(slopes).to("cpu", context.dtype), None, *(None for _ in experts)
