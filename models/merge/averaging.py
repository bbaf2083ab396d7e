"""Methods on the models' own weights: the weighted average, and taking one model as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.errors import BadInput
from models.merge.registry import Parameter, SearchParameter, merge_method


@merge_method(
    "linear",
    "Linear",
    "https://arxiv.org/abs/2203.05482",
    (Parameter("weight", float, scope="model"), Parameter("normalize", bool, True)),
    # Model soups average with equal weights; a weight of 0 drops a model. Only ratios matter while they are normalised.
    (SearchParameter("weight", 0.0, 1.0, 1.0, per_model=True),),
)
def linear(models: Sequence[Tensor], *, weight: Sequence[float], normalize: bool) -> Tensor:
    """Weighted sum of K tensors of one shape, divided by the sum of the weights if ``normalize`` (model soups, §2).

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


@merge_method(
    "passthrough",
    "Passthrough",
    "https://github.com/arcee-ai/mergekit",
    (Parameter("scale", float, scope="model", optional=True),),
    max_models=1,
)
def passthrough(models: Sequence[Tensor], *, scale: Sequence[float | None]) -> Tensor:
    """The one tensor, times ``scale`` where a recipe sets it."""
    return models[0] if scale[0] is None else models[0] * scale[0]
