"""Methods on task vectors δ_k = Θ_k − Θ₀: their weighted sum, and what TIES and DARE do to them before.

Tensors have any shape, here ``(…)``; K of them stacked are ``(K, …)``. Order and rounding follow mergekit, so that a
recipe means the same in both: task vectors are thinned, then weighted, then signs are elected, all in the dtype of the
tensors. The methods differ in how they thin a task vector and in whether a sign is elected:

    =================  ==========================  =================
    method             thinned by                  sign elected
    =================  ==========================  =================
    task_arithmetic    nothing                     no
    ties               magnitude                   yes
    dare_linear        chance                      no
    dare_ties          chance                      yes
    =================  ==========================  =================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.merge.registry import Parameter, SearchParameter, merge_method

TOO_SMALL_TO_RESCALE = 1e-7
"""L1 norm below which a thinned task vector is not rescaled."""


def parameters(*, normalize: bool, rescale: bool) -> tuple[Parameter, ...]:
    """What mergekit lets every one of these methods take, with the defaults that differ between them.

    ``int8_mask`` saves memory there and changes no value; masks always take a byte an entry here.
    """
    return (
        Parameter("weight", float, scope="expert"),
        Parameter("density", float, 1.0, scope="expert", low=0.0, high=1.0),
        Parameter("normalize", bool, normalize),
        Parameter("rescale", bool, rescale),
        Parameter("lambda", float, 1.0),
        Parameter("int8_mask", bool, False),
    )


# Task vectors that are added do best at 0.3 to 0.5 each (Ilharco et al. 2023), and published optima of single weights
# sum to about two; above one a task vector is extrapolated. DARE keeps a tenth and more, TIES a fifth of the entries.
WEIGHT = SearchParameter("weight", 0.0, 1.2, 0.5, per_model=True)
DENSITY = SearchParameter("density", 0.1, 1.0, 0.5, per_model=False)


@merge_method(
    "task_arithmetic",
    "Task arithmetic",
    "https://arxiv.org/abs/2212.04089",
    parameters(normalize=False, rescale=False),
    (WEIGHT,),
    needs_base=True,
)
def task_arithmetic(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
    int8_mask: bool,
) -> Tensor:
    """Θ₀ + λ Σ w_k δ_k (Ilharco et al. 2023).

    ``density`` and ``rescale`` may stand in every recipe of this family, as in mergekit; here is nothing to thin.
    """
    deltas = [expert - base for expert in experts]
    return combine(base, deltas, weight, normalize=normalize, lambda_=lambda_)


@merge_method(
    "ties",
    "TIES",
    "https://arxiv.org/abs/2306.01708",
    parameters(normalize=True, rescale=False),
    # Weights are normalised by those that agree, so only their ratios count: lambda gives the step its length.
    # Without data to tune on, the paper keeps the top 20 % with lambda = 1.
    (
        WEIGHT,
        SearchParameter("density", 0.1, 1.0, 0.2, per_model=False),
        SearchParameter("lambda", 0.3, 2.0, 1.0, False),
    ),
    needs_base=True,
)
def ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
    int8_mask: bool,
) -> Tensor:
    """TIES (Yadav et al. 2023, algorithm 1): trim by magnitude, elect signs, merge what agrees."""
    deltas = [trim(expert - base, share, rescale) for expert, share in zip(experts, density, strict=True)]
    return combine(base, deltas, weight, normalize=normalize, lambda_=lambda_, elect=True)


@merge_method(
    "dare_linear",
    "DARE linear",
    "https://arxiv.org/abs/2311.03099",
    parameters(normalize=False, rescale=True),
    (WEIGHT, DENSITY),
    needs_base=True,
    random=True,
)
def dare_linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
    int8_mask: bool,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """DARE (Yu et al. 2024, §3.2): drop entries by chance, rescale, then add as task arithmetic does."""
    deltas = drop_all(base, experts, density, rescale, generators)
    return combine(base, deltas, weight, normalize=normalize, lambda_=lambda_)


@merge_method(
    "dare_ties",
    "DARE-TIES",
    "https://arxiv.org/abs/2311.03099",
    parameters(normalize=False, rescale=True),
    (WEIGHT, DENSITY),
    needs_base=True,
    random=True,
)
def dare_ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
    int8_mask: bool,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """DARE's dropping in the place of TIES' trimming."""
    deltas = drop_all(base, experts, density, rescale, generators)
    return combine(base, deltas, weight, normalize=normalize, lambda_=lambda_, elect=True)


def trim(delta: Tensor, density: float, rescale: bool) -> Tensor:
    """Keep the ``int(density · n)`` entries of largest magnitude, one at least.

    Finding the smallest magnitude that is kept takes a tenth of the time of a sort. Only where it is also that of
    entries which are not kept does torch's sort decide between them, so that they are those which mergekit keeps.

    Args:
        delta: task vector ``(…)`` of n entries.
        density: share that is kept; 0 keeps nothing.
        rescale: multiply what is kept so that the L1 norm stays.
    """
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    kept = max(1, int(density * delta.numel()))
    magnitude = delta.abs().flatten()
    magnitude = magnitude.float() if magnitude.device.type == "cpu" else magnitude
    keep = magnitude >= _smallest_of_largest(magnitude, kept)
    if int(keep.sum()) > kept:
        keep = torch.zeros_like(keep).index_fill_(0, magnitude.argsort(descending=True)[:kept], True)
    return _mask(delta, keep.view_as(delta), rescale)


def drop(delta: Tensor, density: float, rescale: bool, generator: torch.Generator) -> Tensor:
    """Keep each entry with probability ``density``. Masks are drawn on the CPU, so a seed gives one mask everywhere."""
    if density >= 1:
        return delta
    keep = torch.rand(delta.shape, generator=generator) < density
    if delta.dtype == torch.float16:  # its norms overflow
        return _mask(delta.float(), keep.to(delta.device), rescale).half()
    return _mask(delta, keep.to(delta.device), rescale)


def drop_all(
    base: Tensor,
    experts: Sequence[Tensor],
    density: Sequence[float],
    rescale: bool,
    generators: Sequence[torch.Generator],
) -> list[Tensor]:
    """DARE's task vectors, each with its own mask."""
    return [
        drop(expert - base, share, rescale, generator)
        for expert, share, generator in zip(experts, density, generators, strict=True)
    ]


def combine(
    base: Tensor,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    *,
    normalize: bool,
    lambda_: float,
    elect: bool = False,
) -> Tensor:
    """Θ₀ + λ Σ w_k δ_k; where asked, over the entries that have the elected sign, and divided by the Σ w_k of those.

    The elected sign of an entry is that of Σ w_k δ_k, positive where it is zero.

    Args:
        base: Θ₀ ``(…)``.
        deltas: K thinned task vectors ``(…)``.
        weight: K weights w_k.
        normalize: divide by the sum of the weights that took part.
        lambda_: λ.
        elect: merge only what has the elected sign.
    """
    weights = torch.tensor(weight, dtype=base.dtype, device=base.device).view(-1, *(1,) * base.dim())  # (K, 1, …)
    weighted = torch.stack(list(deltas)).mul_(weights)  # (K, …)
    if elect:
        positive = weighted.sum(dim=0) >= 0
        agrees = ((weighted > 0) == positive).logical_and_(weighted != 0)
        weighted.mul_(agrees)
        weights = weights * agrees if normalize else weights
    merged = weighted.sum(dim=0)
    if normalize:
        divisor = weights.sum(dim=0)
        merged /= divisor.masked_fill_(divisor.abs() <= (0 if elect else 1e-8), 1)
    if lambda_ != 1:
        merged *= lambda_
    return base + merged


def _smallest_of_largest(magnitude: Tensor, count: int) -> float | Tensor:
    """The ``count``-th largest entry of a vector."""
    rank = magnitude.numel() - count
    if magnitude.device.type == "cpu":  # half the time of torch's kthvalue
        return float(np.partition(magnitude.numpy(), rank)[rank])
    return magnitude.kthvalue(rank + 1).values


def _mask(delta: Tensor, keep: Tensor, rescale: bool) -> Tensor:
    masked = delta * keep
    if rescale:
        before, after = delta.abs().sum(), masked.abs().sum()
        if before >= TOO_SMALL_TO_RESCALE and after >= TOO_SMALL_TO_RESCALE:
            return masked * (before / after)
    return masked
