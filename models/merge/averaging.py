"""Methods on the models' own weights: averages, one of them drawn towards the base, and taking one model as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.errors import BadInput
from models.merge.registry import Method, Parameter, SearchParameter


@Method(
    "linear",
    "Linear",
    "https://arxiv.org/abs/2203.05482",
    (Parameter("weight", float, scope="model"), Parameter("normalize", bool, True)),
    # Model soups average with equal weights; a weight of 0 drops a model. Only ratios matter while they are normalised,
    # so the range is that of the methods on task vectors, with which the search shares it.
    (SearchParameter("weight", 0.0, 1.2, 1.0, per_model=True),),
)
def linear(models: Sequence[Tensor], *, weight: Sequence[float], normalize: bool) -> Tensor:
    """Σ w_k Θ_k ÷ Σ w_k, undivided without ``normalize`` (model soups, Wortsman et al. 2022, §2).

    Sums are made in float32 at least, the result has the dtype of the first tensor.

    Raises:
        BadInput: weights that sum to zero are to be normalised.
    """
    total = sum(weight)
    if normalize and total == 0:
        raise BadInput("linear: weight: the weights sum to zero and can't be normalised; set normalize: false")
    first = models[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    merged = torch.zeros_like(first, dtype=dtype)
    for tensor, share in zip(models, weight, strict=True):
        merged.add_(tensor.to(dtype), alpha=share)
    if normalize:
        merged.div_(total)
    return merged.to(first.dtype)


@Method(
    "passthrough",
    "Passthrough",
    "https://github.com/arcee-ai/mergekit",
    (Parameter("scale", float, scope="model", optional=True),),
    max_experts=1,
)
def passthrough(models: Sequence[Tensor], *, scale: Sequence[float | None]) -> Tensor:
    """Θ₁, times ``scale`` where a recipe sets it."""
    return models[0] if scale[0] is None else models[0] * scale[0]


@Method(
    "model_stock",
    "Model Stock",
    "https://arxiv.org/abs/2403.19522",
    (Parameter("filter_wise", bool, False),),
    base="required",
    min_experts=2,
)
def model_stock(base: Tensor, experts: Sequence[Tensor], *, filter_wise: bool) -> Tensor:
    """t · mean(Θ_k) + (1 − t) Θ₀ with t = K cos θ ÷ (1 + (K − 1) cos θ) (Jang et al. 2024).

    cos θ is the mean cosine between two task vectors of the tensor, or of each row if ``filter_wise``. Where the
    denominator vanishes the base stays. Order and rounding follow mergekit.
    """
    rows = base if base.dim() > 1 else base.reshape(1, -1)
    start = rows if filter_wise else base.reshape(-1)
    tuned = [expert.reshape(start.shape) for expert in experts]
    norms = [(expert - start).norm(dim=-1) for expert in tuned]
    cosines = []
    for k, first in enumerate(tuned):
        offset = first - start
        for j in range(k + 1, len(tuned)):
            product = (tuned[j] - start).mul_(offset).sum(dim=-1)
            cosines.append((product / (norms[k] * norms[j]).clamp(min=1e-6)).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    count = len(experts)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < 1e-6
    t = ((count * cosine) / denominator.masked_fill(singular, 1)).masked_fill_(singular, 0)
    merged = tuned[0].clone()
    for expert in tuned[1:]:
        merged += expert
    merged.div_(count).mul_(t).add_((1 - t) * start)
    return merged.reshape(base.shape)
