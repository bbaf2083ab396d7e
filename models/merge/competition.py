"""Methods that weigh every entry of a task vector δ_k = Θ_k − Θ₀ by how it stands to the other task vectors.

Tensors have any shape, here ``(…)`` of n entries; pieces of K of them are stacked to ``(K, m)``. What a method needs to
know of a whole tensor, thresholds and norms, is found first. The papers treat the whole model as one vector; here, as
in mergekit, each tensor is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.merge.registry import Method, Parameter, SearchParameter
from models.merge.thinning import SORTED, largest, pieces, ranked

WEIGHTS = Parameter("weight", float, 1.0, scope="expert")
"""Weights of methods that merge all experts alike in their papers."""
# As wide as the range of the methods that add task vectors, with which the search shares it.
ONE = SearchParameter("weight", 0.0, 1.2, 1.0, per_model=True)
CLAMPED = 1e-4
"""Share of the magnitudes that PCB-Merging clamps at either end."""


@Method(
    "sce",
    "SCE",
    "https://arxiv.org/abs/2408.07990",
    (Parameter("int8_mask", bool, False), Parameter("select_topk", float, 1.0, low=0.0, high=1.0)),
    # From a few entries to all of them; which number is best depends on how much the experts differ.
    (SearchParameter("select_topk", 0.05, 1.0, 0.1, per_model=False),),
    base="required",
)
def sce(base: Tensor, experts: Sequence[Tensor], *, int8_mask: bool, select_topk: float) -> Tensor:
    """Θ₀ + Σ s_k δ̂_k ÷ Σ s_k over the δ̂_k of the elected sign, s_k = mean(δ̂_k²) (Wan et al. 2024).

    δ̂_k has the entries whose variance over the experts is among the share ``select_topk`` of the variances that are
    not zero. Order and rounding follow mergekit; ``int8_mask`` has no effect.
    """
    start, tuned = base.reshape(-1), [expert.reshape(-1) for expert in experts]
    keep = _most_varied(start, tuned, select_topk) if select_topk < 1 else None

    def deltas(piece: slice) -> Tensor:
        stacked = torch.stack([expert[piece] - start[piece] for expert in tuned])
        return stacked if keep is None else stacked.mul_(keep[piece])

    squares = []
    for expert in tuned:
        delta = expert - start if keep is None else (expert - start).mul_(keep)
        squares.append(delta.square_().mean())
    energies = torch.stack(squares)
    total = float(energies.sum())
    weights = torch.ones_like(energies) / len(tuned) if abs(total) < 1e-6 else energies / total
    result = torch.empty_like(start)
    for piece in pieces(len(start)):
        stacked = deltas(piece)
        positive = stacked.sum(dim=0) >= 0
        agrees = ((stacked > 0) == positive).logical_and_(stacked != 0)
        shares = weights.unsqueeze(1) * agrees
        merged = stacked.mul_(shares).sum(dim=0).div_(shares.sum(dim=0).clamp_(min=1e-6))
        torch.add(start[piece], merged, out=result[piece])
    return result.view_as(base)


@Method(
    "pcb",
    "PCB-Merging",
    "https://arxiv.org/abs/2410.02396",
    (WEIGHTS, Parameter("density", float, 0.1, low=0.0, high=1.0), Parameter("lambda", float, 1.0)),
    # The authors keep 5 or 10 % and search λ within 0.5 to 3.
    (
        ONE,
        SearchParameter("density", 0.05, 0.4, 0.1, per_model=False),
        SearchParameter("lambda", 0.5, 2.0, 1.0, per_model=False),
    ),
    base="required",
    in_mergekit=False,
)
def pcb(base: Tensor, experts: Sequence[Tensor], *, weight: Sequence[float], density: float, lambda_: float) -> Tensor:
    """Θ₀ + λ Σ w_k β_k δ_k ÷ Σ β_k, β_k from exp(K N(|δ_k|)²) tanh(δ_k Σ_j δ_j) (Du et al. 2024; their code).

    N maps a vector to the range from 0 to 1. Magnitudes are clamped at the 1e-4 quantiles of either end first. Scores
    below the share ``density`` of the largest are raised to the threshold, then N makes them the β_k. Computed in
    float32 at least.
    """
    dtype = torch.promote_types(base.dtype, torch.float32)
    start, tuned = base.reshape(-1), [expert.reshape(-1) for expert in experts]
    count = len(start)
    if density <= 0:
        return base.clone()
    low_rank, high_rank = int(count * CLAMPED), max(0, int(count * (1 - CLAMPED) - 1))
    cut_rank = min(int(count * (1 - density)), count - 1)
    together = sum((expert.to(dtype) - start for expert in tuned[1:]), tuned[0].to(dtype) - start)

    def score(delta: Tensor, low: float, high: float, total: Tensor) -> Tensor:
        share = delta.abs().clamp_(low, high).sub_(low).div_(max(high - low, torch.finfo(dtype).tiny))
        return share.square_().mul_(len(tuned)).exp_().mul_((delta * total).tanh_())

    ranges = []
    for expert in tuned:
        delta = expert.to(dtype) - start
        low, high = map(float, ranked(delta.abs(), low_rank, high_rank))
        cut, highest = map(float, ranked(score(delta, low, high, together), cut_rank, count - 1))
        ranges.append((low, high, cut, highest))
    result = torch.empty_like(start)
    for piece in pieces(count):
        merged, total = torch.zeros_like(together[piece]), torch.zeros_like(together[piece])
        for expert, share, (low, high, cut, highest) in zip(tuned, weight, ranges, strict=True):
            delta = expert[piece].to(dtype) - start[piece]
            scores = score(delta, low, high, together[piece])
            if highest > cut:
                balance = scores.sub_(cut).clamp_(min=0).div_(highest - cut)
            else:  # nothing to map to a range: all alike, but no share for an expert that left the tensor as it was
                balance = ((scores >= cut) & (delta != 0)).to(dtype)
            total += balance
            merged += balance.mul_(delta.abs().clamp_(low, high).mul_(delta.sign())).mul_(share)
        result[piece] = (start[piece] + merged.div_(total.clamp_(min=1e-12)).mul_(lambda_)).to(base.dtype)
    return result.view_as(base)


@Method(
    "consensus",
    "Consensus merging",
    "https://arxiv.org/abs/2405.07813",
    (
        WEIGHTS,
        Parameter("mask_lambda", float, 0.4, scope="expert", low=0.0),
        Parameter("agree", int, 2, low=0),
        Parameter("lambda", float, 0.4),
    ),
    # The authors choose mask_lambda among 0.2 to 0.6 for each task.
    (
        ONE,
        SearchParameter("mask_lambda", 0.2, 0.6, 0.4, per_model=True),
        SearchParameter("lambda", 0.2, 1.0, 0.4, per_model=False),
    ),
    base="required",
    in_mergekit=False,
)
def consensus(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    mask_lambda: Sequence[float],
    agree: int,
    lambda_: float,
) -> Tensor:
    """Θ₀ + λ m ⊙ τ, τ = Σ w_k δ_k, m where ``agree`` experts have |w_k δ_k| > λ_k |τ − w_k δ_k| (Wang et al. 2024).

    λ_k is ``mask_lambda``. With one expert ``agree`` counts as 1. Computed in float32 at least. The paper tunes λ on
    validation data; the default is task arithmetic's without such data.
    """
    dtype = torch.promote_types(base.dtype, torch.float32)
    start, tuned = base.reshape(-1), [expert.reshape(-1) for expert in experts]
    weights = torch.tensor(weight, dtype=dtype, device=base.device).unsqueeze(1)
    bounds = torch.tensor(mask_lambda, dtype=dtype, device=base.device).unsqueeze(1)
    result = torch.empty_like(start)
    for piece in pieces(len(start)):
        deltas = torch.stack([expert[piece].to(dtype) - start[piece] for expert in tuned]).mul_(weights)  # (K, m)
        merged = deltas.sum(dim=0)
        active = deltas.abs() > (merged - deltas).abs_().mul_(bounds)
        merged.mul_(active.sum(dim=0) >= min(agree, len(tuned))).mul_(lambda_)
        result[piece] = (start[piece] + merged).to(base.dtype)
    return result.view_as(base)


def _most_varied(start: Tensor, tuned: Sequence[Tensor], share: float) -> Tensor:
    """Which entries have the largest variance over the experts ``(n,)``; equal ones are chosen as mergekit does."""
    variance = torch.empty_like(start)
    for piece in pieces(len(start)):
        stacked = torch.stack([expert[piece] - start[piece] for expert in tuned])
        variance[piece] = torch.var(stacked, dim=0, unbiased=False)
    kept = int(torch.count_nonzero(variance) * share)
    if kept == 0:
        return torch.zeros_like(variance, dtype=torch.bool)
    if len(variance) <= SORTED:
        return torch.zeros_like(variance, dtype=torch.bool).index_fill_(0, variance.topk(kept).indices, True)
    return largest(variance.float() if variance.device.type == "cpu" else variance, kept)
