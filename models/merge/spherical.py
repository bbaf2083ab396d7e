"""Methods on the sphere: between two models along the great circle, and the mean of several.

They keep the length that a straight average of models shortens. Order and rounding follow mergekit; of large tensors no
more copies are held than one step needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.errors import BadInput
from models.merge.registry import Method, Parameter, SearchParameter

SLERP_PIECE = 2**20
"""Entries of which norms and products are summed at a time."""
PIECE = 2**17
"""Entries of which directions of several models are held at a time."""
NEARLY_PARALLEL = 0.9995
"""Cosine above which two models are interpolated along the straight line."""


@Method(
    "slerp", "SLERP", "https://en.wikipedia.org/wiki/Slerp", (Parameter("t", float),), base="required", max_experts=1
)
def slerp(base: Tensor, experts: Sequence[Tensor], *, t: float) -> Tensor:
    """(sin((1 − t)θ) Θ₀ + sin(tθ) Θ₁) ÷ sin θ with θ the angle between Θ₀ and Θ₁ (Shoemake 1985).

    The straight line where they are nearly parallel. Computed in float32 at least.
    """
    dtype = torch.promote_types(base.dtype, torch.float32)
    one, other = base.reshape(-1), experts[0].reshape(-1)
    parts = [slice(start, start + SLERP_PIECE) for start in range(0, len(one), SLERP_PIECE)]

    def norm(tensor: Tensor) -> Tensor:
        lengths = [torch.linalg.vector_norm(tensor[part].to(dtype)) for part in parts]
        length = torch.linalg.vector_norm(torch.stack(lengths))
        return torch.where(length > 1e-8, length, 1)

    norms = norm(one), norm(other)
    products = [(one[part].to(dtype) / norms[0]).mul_(other[part].to(dtype) / norms[1]).sum() for part in parts]
    cosine = torch.stack(products).sum().clamp(-1, 1)
    share = torch.tensor(t, dtype=dtype, device=base.device)
    if cosine.abs() > NEARLY_PARALLEL:
        shares = 1 - share, share
    else:
        angle = torch.acos(cosine)
        shares = torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)
    merged = torch.empty_like(one)
    for part in parts:
        merged[part] = shares[0] * one[part].to(dtype) + shares[1] * other[part].to(dtype)
    return merged.view_as(base)


@Method(
    "nuslerp",
    "NuSLERP",
    "https://github.com/arcee-ai/mergekit",
    (
        Parameter("weight", float, scope="expert"),
        Parameter("nuslerp_row_wise", bool, False),
        Parameter("nuslerp_flatten", bool, True),
    ),
    base="optional",
    min_experts=2,
    max_experts=2,
)
def nuslerp(
    base: Tensor | None,
    experts: Sequence[Tensor],
    *,
    weight: Sequence[float],
    nuslerp_row_wise: bool,
    nuslerp_flatten: bool,
) -> Tensor:
    """(sin((1 − t)θ) v₁ + sin(tθ) v₂) ÷ sin θ with t = w₂ ÷ (w₁ + w₂), v_k = Θ_k or, where there is a base, δ_k.

    Over the whole tensor, or without ``nuslerp_flatten`` over each row; ``nuslerp_row_wise`` takes columns there, as in
    mergekit. The straight line where the two are parallel.
    """
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    one, other = experts if base is None else [expert - base for expert in experts]
    if nuslerp_flatten:
        one, other = one.reshape(-1), other.reshape(-1)
    elif nuslerp_row_wise:
        one, other = one.transpose(0, -1), other.transpose(0, -1)
    norms = [tensor.norm(dim=-1, keepdim=True).clamp(min=1e-7) for tensor in (one, other)]
    cosine = (one / norms[0]).mul_(other / norms[1]).sum(dim=-1, keepdim=True).clamp(-1, 1)
    parallel = (1 - cosine.square()) <= 1e-16
    angle = torch.acos(cosine.masked_fill(parallel, 0))
    merged = (torch.sin((1 - t) * angle) * one).add_(torch.sin(t * angle) * other).div_(torch.sin(angle))
    if parallel.any():
        merged = torch.where(parallel, (1 - t) * one + t * other, merged)
    if nuslerp_row_wise and not nuslerp_flatten:
        merged = merged.transpose(0, -1)
    merged = merged.reshape(experts[0].shape)
    return merged if base is None else merged.add_(base)


@Method(
    "karcher",
    "Karcher mean",
    "https://arxiv.org/abs/2603.04972",
    (Parameter("max_iter", int, 10, low=0), Parameter("tol", float, 1e-5, low=0.0)),
)
def karcher(models: Sequence[Tensor], *, max_iter: int, tol: float) -> Tensor:
    """mean(|Θ_k|) · m with m the unit vector of least Σ θ(m, Θ_k)², by ``max_iter`` steps of gradient descent.

    Tensors shorter than ``tol`` count for the length only.
    """
    if len(models) == 1:
        return models[0]
    first, share = models[0], 1 / len(models)
    dtype = torch.promote_types(first.dtype, torch.float32)
    norms = [torch.linalg.vector_norm(model.to(dtype)) for model in models]
    long = [(model, norm) for model, norm in zip(models, norms, strict=True) if norm > tol]
    if not long:
        return torch.zeros_like(first)
    total = sum(share for _ in long)
    alpha = share / total
    mean, unit, scratch = torch.zeros_like(first), torch.empty_like(first), torch.empty_like(first)
    for model, norm in long:
        mean += torch.div(model, norm, out=unit).mul_(alpha)
    length = torch.linalg.vector_norm(mean.to(dtype))
    mean = torch.div(*long[0], out=mean) if length < tol else mean.div_(length)
    for _ in range(max_iter):
        tangent = torch.zeros_like(mean)
        for model, norm in long:
            torch.div(model, norm, out=unit)
            cosine = torch.dot(mean.flatten(), unit.flatten()).clamp(-1.0, 1.0)
            angle = torch.arccos(cosine)
            if angle >= tol:
                unit.sub_(torch.mul(cosine, mean, out=scratch)).mul_(alpha * (angle / torch.sin(angle)))
                tangent += unit
        step = torch.linalg.vector_norm(tangent.to(dtype))
        if step < tol:
            break
        # torch rounds a number to half precision where it is the first factor, and not where it is the second
        torch.mul(torch.cos(step), mean, out=mean)
        mean += torch.mul(torch.sin(step), tangent.div_(step), out=tangent)
        length = torch.linalg.vector_norm(mean.to(dtype))
        if length > tol:
            mean.div_(length)
    scale = sum((norm * share for norm in norms), torch.zeros_like(norms[0]))
    return torch.mul(scale, mean, out=mean)


@Method(
    "multislerp",
    "Multi-SLERP",
    "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    (
        Parameter("weight", float, scope="expert"),
        Parameter("normalize_weights", bool, True),
        Parameter("eps", float, 1e-8, low=0.0),
    ),
    (SearchParameter("weight", 0.0, 1.2, 0.5, per_model=True),),
    base="optional",
)
def multislerp(
    base: Tensor | None, experts: Sequence[Tensor], *, weight: Sequence[float], normalize_weights: bool, eps: float
) -> Tensor:
    """ℓ · exp_m(Σ w_k log_m v̂_k) with v_k = Θ_k or, where there is a base, δ_k; m the direction of Σ w_k v̂_k.

    ℓ = Σ w_k |v_k|; exp and log are those of the unit sphere, the latter projected onto the tangent space only. The
    straight line between two that cancel out.

    Raises:
        BadInput: more than two cancel out.
    """
    if len(experts) == 1:
        return experts[0]
    first = experts[0]
    weights = torch.tensor(weight, dtype=first.dtype, device=first.device)
    weights = weights / weights.sum() if normalize_weights else weights
    vectors = [(one if base is None else one - base).reshape(-1) for one in experts]
    norms = torch.stack([torch.linalg.vector_norm(one) for one in vectors]).unsqueeze(-1)
    parts = [slice(start, start + PIECE) for start in range(0, first.numel(), PIECE)]
    column, wide = weights.view(-1, 1), torch.promote_types(first.dtype, torch.float32)

    def units(part: slice) -> Tensor:
        return torch.stack([one[part] for one in vectors]) / (norms + eps)

    mean, tangent = torch.empty_like(vectors[0]), torch.empty_like(vectors[0])
    for part in parts:
        mean[part] = (units(part) * column).sum(0)
    length = torch.linalg.vector_norm(mean)
    if length < eps:
        if len(experts) > 2:
            raise BadInput("multislerp: the weighted directions of the models cancel out; change the weights")
        merged = vectors[0] * weights[0] + vectors[1] * weights[1]
    else:
        mean = mean.div_(length)
        products = [(units(part) * mean[part]).sum(-1, keepdim=True, dtype=wide) for part in parts]
        cosines = torch.stack(products).sum(0).to(first.dtype)
        for part in parts:
            tangent[part] = ((units(part) - cosines * mean[part]) * column).sum(0)
        angle = torch.linalg.vector_norm(tangent) + eps
        merged = mean.mul_(torch.cos(angle)).add_(tangent.mul_(torch.sin(angle) / angle))
        merged = merged.mul_((norms.squeeze(-1) * weights).sum())
    merged = merged.view_as(first)
    return merged if base is None else merged + base
