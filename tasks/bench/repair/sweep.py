"""Repairs from a cut model's own activations: layer after layer, each refitted behind what was repaired before it.

The uncut model runs beside the cut one; a layer is to hand on the stream behind which the next one was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.candidate import Candidate
from models.paths.pool import shallow_clone, unwatched
from models.paths.prefix import Requests
from models.paths.repair import Seam, Sums, listen, modules_of, products, seams_of, solved, weights_of
from models.paths.sweep import Sweep
from models.paths.threads import single_threads
from tasks.bench.repair.arms import add, add_fold
from tasks.bench.repair.ground import MERGE, Ground

ANY = Seam(MERGE, 0, MERGE, 0)
"""Stands for whatever is solved for alone."""

OUTPUT = "self_attn.o_proj"
"""The last matrix of the attention of a Llama."""


@dataclass
class Walk:
    """Batches of one model on their way through the layers."""

    ground: Ground
    requests: Requests

    def __post_init__(self) -> None:
        with torch.inference_mode():
            found = [self.ground.pool.ends(MERGE).embed(batch.inputs) for batch in self.requests.batches]
        self.hidden = [one for one, _ in found]
        self.calls = [calls for _, calls in found]
        self.level = 0

    @cached_property
    def real(self) -> list[Tensor]:
        """Which hidden states of each batch are tokens."""
        return [batch.real(hidden) for batch, hidden in zip(self.requests.batches, self.hidden, strict=True)]

    @cached_property
    def counts(self) -> Tensor:
        """What each token counts beside its scale, ``(N,)``."""
        architecture = self.ground.pool.architecture
        pairs = zip(self.requests.batches, self.hidden, self.real, strict=True)
        return torch.cat([weights_of(architecture, batch, hidden)[real] for batch, hidden, real in pairs])

    def stream(self, hidden: Sequence[Tensor] | None = None) -> Tensor:
        """The tokens' states ``(N, D)``."""
        pairs = zip(hidden or self.hidden, self.real, strict=True)
        return torch.cat([one[real].float() for one, real in pairs])

    def through(self, model: str, layer: int, part: str = "") -> tuple[list[Tensor], Tensor | None]:
        """What leaves a layer; and what enters one of its parts, ``(N, F)``."""

        def run(number: int) -> tuple[Tensor, Tensor | None]:
            with torch.inference_mode():
                block = self.ground.pool.block(model, layer)
                seen: list[Tensor] = []
                if part:
                    block = shallow_clone(block)
                    listen(block.get_submodule(part), seen)
                hidden = self.calls[number][layer].replay(block, self.hidden[number])
                inner = seen[0].reshape(*hidden.shape[:2], -1)[self.real[number]].float() if part else None
                return hidden, inner

        with single_threads(torch.get_num_threads()) as workers:
            found = list(workers.map(run, range(len(self.hidden))))
        return [one for one, _ in found], torch.cat([one for _, one in found if one is not None]) if part else None

    def advance(self, level: int) -> None:
        """Run the uncut model up to the stream that enters layer ``level``."""
        for layer in range(self.level, level):
            self.hidden, _ = self.through(MERGE, layer)
        self.level = max(self.level, level)


def in_turn(ground: Ground, path: Candidate, requests: Requests, ridge: float, every: bool = False) -> Candidate:
    """Refit the layers before seams one after the other, as the product refits members.

    Args:
        ground: the family.
        path: an ordered path through the merge.
        requests: calibration items.
        ridge: ϱ.
        every: whether layers without a seam behind them are refitted too, from the first seam on.
    """
    positions = refitted(ground, path, every)
    (folds,) = Sweep(requests, ridge, positions).run(ground.pool, [path], unwatched)
    steps = list(path.path)
    for position, fold in folds.items():
        model, layer = steps[position]
        steps[position] = add_fold(ground, model, layer, fold), layer
    return Candidate(path.host, tuple(steps))


def refitted(ground: Ground, path: Candidate, every: bool) -> tuple[int, ...]:
    """Positions of the layers that are refitted."""
    marked = seams_of(path, ground.layers)
    return tuple(range(min(marked), path.depth)) if every and marked else tuple(marked)


def with_attention(ground: Ground, path: Candidate, requests: Requests, ridge: float, every: bool = False) -> Candidate:
    """The same with the attention's last matrix refitted before the MLP's."""
    cut, uncut = Walk(ground, requests), Walk(ground, requests)
    positions = refitted(ground, path, every)
    steps = list(path.path)
    following = [layer for _, layer in steps[1:]] + [ground.layers]
    for position, (model, layer) in enumerate(steps):
        if position in positions:
            uncut.advance(following[position])
            for part in (OUTPUT, modules_of(ground.pool.architecture)[0]):
                model = closer(ground, cut, uncut, model, layer, part, ridge)
            steps[position] = model, layer
        cut.hidden, _ = cut.through(model, layer)
    return Candidate(path.host, tuple(steps))


def closer(ground: Ground, cut: Walk, uncut: Walk, model: str, layer: int, part: str, ridge: float) -> str:
    """A model one matrix of which takes a layer's output closer to the uncut stream; its name in the pool."""
    hidden, inner = cut.through(model, layer, part)
    if inner is None:
        raise ValueError(part)
    target = uncut.stream()
    added = solve(inner, target - cut.stream(hidden), cut.counts / target.square().mean(dim=1), ridge)
    name = ground.pool.architecture.join(layer, f"{part}.weight")
    return add(ground, model, {name: ground.pool._source(model).tensor(name).float() + added})


def solve(inner: Tensor, wanted: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """The matrix ``(D, F)`` that takes inputs ``(N, F)`` closest to what is wanted ``(N, D)``: weighted ridge."""
    one = Sums([ANY], has_bias=False, totals=products(inner, [wanted], weight))
    return solved(one, ridge)[ANY].weight
