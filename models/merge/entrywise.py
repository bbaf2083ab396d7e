"""Methods that decide entry by entry which model counts: by nearness, by importance, by who has changed it at all.

Order and rounding follow mergekit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.merge.registry import Method, Parameter

RAM = "https://arxiv.org/abs/2601.13572"
SAMPLE = 1_000_000
"""Entries of a tensor of which quartiles are taken; of a larger one so many are drawn."""
PIECE = 2**19
"""Entries that are merged at a time."""
EPSILON = Parameter("epsilon", float, 1e-5, low=0.0)


@Method(
    "nearswap",
    "NearSwap",
    "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    (Parameter("t", float),),
    base="required",
    max_experts=1,
)
def nearswap(base: Tensor, experts: Sequence[Tensor], *, t: float) -> Tensor:
    """s Θ₁ + (1 − s) Θ₀ with s = t ÷ |Θ₀ − Θ₁|, from 0 to 1 in each entry: the nearer, the more of Θ₁."""
    share = (t / torch.abs(base - experts[0]).clamp(min=1e-6)).clamp(min=0, max=1)
    return share * experts[0] + (1 - share) * base


@Method("arcee_fusion", "Arcee Fusion", "https://arcee.ai", (), base="required", max_experts=1, random=True)
def arcee_fusion(base: Tensor, experts: Sequence[Tensor], *, generators: Sequence[torch.Generator]) -> Tensor:
    """Θ₀ + m ⊙ δ₁, m where |δ₁| · KL(softmax Θ₁ ‖ softmax Θ₀), by rows, is an outlier: ≥ Q₂ + 1.5 (Q₃ − Q₁).

    Of a tensor of more than a million entries the quartiles are those of a million that are drawn, with replacement.
    The result is in float32 at least, as mergekit has it.
    """
    (expert,) = experts
    importance = (expert - base).abs()
    rows = base.shape[-1] if base.dim() > 1 else base.numel()
    step = max(1, PIECE // rows)
    theirs, ours, score = (one.reshape(-1, rows) for one in (expert, base, importance))
    for start in range(0, len(score), step):
        part = slice(start, start + step)
        p, q = torch.softmax(theirs[part], dim=-1) + 1e-8, torch.softmax(ours[part], dim=-1) + 1e-8
        score[part] *= torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)
    flat = score.reshape(-1)
    if flat.numel() > SAMPLE:
        flat = flat[torch.randint(flat.numel(), (SAMPLE,), generator=generators[0]).to(flat.device)]
    ranks = (torch.tensor([0.25, 0.5, 0.75]) * (flat.numel() - 1)).long().to(flat.device)
    first, median, third = torch.sort(flat).values[ranks]
    mask = (score.view_as(base) >= median + 1.5 * (third - first)).float()
    del importance, score
    merged: Tensor = base + (expert - base) * mask
    return merged


@Method("ram", "Reinforced Agent Merging", RAM, (EPSILON,), base="required")
def ram(base: Tensor, experts: Sequence[Tensor], *, epsilon: float) -> Tensor:
    """Θ₀ + Σ δ̂_k ÷ c, c the number of experts whose |δ_k| > ε in that entry: means where several changed it."""
    merged = torch.empty_like(base).reshape(-1)
    for part, deltas, count in changed(base, experts, epsilon):
        merged[part] = base.reshape(-1)[part] + (deltas * (count == 1) + deltas * (count > 1) / count.clamp(min=1)).sum(
            0
        )
    return merged.view_as(base)


@Method(
    "ramplus_tl",
    "RAM+ (tensor-local)",
    RAM,
    (Parameter("r", float, 0.1), Parameter("alpha", float, 0.2), EPSILON),
    base="required",
)
def ramplus_tl(base: Tensor, experts: Sequence[Tensor], *, r: float, alpha: float, epsilon: float) -> Tensor:
    """Θ₀ + Σ λ_k δ̂_k ÷ c, as `ram`, where λ_k is 1 but for entries that expert k alone has changed.

    There it is 1 + r · min(ρ_k, α), with ρ_k how many entries of the tensor it has changed with others, over those that
    it has changed alone. The result is in float32 at least, as mergekit has it.
    """
    shared, alone = (torch.zeros(len(experts), dtype=torch.long, device=base.device) for _ in range(2))
    for _, deltas, count in changed(base, experts, epsilon):
        shared += ((deltas != 0) & (count > 1)).sum(dim=1)
        alone += ((deltas != 0) & (count == 1)).sum(dim=1)
    scale = (1 + r * (shared / alone.clamp(min=epsilon)).clamp(min=0, max=alpha)).unsqueeze(-1)
    merged = torch.empty(base.numel(), dtype=torch.promote_types(base.dtype, torch.float32), device=base.device)
    for part, deltas, count in changed(base, experts, epsilon):
        own = deltas * (count == 1) * scale
        merged[part] = base.reshape(-1)[part] + (own + deltas * (count > 1) / count.clamp(min=1)).sum(0)
    return merged.view_as(base)


def changed(base: Tensor, experts: Sequence[Tensor], epsilon: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Piece by piece: task vectors ``(K, m)``, zero where an entry changes by no more than ``epsilon``, and how many
    experts change it ``(m,)``.
    """
    flat = [one.reshape(-1) for one in (base, *experts)]
    for start in range(0, base.numel(), PIECE):
        part = slice(start, start + PIECE)
        deltas = torch.stack([one[part] - flat[0][part] for one in flat[1:]])
        mask = deltas.abs() > epsilon
        yield part, deltas * mask, mask.sum(dim=0)
