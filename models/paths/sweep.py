"""A cut model refitted as a whole: layer after layer from its first seam on, each behind what was refitted before it.

The uncut model runs beside the cut one on the same calibration items. Each layer's second MLP matrix is refitted as at
a seam (``models/paths/repair.py``), from what enters it in the *cut* model, to the stream that the next layer was
trained behind: so later layers take back what the ones before could not. It takes two passes through the layers however
many are refitted, for one path alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.folded import Fold, folded, parts_of
from models.paths.pool import Pool, shallow_clone
from models.paths.prefix import Requests, Scorable
from models.paths.repair import Seam, listen, modules_of, products, solved, sums_of, weights_of
from models.paths.threads import single_threads
from models.sources.architecture import Architecture

Given = TypeVar("Given")
Made = TypeVar("Made")


def can_sweep(architecture: Architecture, candidate: Candidate) -> bool:
    """Whether a path leads forward through one model, so that it has an uncut one to run beside.

    Not in families with a norm behind the MLP, where it has shown no gain over seams alone.
    """
    layers = [layer for _, layer in candidate.path]
    return len(candidate.models) == 1 and layers == sorted(set(layers)) and not architecture.behind


@dataclass(frozen=True)
class Sweep:
    """The job (:class:`models.paths.pool.Job`) of refitting paths."""

    requests: Requests
    ridge: float
    positions: tuple[int, ...]
    """Of the layers that are refitted."""

    def run(
        self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]
    ) -> list[dict[int, Fold]]:
        """For each path what is added to which of its layers, by their position."""
        return [sweep(pool, one, self.requests, self.ridge, self.positions, on_done) for one in candidates]


class Walk:
    """A batch on its way through the layers of the cut model and of the uncut one."""

    def __init__(self, pool: Pool, model: str, batch: Scorable) -> None:
        batch = batch.to(pool.device)
        self.cut, self.calls = pool.ends(model).embed(batch.inputs)
        self.uncut = self.cut
        self.level = 0
        self.real = batch.real(self.cut)
        self.weight = weights_of(pool.architecture, batch, self.cut)[self.real]

    def advance(self, pool: Pool, model: str, level: int) -> None:
        """Run the uncut model up to the stream that enters a layer."""
        for layer in range(self.level, level):
            self.uncut = self.calls[layer].replay(pool.block(model, layer), self.uncut)
        self.level = level


def sweep(
    pool: Pool,
    candidate: Candidate,
    requests: Requests,
    ridge: float,
    positions: Collection[int],
    on_done: Callable[[float], None],
) -> dict[int, Fold]:
    """What refits a path, by the position of each layer.

    Args:
        pool: has the model.
        candidate: see :func:`can_sweep`.
        requests: the calibration items.
        ridge: as in :func:`models.paths.repair.calibrate`.
        positions: of the layers that are refitted.
        on_done: told in parts of one how much more is done.

    Raises:
        BadInput: activations are not finite.
    """
    model, found = candidate.host, dict[int, Fold]()
    following = [*(layer for _, layer in candidate.path[1:]), pool.layers]
    threads = torch.get_num_threads() if pool.device.type == "cpu" else 1
    with single_threads(threads) as workers:
        walks = each(workers, lambda batch: Walk(pool, model, batch), requests.batches)
        for position, (_, layer) in enumerate(candidate.path):
            block = pool.block(model, layer)
            if position in positions:
                seam = Seam(model, layer, model, following[position])
                (one,) = sums_of(pool, [seam]).values()
                add_up = partial(_sums, pool=pool, seam=seam, has_bias=one.has_bias)
                for start in range(0, len(walks), threads):
                    for sums in each(workers, add_up, walks[start : start + threads]):
                        with torch.inference_mode():
                            one.add(sums)
                found[position] = each(workers, partial(solved, ridge=ridge), [one])[0][seam]
                block = with_fold(pool, block, found[position])
            each(workers, partial(_step, block=block, layer=layer), walks)
            on_done(1 / candidate.depth)
    return found


def each(workers: ThreadPoolExecutor, do: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """What comes of each, in their order."""

    def quietly(one: Given) -> Made:
        with torch.inference_mode():
            return do(one)

    return list(workers.map(quietly, given))


def _step(walk: Walk, block: nn.Module, layer: int) -> None:
    walk.cut = walk.calls[layer].replay(block, walk.cut)


def _sums(walk: Walk, pool: Pool, seam: Seam, has_bias: bool) -> list[Tensor]:
    """What a batch adds to the sums of a layer of the cut model, whose stream is to be the uncut one's."""
    block, seen = shallow_clone(pool.block(seam.model, seam.layer)), list[Tensor]()
    listen(block.get_submodule(modules_of(pool.architecture)[0]), seen)
    walk.advance(pool, seam.model, seam.next)
    after = walk.calls[seam.layer].replay(block, walk.cut)[walk.real].float()
    inner, target = seen[0].reshape(*walk.real.shape, -1)[walk.real].float(), walk.uncut[walk.real].float()
    if not (after.isfinite().all() and inner.isfinite().all()):
        raise BadInput(f"{seam.model}: layer {seam.layer}: its activations are not finite on the calibration items")
    weight = walk.weight / target.square().mean(dim=1)
    return products(inner, [target - after], weight, has_bias)


def with_fold(pool: Pool, block: nn.Module, fold: Fold) -> nn.Module:
    """A block with what a fold adds to it."""
    clone, prefix = shallow_clone(block), pool.architecture.live(pool.architecture.join(0, ""))
    for inner in filter(None, parts_of(pool.architecture)):
        name = pool.architecture.live(pool.architecture.join(0, inner)).removeprefix(prefix)
        owner, _, leaf = name.rpartition(".")
        module = clone.get_submodule(owner)
        if (held := module._parameters.get(leaf)) is not None:
            tensor = folded(pool.architecture, inner, held.data, fold)
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    return clone
