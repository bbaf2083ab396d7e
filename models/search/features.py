"""Statistics of each source layer's weights: φ(θ_{m,l}) of the published algorithm (Zhou et al. 2025, Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from models.front import Array
from models.sources.checkpoint import Source

SPECTRUM = 3
"""Leading singular values that are kept."""
FEATURES = 3 + SPECTRUM
"""F: relative norm of δ, cosine to the base, sign agreement, leading singular values."""


def layer_statistics(
    base: Source,
    pool: Mapping[str, Source],
    experts: Sequence[str],
    layers: int,
    group_of: Callable[[str], str],
    on_tensor: Callable[[], None] | None = None,
) -> Array:
    """Statistics (M, L, F) of every layer of every model of a pool, standardised over models and layers.

    In order, with δ the layer's task vector and θ₀ the base's layer: ‖δ‖/‖θ₀‖; the cosine of θ₀ + δ to θ₀; the mean
    share of entries of δ that the other experts move in the same direction; and δ's leading singular values over its
    Frobenius norm, averaged over its matrices, by two power iterations from a fixed start (Halko et al. 2011).

    Args:
        pool: the models by name, in the order of the path space.
        experts: names in the pool whose task vectors are compared with.
        group_of: gives "layer.3" for the tensors of block 3.
        on_tensor: called for every tensor name that is done.
    """
    before_square = torch.zeros(layers, dtype=torch.float64)  # ‖θ₀‖²
    square, dot, after_square, agree, compared = torch.zeros(5, len(pool), layers, dtype=torch.float64)
    spectrum = torch.zeros(len(pool), layers, SPECTRUM + 1, dtype=torch.float64)  # the last counts matrices
    for name in base.names():
        if not group_of(name).startswith("layer."):
            continue
        layer = int(group_of(name).removeprefix("layer."))
        before = base.tensor(name).float()
        before_square[layer] += before.square().sum()
        signs: dict[str, torch.Tensor] = {}  # a byte an entry
        for m, (model, source) in enumerate(pool.items()):
            delta = source.tensor(name).float() - before
            after = before + delta
            square[m, layer] += delta.square().sum()
            dot[m, layer] += (after * before).sum()
            after_square[m, layer] += after.square().sum()
            signs[model] = delta.sign().to(torch.int8)
            if delta.ndim == 2:
                spectrum[m, layer, :SPECTRUM] += leading_singular_values(delta) / delta.norm().clamp_min(1e-30)
                spectrum[m, layer, SPECTRUM] += 1
        for m, model in enumerate(pool):
            moved = signs[model] != 0
            others = [expert for expert in experts if expert != model]
            compared[m, layer] += len(others) * torch.count_nonzero(moved)
            for expert in others:
                agree[m, layer] += torch.count_nonzero((signs[model] == signs[expert]) & moved)
        if on_tensor:
            on_tensor()
    statistics = torch.cat(
        [
            (square / before_square).sqrt()[..., None],
            (dot / (after_square * before_square).sqrt())[..., None],
            (agree / compared.clamp_min(1))[..., None],
            spectrum[..., :SPECTRUM] / spectrum[..., SPECTRUM:].clamp_min(1),
        ],
        dim=-1,
    ).numpy()
    spread = statistics.std(axis=(0, 1))
    return np.asarray((statistics - statistics.mean(axis=(0, 1))) / np.where(spread > 1e-9, spread, 1.0))


def leading_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The ``SPECTRUM`` greatest singular values of a matrix (m, n), greatest first; zeros where it has fewer."""
    width = min(SPECTRUM + 5, *matrix.shape)
    rows = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).T
    for _ in range(2):
        rows = orthonormal(orthonormal(rows @ matrix.T) @ matrix)
    values = torch.linalg.svdvals(orthonormal(rows @ matrix.T) @ matrix)[:SPECTRUM]
    return torch.nn.functional.pad(values, (0, SPECTRUM - len(values))).double()


def orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (k, n) of what k rows (k, n) span: rows, as they are multiplied faster than columns."""
    columns: torch.Tensor = torch.linalg.qr(rows.T).Q
    return columns.T
