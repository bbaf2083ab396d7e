"""Methods that take the weight of a linear layer as a matrix, and merge in the spaces that its task vectors span.

A task vector is Δ_k = W_k − W₀ ``(m, n)`` with m outputs and n inputs. Every other tensor (norms, biases, embedding,
head) gets Θ₀ + λ mean(w_k δ_k), as the authors of TSV-Merge and Iso-C have it; those of WUDI leave it at the base. All
is computed in float32 at least.

Directions whose singular value is rounding noise take no part: those of experts with fewer than min(m, n) directions,
such as merged low-rank adapters, are arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.merge.competition import ONE, WEIGHTS
from models.merge.registry import Method, Parameter, SearchParameter
from models.merge.thinning import pieces

LENGTH = Parameter("lambda", float, 1.0)
LAMBDA = SearchParameter("lambda", 0.5, 2.0, 1.0, per_model=False)


@Method(
    "tsv_m",
    "TSV-Merge",
    "https://arxiv.org/abs/2412.00081",
    (WEIGHTS, LENGTH),
    (ONE, LAMBDA),
    base="required",
    by_matrix=True,
    in_mergekit=False,
)
def tsv_m(
    base: Tensor, experts: Sequence[Tensor], *, weight: Sequence[float], lambda_: float, linear_layer: bool
) -> Tensor:
    """W₀ + λ Û S V̂ᵀ: the first min(m, n) ÷ K singular triples of each w_k Δ_k, U and V made orthogonal together.

    Û is the orthogonal matrix nearest to the concatenated U, and V̂ likewise (Gargiulo et al. 2025,
    their code).
    """
    if not linear_layer:
        return mean_task_vector(base, experts, weight, lambda_)
    deltas = _weighted(base, experts, weight)
    share = min(base.shape) // len(experts)
    triples = [tuple(part[..., :share] for part in _svd(delta)) for delta in deltas]
    left, values, right = (torch.cat(parts, dim=-1) for parts in zip(*triples, strict=True))
    if not len(values):
        return base.clone()
    return _moved(base, (_nearest_orthogonal(left) * values) @ _nearest_orthogonal(right).mT, lambda_)


@Method(
    "iso_c",
    "Iso-C",
    "https://arxiv.org/abs/2502.04959",
    (WEIGHTS, LENGTH),
    (ONE, LAMBDA),
    base="required",
    by_matrix=True,
    in_mergekit=False,
)
def iso_c(
    base: Tensor, experts: Sequence[Tensor], *, weight: Sequence[float], lambda_: float, linear_layer: bool
) -> Tensor:
    """W₀ + λ mean(σ) U Vᵀ of Σ w_k Δ_k = U diag(σ) Vᵀ: all directions get one length (Marczak et al. 2025)."""
    if not linear_layer:
        return mean_task_vector(base, experts, weight, lambda_)
    left, values, right = _svd(torch.stack(_weighted(base, experts, weight)).sum(dim=0))
    return _moved(base, (left @ right.mT) * values.mean() if len(values) else torch.zeros_like(base), lambda_)


@Method(
    "wudi",
    "WUDI-Merging",
    "https://arxiv.org/abs/2503.08099",
    (WEIGHTS, LENGTH, Parameter("steps", int, 300, low=0), Parameter("lr", float, 1e-5, low=0.0)),
    (ONE, SearchParameter("lambda", 0.5, 1.5, 1.0, per_model=False)),
    base="required",
    by_matrix=True,
    in_mergekit=False,
)
def wudi(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    lambda_: float,
    steps: int,
    lr: float,
    linear_layer: bool,
) -> Tensor:
    """W₀ + λ Δ, Δ from Σ w_k Δ_k by Adam on Σ_k |(Δ − w_k Δ_k) Δ_kᵀ|² ÷ |Δ_k|² (Cheng et al. 2025).

    The gradient 2 (Δ A − B) has constant A = Σ Δ_kᵀΔ_k ÷ |Δ_k|² and B = Σ w_k Δ_k Δ_kᵀΔ_k ÷ |Δ_k|², so a step takes
    one product of matrices however many experts there are. ``steps`` and ``lr`` are the authors' for vision models.
    """
    if not linear_layer:
        return mean_task_vector(base, experts, weight, lambda_)
    deltas = _weighted(base, experts, [1.0] * len(experts))
    merged = torch.stack(_weighted(base, experts, weight)).sum(dim=0)
    gram, target = merged.new_zeros(base.shape[1], base.shape[1]), torch.zeros_like(merged)
    for share, delta in zip(weight, deltas, strict=True):
        if (energy := delta.square().sum()) > 0:
            inputs = delta.T @ delta / energy
            gram += inputs
            target += share * (delta @ inputs)
    optimiser = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        merged.grad = 2 * (merged @ gram - target)
        optimiser.step()
    return _moved(base, merged, lambda_)


def mean_task_vector(base: Tensor, experts: Sequence[Tensor], weight: Sequence[float], lambda_: float) -> Tensor:
    """Θ₀ + λ mean(w_k δ_k) for tensors of any shape."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    start, tuned = base.reshape(-1), [expert.reshape(-1) for expert in experts]
    result = torch.empty_like(start)
    for piece in pieces(len(start)):
        merged = torch.zeros_like(start[piece], dtype=dtype)
        for expert, share in zip(tuned, weight, strict=True):
            merged.add_(expert[piece].to(dtype) - start[piece], alpha=share)
        result[piece] = (start[piece] + merged.mul_(lambda_ / len(experts))).to(base.dtype)
    return result.view_as(base)


def _weighted(base: Tensor, experts: Sequence[Tensor], weight: Sequence[float]) -> list[Tensor]:
    """w_k Δ_k."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    return [(expert.to(dtype) - base).mul_(share) for expert, share in zip(experts, weight, strict=True)]


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U ``(m, r)``, σ ``(r,)`` and V ``(n, r)`` with r the numerical rank (as ``torch.linalg.matrix_rank`` has it)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    noise = values[:1] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    rank = int((values > noise).sum())
    return left[:, :rank], values[:rank], right[:rank].mT


def _nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows) that is nearest to ``matrix``: its polar factor."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest


def _moved(base: Tensor, delta: Tensor, lambda_: float) -> Tensor:
    return (delta * lambda_).add_(base).to(base.dtype)
