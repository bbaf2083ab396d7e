"""Methods whose numbers are learned from texts of each expert's task; ``models.learned`` does the learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.errors import BadInput
from models.merge.registry import Method, Parameter

ROWS = Parameter("rows", int, 8, low=1)
"""Texts that pass through the models together."""


@Method(
    "regmean_plusplus",
    "RegMean++",
    "https://arxiv.org/abs/2508.03121",
    (Parameter("reduce_non_diagonal_ratio", float, 0.95, low=0, high=1), ROWS),
    base="required",
    learns=True,
    by_matrix=True,
    in_mergekit=False,
)
def regmean_plusplus(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    learned: Sequence[Tensor] | None = None,
    linear_layer: bool,
    reduce_non_diagonal_ratio: float,
    **_: Any,
) -> Tensor:
    """Σ W_k G_k (Σ G_k)⁻¹, of averages Θ̄ elsewhere; G_k is XᵀX of the layer's inputs, less off the diagonal.

    The inputs of layer l are those of the k-th expert's texts behind the layers that are merged already (Nguyen et al.
    2025). Embeddings, and what is no matrix in a layer, are averaged; norm and head behind the layers are the base's.
    Follows fusion_bench, tokens of padding left out.

    Raises:
        BadInput: the sum of the G_k has no inverse.
    """
    if learned is None:
        return base
    if not learned or not linear_layer:
        return torch.stack(list(experts)).mean(dim=0)
    dtype = torch.float64  # few texts make for matrices that are all but singular
    grams = [gram.to(base.device, dtype) for gram in learned]
    grams = [reduce_non_diagonal_ratio * one + (1 - reduce_non_diagonal_ratio) * one.diag().diag() for one in grams]
    right = torch.stack([gram @ expert.to(dtype).T for gram, expert in zip(grams, experts, strict=True)]).sum(dim=0)
    solved: Tensor
    solved, singular = torch.linalg.solve_ex(torch.stack(grams).sum(dim=0), right)
    if singular:
        raise BadInput(
            "regmean_plusplus: the texts leave some inputs of a layer unused; give more of them, or lower"
            " reduce_non_diagonal_ratio"
        )
    return solved.T.contiguous().to(base.dtype)


@Method(
    "layer_wise_adamerging",
    "Layer-wise AdaMerging",
    "https://arxiv.org/abs/2310.02575",
    (
        Parameter("init", float, 0.3),
        Parameter("clamp", bool, False),
        Parameter("lr", float, 1e-3, low=0),
        Parameter("steps", int, 1000, low=0),
        ROWS,
    ),
    base="required",
    learns=True,
    in_mergekit=False,
)
def layer_wise_adamerging(
    base: Tensor, experts: Sequence[Tensor], *, learned: Sequence[float] | None = None, init: float, **_: Any
) -> Tensor:
    """Θ₀ + Σ w_k δ_k with a w_k for each tensor: what lessens the entropy of the next token on all texts.

    Adam begins at `init` with the rate `lr`; each of `steps` steps takes the next `rows` texts of every expert, and
    adds their losses (Yang et al. 2024; as fusion_bench has it for classifiers). `clamp` keeps w_k in [0, 1].
    """
    dtype = torch.promote_types(base.dtype, torch.float32)
    merged = base.to(dtype)
    for weight, expert in zip(learned or [init] * len(experts), experts, strict=True):
        merged = merged + (expert.to(dtype) - base.to(dtype)) * weight
    return merged.to(base.dtype)
