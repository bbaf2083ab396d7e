"""Folds on disk, a file a seam, and the job that computes them where the models are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from models.candidate import Candidate
from models.files import reading
from models.paths.folded import Fold
from models.paths.pool import Pool
from models.paths.prefix import Requests
from models.paths.repair import Seam, calibrate

FLOAT = 4
"""Bytes of a number in the sums."""


@dataclass(frozen=True)
class Calibrate:
    """The job (:class:`models.paths.pool.Job`) of computing folds."""

    requests: Requests
    seams: tuple[Seam, ...]
    ridge: float

    def run(
        self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]
    ) -> list[dict[Seam, Fold]]:
        """The folds, once; ``candidates`` only say where the models are.

        The items pass as often as the sums of all layers fit into what the pool may hold.
        """
        groups = layers_together(self.seams, sum_bytes(pool), pool.max_bytes)
        found: dict[Seam, Fold] = {}
        for group in groups:
            folds = calibrate(
                pool,
                self.requests,
                group,
                self.ridge,
                lambda done: on_done(done * len(candidates) / len(groups) / len(self.requests.batches)),
            )
            found |= {seam: fold.on_cpu() for seam, fold in folds.items()}
        return [found for _ in candidates[:1]]


def sum_bytes(pool: Pool) -> tuple[int, int]:
    """Bytes of a layer's Gram matrix, and of what each seam behind it takes beside it."""
    matrix = pool.skeleton.get_parameter(pool.architecture.live(pool.architecture.join(0, pool.architecture.down)))
    inner = matrix.shape[0 if pool.architecture.inputs_first else 1]
    return FLOAT * inner * inner, FLOAT * matrix.numel()


def layers_together(seams: Sequence[Seam], sizes: tuple[int, int], most: int) -> list[list[Seam]]:
    """Seams in groups, those behind one layer together, whose sums take at most so many bytes, or one layer's."""
    gram, each = sizes
    groups: list[list[Seam]] = []
    held = 0
    for layer in dict.fromkeys((seam.model, seam.layer) for seam in sorted(seams)):
        own = [seam for seam in sorted(seams) if (seam.model, seam.layer) == layer]
        size = gram + each * len(own)
        if not groups or held + size > most:
            groups.append([])
            held = 0
        groups[-1] += own
        held += size
    return groups


def write_fold(path: Path, fold: Fold) -> None:
    """Write a safetensors file, whole or not at all."""
    scale = None if fold.scale is None else torch.tensor([fold.scale], dtype=torch.float64)
    parts = {"weight": fold.weight, "bias": fold.bias, "scale": scale}
    beside = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_bytes(save({name: part for name, part in parts.items() if part is not None}))
    beside.replace(path)


def read_fold(path: Path) -> Fold:
    """Read a file of :func:`write_fold`.

    Raises:
        BadInput: it is damaged.
    """
    with reading(str(path), "remove it"):
        held: dict[str, Tensor] = load(path.read_bytes())
        scale = float(held["scale"]) if "scale" in held else None
        return Fold(held["weight"].float(), held.get("bias"), scale)
