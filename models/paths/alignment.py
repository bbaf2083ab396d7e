"""Alignment: a layer that follows another one than it was trained behind gets inputs of the size that it knows.

Moments are measured on calibration tokens: along model m, as it was trained, x_{m,l} is the residual stream that enters
layer l, and x_{m,L} what enters the final norm. A path is in state (m, l) where x_{m,l} would enter layer l of model m:
its host's (h, 0) at first, and (m, l + 1) behind layer l of model m. Where the next layer (m', l') is another one, the
second moments of what it reads are brought to what it knows (HM3, B.4), as far as a gate g in [0, 1] opens:

    residual stream    x ← r x,        r = (E‖x_{m',l'}‖² / E‖x_{m,l}‖²)^(g/2)
    normalised reads   n ← d ⊙ n,      d_i = (E n_i(x_{m',l'})² / E n_i(x_{m,l})²)^(g/2)

Both fold into a plain checkpoint. Norms don't see the residual's scale, so scaling it by r is dividing what later
branches add to it by the product R of the scales so far; d goes into the weights of the layer's norms. This is exact up
to the norms' epsilon.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.candidate import Candidate, SourceLayer
from models.paths.path import at_position, path_model
from models.paths.pool import Pool, shallow_clone
from models.sources.architecture import Architecture
from models.sources.checkpoint import Source
from models.sources.digest import group_digest


@dataclass(frozen=True)
class Moments:
    """Second moments along one model, for the inputs of its L layers and of its final norm."""

    residual: Tensor
    """Mean square of the residual stream, ``(L + 1,)``."""
    read: Tensor
    """Mean square of its normalised form by dimension, ``(L + 1, D)``."""


@dataclass(frozen=True)
class Scale:
    """What one input is multiplied by."""

    residual: float
    """r."""
    read: Tensor
    """d, ``(D,)``."""


def measure_moments(pool: Pool, model: str, batches: Iterable[Tensor]) -> Moments:
    """Moments of a model of the pool, its layers in their own order.

    Args:
        pool: where the model is.
        model: its name.
        batches: calibration inputs, as the model's embedding takes them: token ids ``(B, T)`` without padding.
    """
    squares: list[Tensor] = []
    reads: list[Tensor] = []
    count = 0
    with torch.inference_mode():
        for batch in batches:
            ends = pool.ends(model)
            hidden, calls = ends.embed(batch.to(pool.device))
            inputs = [hidden]
            for layer, call in enumerate(calls):
                inputs.append(call.replay(pool.block(model, layer), inputs[-1]))
            stacked = torch.stack(inputs).double().flatten(1, 2)  # (L + 1, B T, D)
            squares.append(stacked.square().mean(-1).sum(-1))
            reads.append(normalised(stacked, pool.architecture).square().sum(1))
            count += stacked.shape[1]
    return Moments(sum(squares, torch.zeros(())) / count, sum(reads, torch.zeros(())) / count)


def normalised(hidden: Tensor, architecture: Architecture) -> Tensor:
    """What the family's norms make of hidden states ``(…, D)``, before their weights."""
    if architecture.centred:
        hidden = hidden - hidden.mean(-1, keepdim=True)
    return hidden / hidden.square().mean(-1, keepdim=True).sqrt()


@dataclass(frozen=True)
class Alignment:
    """The scales of every transition between models of which the moments are known."""

    moments: dict[str, Moments]
    gate: float
    """g: 0 leaves every path as it is, 1 matches the moments."""

    def scales(self, candidate: Candidate, layers: int) -> list[Scale | None]:
        """Scale at the input of each of the T layers of a path, and of the final norm; None in native order.

        Raises:
            KeyError: a model of the path wasn't measured.
        """
        states = [(candidate.host, 0), *((model, layer + 1) for model, layer in candidate.path)]
        return [
            None if state == place else self._scale(state, place)
            for state, place in zip(states, [*candidate.path, (candidate.host, layers)], strict=True)
        ]

    def _scale(self, state: SourceLayer, place: SourceLayer) -> Scale:
        (found, at), (known, layer) = (self.moments[state[0]], state[1]), (self.moments[place[0]], place[1])
        residual = (known.residual[layer] / found.residual[at]) ** (self.gate / 2)
        return Scale(float(residual), (known.read[layer] / found.read[at]) ** (self.gate / 2))


def aligned_model(pool: Pool, candidate: Candidate, alignment: Alignment) -> PreTrainedModel:
    """The path's model with scaled inputs, computed as it is written: the residual stream is multiplied.

    It copies no parameter but the weights of norms behind a transition.

    Raises:
        BadInput: the candidate can't be built from this pool.
    """
    model = path_model(pool, candidate)
    architecture = pool.architecture
    *scales, last = alignment.scales(candidate, pool.layers)
    blocks = model.get_submodule(architecture.live(architecture.blocks))
    for position, (step, scale) in enumerate(zip(candidate.path, scales, strict=True)):
        if scale is not None:
            block = at_position(pool.block(*step), position)
            for name in architecture.reads:
                _scale_weight(block, architecture.live(name), scale.read, architecture.norm_offset)
            blocks[position] = Scaled(block, scale.residual)
    if last is not None:
        norm, _, leaf = architecture.live(architecture.norm).rpartition(".")
        clone = shallow_clone(model.get_submodule(norm))
        _scale_weight(clone, leaf, last.read, architecture.norm_offset)
        model.set_submodule(norm, clone)
    return model


class Scaled(nn.Module):
    """A block whose input is multiplied by a number."""

    def __init__(self, block: nn.Module, residual: float) -> None:
        super().__init__()
        self.block = block
        self.residual = residual

    def __getattr__(self, name: str) -> Any:
        """Families ask a block for its kind of attention."""
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)

    def forward(self, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Hidden states ``(B, T, D)`` behind the block."""
        output: Tensor = self.block(self.residual * hidden, *arguments, **options)
        return output


class FoldedSource:
    """A path's plain model with its alignment folded in. Implements :class:`models.sources.checkpoint.Source`."""

    def __init__(self, plain: Source, architecture: Architecture, scales: Sequence[Scale | None]) -> None:
        """Wrap a path's model.

        Args:
            plain: the path's model without alignment, its layers in the path's order.
            architecture: of its family.
            scales: as :meth:`Alignment.scales` gives them.
        """
        self.plain = plain
        self.config = plain.config
        self.architecture = architecture
        self._scales = list(scales)
        self._products: list[float] = []
        for scale in scales:
            before = self._products[-1] if self._products else 1.0
            self._products.append(before * (scale.residual if scale else 1.0))

    def names(self) -> list[str]:
        """See ``Source``."""
        return self.plain.names()

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        tensor = self.plain.tensor(name)
        layer, inner = self.architecture.split(name)
        if layer is None:
            scale = self._scales[-1] if name == self.architecture.norm else None
            return tensor if scale is None else scaled_weight(tensor, scale.read, self.architecture.norm_offset)
        scale = self._scales[layer]
        if scale is not None and inner in self.architecture.reads:
            tensor = scaled_weight(tensor, scale.read, self.architecture.norm_offset)
        module, _, leaf = inner.rpartition(".")
        if self._products[layer] != 1 and module in self.architecture.writes:
            # where a branch ends in a norm, its weights may be stored less an offset
            offset = self.architecture.norm_offset if "norm" in module and leaf == "weight" else 0.0
            tensor = scaled_weight(tensor, torch.tensor(1 / self._products[layer]), offset)
        return tensor

    def digest(self, group: str) -> str:
        """See ``Source``."""
        return group_digest(self.architecture, self.names(), self.tensor, group)


def scaled_weight(weight: Tensor, scale: Tensor, offset: float) -> Tensor:
    """The weight ``(D, …)`` whose sum with the offset is ``scale`` (a number, or ``(D,)``) times what it was."""
    return ((weight.double() + offset) * scale.to(weight.device) - offset).to(weight.dtype)


def _scale_weight(module: nn.Module, name: str, scale: Tensor, offset: float) -> None:
    """Give a clone a norm weight of its own."""
    owner, _, leaf = name.rpartition(".")
    part = module.get_submodule(owner)
    weight = scaled_weight(part.get_parameter(leaf), scale, offset)
    part._parameters[leaf] = nn.Parameter(weight, requires_grad=False)
