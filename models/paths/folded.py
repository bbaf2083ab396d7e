"""A layer with what repairs the seam behind it: tensors of a plain model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from models.sources.architecture import Architecture, architecture_of, module_of
from models.sources.checkpoint import Source


@dataclass(frozen=True)
class Fold:
    """What is added to a layer to repair a seam behind it."""

    weight: Tensor
    """To the second matrix of its MLP, ``(D, F)`` float32."""
    bias: Tensor | None = None
    """To that matrix's bias, ``(D,)``."""
    scale: float | None = None
    """By which the norm behind the MLP is multiplied, in families that have one there."""

    def on_cpu(self) -> Fold:
        """The same on the CPU."""
        return Fold(self.weight.cpu(), None if self.bias is None else self.bias.cpu(), self.scale)


class RepairedSource:
    """A model one layer of which is repaired. Implements :class:`models.sources.checkpoint.Source`."""

    def __init__(
        self,
        source: Source,
        layer: int,
        fold: Callable[[], Fold],
        key: str,
        block: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            source: the model.
            layer: the one that is repaired.
            fold: what is added to it; asked for when a tensor that it changes is.
            key: names the fold's content.
            block: the layer in memory, whose other tensors are shared, if it is there.
        """
        self.config = source.config
        self.source = source
        self.fold = fold
        self.layer = layer
        self._key = key
        self._block = block
        self._architecture = architecture_of(source.config)

    def names(self) -> list[str]:
        """See ``Source``."""
        return self.source.names()

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        layer, inner = self._architecture.split(name)
        if layer != self.layer or inner not in parts_of(self._architecture):
            if layer != self.layer or self._block is None:
                return self.source.tensor(name)
            mine = self._architecture.live(name)[len(self._architecture.live(self._architecture.join(layer, ""))) :]
            return self._block().get_parameter(mine)
        return folded(self._architecture, inner, self.source.tensor(name), self.fold())

    def digest(self, group: str) -> str:
        """See ``Source``; that of the repaired layer follows from the model's own and the key."""
        own = self.source.digest(group)
        if group != self._architecture.group(self._architecture.join(self.layer, self._architecture.down)):
            return own
        return hashlib.sha256(f"{own}\n{self._key}".encode()).hexdigest()


def parts_of(architecture: Architecture) -> tuple[str, ...]:
    """The tensors of a layer that a repair may change, by their names inside the block; few families have them all."""
    return architecture.down, f"{module_of(architecture.down)}.bias", architecture.behind


def folded(architecture: Architecture, inner: str, tensor: Tensor, fold: Fold) -> Tensor:
    """A tensor of a layer with what repairs the seam behind it; ``inner``: one of :func:`parts_of`."""
    weight, bias, _ = parts_of(architecture)
    if inner == weight:
        added = fold.weight.T if architecture.inputs_first else fold.weight
        return (tensor.float() + added.to(tensor.device)).to(tensor.dtype)
    if inner == bias:
        return tensor if fold.bias is None else (tensor.float() + fold.bias.to(tensor.device)).to(tensor.dtype)
    # a norm that multiplies by 1 + its weight
    return tensor if fold.scale is None else ((1 + tensor.float()) * fold.scale - 1).to(tensor.dtype)
