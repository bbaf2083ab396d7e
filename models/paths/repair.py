"""Seams repaired: one matrix of the last layer before a cut is refitted in closed form to what the next layer expects.

A path that leaves out layers i+1 … j−1 hands the stream X_{i+1} to layer j, which was trained behind X_j. With A the
inputs (N, F) of the second matrix of layer i's MLP and X_l the streams (N, D) that enter layer l, both of the *uncut*
model on N tokens of calibration items (method.md, section 4):

    w_t = 1 / mean(X_{i+2,t}²), five times that where an answer is read from, 0 for each text's first token
    G = AᵀWA,  S_{i,j} = (G + ϱ mean(diag G))⁻¹ AᵀW(X_j − X_{i+1})

is added to the matrix, transposed. Ridge regression is linear in its target, so that repairs of runs are sums of those
of layers, one factorisation serves every run behind a layer, and what comes of it is a plain model. Layer 0 has nothing
before it to be refitted. Where the next layer is another model's, X_j is that model's stream on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.folded import Fold
from models.paths.pool import Pool, shallow_clone, unwatched
from models.paths.prefix import Requests, Scorable
from models.paths.threads import single_threads
from models.sources.architecture import Architecture, module_of

DAMP = 0.01
"""A norm that silences a channel is not undone there, where the channel would outweigh all others."""

ANSWER = 5.0
"""Weight of a token that an answer is read from, over that of any other. With four layers of SmolLM2 left out the worst
task loses 11 to 12 % with it, and 13 % without."""

VERSION = 1
"""Goes into every digest. To be raised when the same calibration no longer gives the same numbers."""


@dataclass(frozen=True, order=True)
class Seam:
    """Where a path leaves the order of a model's layers."""

    model: str
    layer: int
    """The last layer before it, which is refitted."""
    towards: str
    """The model whose layer comes next, or whose final norm."""
    next: int
    """The layer that comes next; L where the path ends."""

    @property
    def leaves_out(self) -> int:
        """How many layers are left out; none in a repeat, a step back or a mere change of the model."""
        return max(0, self.next - self.layer - 1)

    def within(self) -> Seam:
        """The same as if the path went on in its model: what is repaired where another model's layer comes next.

        Refitted to the other model's stream the layer would make that model's mistakes: on the family `tiny` it costs
        .15 to .2 of the accuracy of the task in which the other is worse.
        """
        return Seam(self.model, self.layer, self.model, self.next)


def seams_of(candidate: Candidate, layers: int) -> dict[int, Seam]:
    """The seams of a path by the position (0 … T−1) of the layer before each; ``layers``: L."""
    steps = [*candidate.path, (candidate.host, layers)]
    return {
        position: Seam(model, layer, towards, following)
        for position, ((model, layer), (towards, following)) in enumerate(pairwise(steps))
        if (model, layer + 1) != (towards, following)
    }


@dataclass
class Sums:
    """Sums over tokens for the seams behind one layer."""

    seams: list[Seam]
    has_bias: bool
    """Whether the last row and column of AᵀWA is a bias's."""
    totals: list[Tensor] = field(default_factory=list)
    """AᵀWA, ``(F, F)``, with a row and a column for a bias; of each seam AᵀW times its target, ``(F, D)``; and the sum
    of the weights, with each seam's weighted scales where there are any."""

    def add(self, more: list[Tensor]) -> None:
        """Add a batch's sums."""
        self.totals = [total.add_(new) for total, new in zip(self.totals, more, strict=True)] if self.totals else more


@dataclass(frozen=True)
class Streams:
    """What one model does with the tokens of a batch that count."""

    stream: tuple[Tensor, ...]
    """What enters layer 0 … L−1, and what leaves the last: L + 1 times ``(N, D)``."""
    inner: Mapping[int, Tensor]
    """By layer what enters the second matrix of its MLP, ``(N, F)``."""
    outer: Mapping[int, Tensor]
    """By layer what leaves that matrix, ``(N, D)``, where there is a norm behind it."""
    weight: Tensor
    """0 for a text's first token, to which attention goes that has nothing to look at, and more where an answer is read
    from, ``(N,)``."""


def calibrate(
    pool: Pool,
    requests: Requests,
    seams: Iterable[Seam],
    ridge: float,
    on_done: Callable[[float], None] = unwatched,
) -> dict[Seam, Fold]:
    """The folds that repair some seams, all from the uncut models' activations on calibration items.

    Sums grow in the order of the batches, each in one thread: the same items give the same folds, bit for bit, whatever
    the number of threads. No activation is kept longer than its batch.

    Args:
        pool: has the models.
        requests: the calibration items, with their answers.
        seams: each once.
        ridge: ϱ, relative to the mean of the diagonal of G.
        on_done: told how many more batches are done.

    Raises:
        BadInput: activations are not finite.
    """
    sums = sums_of(pool, seams)
    models: dict[str, set[int]] = {}
    for model, layer in sums:
        models.setdefault(model, set()).add(layer)
    for seam in (seam for one in sums.values() for seam in one.seams):
        models.setdefault(seam.towards, set())
    threads = torch.get_num_threads() if pool.device.type == "cpu" else 1

    def watch(batch: Scorable) -> dict[str, Streams]:
        with torch.inference_mode():
            return {name: watched(pool, name, batch.to(pool.device), layers) for name, layers in models.items()}

    def add(one: Sums, seen: Sequence[dict[str, Streams]]) -> None:
        with torch.inference_mode():
            for streams in seen:
                add_batch(pool, one, streams)

    def solve(one: Sums) -> dict[Seam, Fold]:
        with torch.inference_mode():
            return solved(one, ridge)

    with single_threads(threads) as workers:
        for first in range(0, len(requests.batches), threads):
            some = requests.batches[first : first + threads]
            seen = list(workers.map(watch, some))
            list(workers.map(partial(add, seen=seen), sums.values()))
            on_done(len(some))
        return {seam: fold for folds in workers.map(solve, sums.values()) for seam, fold in folds.items()}


def watched(pool: Pool, model: str, batch: Scorable, layers: Collection[int]) -> Streams:
    """What an uncut model does with a batch; ``layers``: those whose MLP is watched.

    Raises:
        BadInput: activations are not finite.
    """
    hidden, calls = pool.ends(model).embed(batch.inputs)
    real = batch.real(hidden)
    weight = weights_of(pool.architecture, batch, hidden)
    stream, inner, outer = [hidden[real].float()], {}, {}
    for layer in range(pool.layers):
        block = pool.block(model, layer)
        if layer in layers:
            block = shallow_clone(block)  # a hook on the pool's own would hear other threads' batches
            seen: list[Tensor] = []
            down, norm = modules_of(pool.architecture)
            listen(block.get_submodule(down), seen)
        hidden = calls[layer].replay(block, hidden)
        stream.append(hidden[real].float())
        if layer in layers:
            inner[layer] = seen[0].reshape(*real.shape, -1)[real].float()
            if norm:
                outer[layer] = seen[1][real].float()
        if not (stream[-1].isfinite().all() and inner.get(layer, stream[-1]).isfinite().all()):
            raise BadInput(f"{model}: layer {layer}: its activations are not finite on the calibration items")
    return Streams(tuple(stream), inner, outer, weight[real])


def weights_of(architecture: Architecture, batch: Scorable, hidden: Tensor) -> Tensor:
    """How much each token of a batch counts beside its scale, ``(B, T)``; see :class:`Streams`."""
    weight = 1 + (ANSWER - 1) * batch.answering(hidden).float()
    if not architecture.classes:
        weight[:, 0] = 0
    return weight


def modules_of(architecture: Architecture) -> tuple[str, str]:
    """Inside a block in memory, the second linear layer of the MLP and the norm that it passes, empty without one."""
    block = architecture.live(architecture.join(0, ""))
    names = (module_of(part) for part in (architecture.down, architecture.behind))
    down, norm = (name and architecture.live(architecture.join(0, name)).removeprefix(block) for name in names)
    return down, norm


def listen(module: nn.Module, seen: list[Tensor]) -> None:
    """Note what enters and what leaves a module."""

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((inputs[0], output))

    module.register_forward_hook(note)


def sums_of(pool: Pool, seams: Iterable[Seam]) -> dict[tuple[str, int], Sums]:
    """Empty sums for some seams, by the model and layer that are refitted."""
    name = module_of(pool.architecture.live(pool.architecture.join(0, pool.architecture.down)))
    has_bias = pool.skeleton.get_submodule(name)._parameters.get("bias") is not None
    found: dict[tuple[str, int], Sums] = {}
    for seam in sorted(seams):
        found.setdefault((seam.model, seam.layer), Sums([], has_bias)).seams.append(seam)
    return found


def add_batch(pool: Pool, one: Sums, streams: Mapping[str, Streams]) -> None:
    """Add a batch, of which the streams of each model are given, to the sums of one layer."""
    first = one.seams[0]
    mine, layer = streams[first.model], first.layer
    weight = mine.weight / mine.stream[min(layer + 2, pool.layers)].square().mean(dim=1)
    wanted = [streams[seam.towards].stream[seam.next] - mine.stream[layer + 1] for seam in one.seams]
    norm = None
    if layer in mine.outer:
        gain = pool.block(first.model, layer).get_parameter(f"{modules_of(pool.architecture)[1]}.weight")
        norm = mine.outer[layer], 1 + gain.float()
    one.add(products(mine.inner[layer], wanted, weight, one.has_bias, norm))


def products(
    inner: Tensor,
    wanted: Sequence[Tensor],
    weight: Tensor,
    has_bias: bool = False,
    norm: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:
    """What a batch adds to :class:`Sums`.

    Args:
        inner: what enters the matrix, ``(N, F)``.
        wanted: what each seam wants added to the stream, ``(N, D)`` each.
        weight: of each token, ``(N,)``.
        has_bias: whether a bias is refitted with it.
        norm: what leaves the matrix, ``(N, D)``, and the gain ``(D,)`` of a norm that it passes before the stream.
    """
    if has_bias:
        inner = torch.cat([inner, torch.ones_like(inner[:, :1])], dim=1)
    targets, scales = list(wanted), [weight.sum()]
    if norm is not None:
        outer, gain = norm
        undone = gain / (gain.square() + DAMP * gain.square().mean())
        for number, target in enumerate(targets):
            turned = outer / rms(outer) + target * undone
            size = rms(turned)
            targets[number] = turned / size * rms(outer) - outer
            scales.append((weight * size.squeeze(1)).sum())
    root = weight.sqrt().unsqueeze(1)
    inner = inner * root
    # a product each, so that a seam's sums are the same whichever others are asked for with it
    return [inner.T @ inner, *(inner.T @ (target * root) for target in targets), torch.stack(scales)]


def solved(one: Sums, ridge: float) -> dict[Seam, Fold]:
    """The folds of one layer, from its sums."""
    gram, *cross, scales = (total.double() for total in one.totals)
    free, first = len(gram) - one.has_bias, one.seams[0]
    gram.diagonal()[:free] += ridge * gram.diagonal()[:free].mean()
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise BadInput(f"{first.model}: layer {first.layer}: too few calibration items to solve for it; give more")
    found = {}
    for number, (seam, target) in enumerate(zip(one.seams, cross, strict=True), start=1):
        solved = torch.cholesky_solve(target, factor).float().T
        bias = solved[:, free].clone() if free < len(gram) else None
        scale = float(scales[number] / scales[0]) if len(scales) > 1 else None
        found[seam] = Fold(solved[:, :free].contiguous(), bias, scale)
    return found


def rms(rows: Tensor) -> Tensor:
    """Root of the mean square of each row as norms have it, ``(N, 1)``."""
    return (rows.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
