"""Methods on task vectors δ_k = Θ_k − Θ₀: their weighted sum, and what TIES, DARE and others do to them before.

Tensors have any shape, here ``(…)`` of n entries; pieces of K of them are stacked to ``(K, m)``. Order and rounding
follow mergekit, so that a recipe means the same in both: task vectors are thinned, then weighted, then signs are
elected, all in the dtype of the tensors. The methods differ in how they thin a task vector and in whether a sign is
elected:

    =================  ==============================  ==================
    thinned by         every entry counts              sign elected
    =================  ==============================  ==================
    nothing            task_arithmetic
    magnitude                                          ties
    chance             dare_linear                     dare_ties
    chance, by rank    della_linear                    della
    magnitude, twice   breadcrumbs                     breadcrumbs_ties
    =================  ==============================  ==================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.merge.registry import Method, Parameter, SearchParameter
from models.merge.thinning import Rescale, Thinning, as_factor, drop, drop_by_magnitude, pieces, trim, trim_outliers

TASK_ARITHMETIC = "https://arxiv.org/abs/2212.04089"
TIES = "https://arxiv.org/abs/2306.01708"
DARE = "https://arxiv.org/abs/2311.03099"
BREADCRUMBS = "https://arxiv.org/abs/2312.06795"
DELLA = "https://arxiv.org/abs/2406.11617"

GAMMA = Parameter("gamma", float, 0.01, scope="expert", low=0.0, high=1.0)
EPSILON = Parameter("epsilon", float, 0.15, scope="expert", low=0.0, high=0.5)
# Task vectors that are added do best at 0.3 to 0.5 each (Ilharco et al. 2023), and published optima of single weights
# sum to about two; above one a task vector is extrapolated. DARE keeps a tenth and more, TIES a fifth of the entries.
WEIGHT = SearchParameter("weight", 0.0, 1.2, 0.5, per_model=True)
DENSITY = SearchParameter("density", 0.1, 1.0, 0.5, per_model=False)
# Weights that are normalised by those that agree count by their ratios only: lambda gives the step its length.
LAMBDA = SearchParameter("lambda", 0.3, 2.0, 1.0, per_model=False)
# mergekit advises a density of 0.9 and a gamma of 0.01.
BREADCRUMBS_SEARCH = (
    WEIGHT,
    SearchParameter("density", 0.1, 1.0, 0.9, per_model=False),
    SearchParameter("gamma", 0.0, 0.05, 0.01, per_model=False),
)
# Probabilities have to stay within 0 and 1, whatever the search draws for both.
DELLA_SEARCH = (
    WEIGHT,
    SearchParameter("density", 0.25, 0.75, 0.5, per_model=False),
    SearchParameter("epsilon", 0.01, 0.2, 0.15, per_model=False),
    LAMBDA,
)


def family_method(
    name: str,
    title: str,
    reference: str,
    search: tuple[SearchParameter, ...],
    *more: Parameter,
    normalize: bool = False,
    rescale: bool = False,
    random: bool = False,
    elects: bool = False,
) -> Method:
    """A method of this family: what mergekit lets each of them take, with the defaults that differ.

    ``int8_mask`` saves memory there and changes no value; masks always take a byte an entry here. Random methods can
    rescale by ``inverse_density`` as their papers do, and ``elect_sign: unweighted`` is TIES as its paper has it.
    """
    parameters = (
        Parameter("weight", float, scope="expert"),
        Parameter("density", float, 1.0, scope="expert", low=0.0, high=1.0),
        *more,
        Parameter("normalize", bool, normalize),
        Parameter("rescale", bool, rescale, choices=("l1", "inverse_density") if random else ()),
        Parameter("lambda", float, 1.0),
        Parameter("int8_mask", bool, False),
    )
    if elects:
        elect = Parameter("elect_sign", str, "weighted", choices=("weighted", "unweighted"), in_mergekit=False)
        parameters += (elect,)
    return Method(name, title, reference, parameters, search, base="required", random=random)


@family_method("task_arithmetic", "Task arithmetic", TASK_ARITHMETIC, (WEIGHT,))
def task_arithmetic(
    base: Tensor, experts: Sequence[Tensor], *, density: Sequence[float], rescale: Rescale, **how: Any
) -> Tensor:
    """Θ₀ + λ Σ w_k δ_k (Ilharco et al. 2023).

    ``density`` and ``rescale`` may stand in every recipe of this family, as in mergekit; here is nothing to thin.
    """
    return combine(base, experts, [Thinning()] * len(experts), **how)


# Without data to tune on, the paper keeps the top 20 % with lambda = 1.
@family_method(
    "ties",
    "TIES",
    TIES,
    (WEIGHT, SearchParameter("density", 0.1, 1.0, 0.2, per_model=False), LAMBDA),
    normalize=True,
    elects=True,
)
def ties(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k ÷ Σ w_k over the trimmed δ̂_k of the elected sign (Yadav et al. 2023, algorithm 1)."""
    return combine_thinned(trim, ("density",), base, experts, **how)


@family_method("dare_linear", "DARE linear", DARE, (WEIGHT, DENSITY), rescale=True, random=True)
def dare_linear(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k where chance drops entries of δ̂_k and the others are rescaled (Yu et al. 2024, §3.2)."""
    return combine_thinned(drop, ("density", "generators"), base, experts, **how)


@family_method("dare_ties", "DARE-TIES", DARE, (WEIGHT, DENSITY), rescale=True, random=True, elects=True)
def dare_ties(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k over the δ̂_k of the elected sign: DARE's dropping in the place of TIES' trimming."""
    return combine_thinned(drop, ("density", "generators"), base, experts, **how)


@family_method("breadcrumbs", "Model breadcrumbs", BREADCRUMBS, BREADCRUMBS_SEARCH, GAMMA)
def breadcrumbs(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k where δ̂_k lost its smallest and its largest entries (Davari & Belilovsky 2024, §3)."""
    return combine_thinned(trim_outliers, ("density", "gamma"), base, experts, **how)


@family_method("breadcrumbs_ties", "Model breadcrumbs with TIES", BREADCRUMBS, BREADCRUMBS_SEARCH, GAMMA, elects=True)
def breadcrumbs_ties(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k over the δ̂_k of the elected sign: breadcrumbs' masks in the place of TIES' trimming."""
    return combine_thinned(trim_outliers, ("density", "gamma"), base, experts, **how)


@family_method("della_linear", "DELLA linear", DELLA, DELLA_SEARCH, EPSILON, rescale=True, random=True)
def della_linear(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k where chance drops small entries of a row more often than large (Deep et al. 2024)."""
    return combine_thinned(drop_by_magnitude, ("density", "epsilon", "generators"), base, experts, **how)


@family_method("della", "DELLA", DELLA, DELLA_SEARCH, EPSILON, normalize=True, rescale=True, random=True, elects=True)
def della(base: Tensor, experts: Sequence[Tensor], **how: Any) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k ÷ Σ w_k over the δ̂_k of the elected sign, dropped as in della_linear (Deep et al. 2024)."""
    return combine_thinned(drop_by_magnitude, ("density", "epsilon", "generators"), base, experts, **how)


def combine_thinned(
    thinner: Callable[..., Thinning],
    takes: Sequence[str],
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    rescale: Rescale,
    **how: Any,
) -> Tensor:
    """:func:`combine` with task vectors that are thinned before.

    Args:
        thinner: takes the magnitudes of a task vector, values for it, and ``rescale``.
        takes: names of these values, of which there is one an expert.
        rescale: how what is kept is multiplied.
        how: these values by name, and what :func:`combine` takes.
    """
    values = [how.pop(name) for name in takes]
    thinnings = [
        thinner((expert - base).abs_(), *own, rescale=rescale) for expert, *own in zip(experts, *values, strict=True)
    ]
    return combine(base, experts, thinnings, **how)


def combine(
    base: Tensor,
    experts: Sequence[Tensor],
    thinnings: Sequence[Thinning],
    *,
    weight: Sequence[float],
    normalize: bool,
    lambda_: float,
    elect_sign: str | None = None,
    int8_mask: bool = False,
) -> Tensor:
    """Θ₀ + λ Σ w_k δ̂_k; where asked, over the entries that have the elected sign, and divided by the Σ w_k of those.

    The elected sign of an entry is that of Σ w_k δ̂_k, or of Σ δ̂_k as in TIES' paper; positive where it is zero.

    Args:
        base: Θ₀ ``(…)``.
        experts: K tensors Θ_k ``(…)``.
        thinnings: what makes δ̂_k of δ_k = Θ_k − Θ₀.
        weight: K weights w_k.
        normalize: divide by the sum of the weights that took part.
        elect_sign: merge only what has the elected sign, of the ``weighted`` or ``unweighted`` task vectors.
        int8_mask: has no effect.
    """
    weights = torch.tensor(weight, dtype=base.dtype, device=base.device).unsqueeze(1)  # (K, 1)
    start, tuned = base.reshape(-1), [expert.reshape(-1) for expert in experts]
    result = torch.empty_like(start)
    for piece in pieces(len(start)):
        deltas = torch.stack(
            [thinning(expert[piece] - start[piece], piece) for expert, thinning in zip(tuned, thinnings, strict=True)]
        )  # (K, m)
        shares, sign = weights, None
        if elect_sign == "unweighted":
            positive = deltas.sum(dim=0) >= 0
            agrees = as_factor(((deltas > 0) == positive).logical_and_(deltas != 0))
            deltas.mul_(weights).mul_(agrees)
            shares = weights * agrees if normalize else weights
        else:
            deltas.mul_(weights)
        if elect_sign == "weighted":
            sign = (deltas.sum(dim=0) >= 0).to(deltas.dtype).mul_(2).sub_(1)
            deltas.mul_(sign).clamp_(min=0)  # what has the elected sign is positive now, and the rest is gone
            shares = weights * as_factor(deltas > 0) if normalize else weights
        merged = deltas.sum(dim=0)
        if sign is not None:
            merged *= sign
        if normalize:
            divisor = shares.sum(dim=0)
            merged /= divisor.masked_fill_(divisor.abs() <= (1e-8 if elect_sign is None else 0), 1)
        if lambda_ != 1:
            merged *= lambda_
        torch.add(start[piece], merged, out=result[piece])
    return result.view_as(base)
