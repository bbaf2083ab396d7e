"""Attention or MLP of a layer left out alone: what it loses, repaired or not, and what it saves.

What the attention of layer l adds to the stream is foreseen from what enters the second matrix of the MLP before it,
what its MLP adds from what enters the output matrix of its own attention: ridge regression as for a seam.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from models.candidate import Candidate
from models.paths.pool import shallow_clone
from models.paths.repair import listen
from tasks.bench.repair.arms import add
from tasks.bench.repair.ground import MERGE, Ground
from tasks.bench.repair.sweep import Walk, solve

ATTENTION, MLP = "self_attn.o_proj", "mlp.down_proj"
SIDES = ("inner", "outer")
PARTS = {"attention": ATTENTION, "mlp": MLP}
"""Last matrices of the halves of a layer of a Llama."""


@dataclass(frozen=True)
class Half:
    """A part of a layer that is left out."""

    part: str
    layer: int

    def __str__(self) -> str:
        return f"{self.part} {self.layer}"

    @property
    def zeroed(self) -> str:
        """The matrix that is zero without it."""
        return weight(self.layer, PARTS[self.part])

    @property
    def refitted(self) -> tuple[int, str]:
        """Layer and matrix that foresee what it adds."""
        return (self.layer - 1, MLP) if self.part == "attention" else (self.layer, ATTENTION)


def weight(layer: int, part: str) -> str:
    """Name of a matrix."""
    return f"model.layers.{layer}.{part}.weight"


@dataclass(frozen=True)
class Repair:
    """What makes good for a half."""

    added: Tensor
    """To the matrix that is refitted."""
    left: float
    """What it does not foresee of what the half adds, over the stream: mean squares."""


def left_out(ground: Ground, halves: Sequence[Half], repairs: Mapping[Half, Repair] | None = None) -> Candidate:
    """The merge without some halves; ``repairs``: what is added to the matrix that makes good for each."""
    path = dict.fromkeys(range(ground.layers), MERGE)
    changed: dict[int, dict[str, Tensor]] = {}
    for half in halves:
        layer, part = half.refitted
        if repairs and layer >= 0:
            own = changed.setdefault(layer, {})
            name = weight(layer, part)
            own[name] = own.get(name, ground.source.tensor(name).float()) + repairs[half].added
    for half in halves:
        changed.setdefault(half.layer, {})[half.zeroed] = torch.zeros_like(ground.source.tensor(half.zeroed))
    for layer, tensors in changed.items():
        path[layer] = add(ground, MERGE, tensors)
    return Candidate(MERGE, tuple((model, layer) for layer, model in path.items()))


def repairs_of(ground: Ground, tokens: int, ridge: float) -> dict[Half, Repair]:
    """What makes good for each half, from the uncut model's activations; layer 0's attention has nothing before it."""
    walk = Walk(ground, ground.texts(tokens))
    found: dict[Half, Repair] = {}
    before: Tensor | None = None
    for layer in range(ground.layers):
        stream = walk.stream()
        hidden, seen = inside(walk, layer)
        attention, mlp = seen["outer attention"], seen["outer mlp"]
        weights = walk.counts / (stream + attention).square().mean(dim=1)
        if before is not None:
            found[Half("attention", layer)] = foreseen(before, attention, weights, ridge)
        weights = walk.counts / walk.stream(hidden).square().mean(dim=1)
        found[Half("mlp", layer)] = foreseen(seen["inner attention"], mlp, weights, ridge)
        before, walk.hidden = seen["inner mlp"], hidden
    return found


def foreseen(inner: Tensor, wanted: Tensor, weights: Tensor, ridge: float) -> Repair:
    """The ridge regression of what is wanted ``(N, D)`` on inputs ``(N, F)``; the weights scale by the stream."""
    added = solve(inner, wanted, weights, ridge)
    left = (weights * (wanted - inner @ added.T).square().mean(dim=1)).sum() / (weights > 0).sum()
    return Repair(added, float(left))


def inside(walk: Walk, layer: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What leaves a layer, and what enters and leaves the last matrices of its halves, ``(N, …)``."""
    leaving: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {}
    for number, hidden in enumerate(walk.hidden):
        block = shallow_clone(walk.ground.pool.block(MERGE, layer))
        noted: dict[str, list[Tensor]] = {name: [] for name in PARTS}
        for name, part in PARTS.items():
            listen(block.get_submodule(part), noted[name])
        with torch.inference_mode():
            leaving.append(walk.calls[number][layer].replay(block, hidden))
            seen = {
                f"{side} {name}": one for name, pair in noted.items() for side, one in zip(SIDES, pair, strict=True)
            }
            for name, tensor in seen.items():
                rows = tensor.reshape(*hidden.shape[:2], -1)[walk.real[number]].float()
                parts.setdefault(name, []).append(rows)
    return leaving, {name: torch.cat(some) for name, some in parts.items()}


class Nothing(nn.Module):
    """Stands where attention or MLP was: adds nothing to the stream."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *_: object, **__: object) -> float | tuple[float, None]:
        """What is added; attention gives its weights too."""
        return (0.0, None) if self.attention else 0.0


def without(ground: Ground, layers: Sequence[int], halves: Sequence[Half]) -> PreTrainedModel:
    """A model in memory that lacks layers and halves: what is left out is not computed, and has no cache."""
    blocks: list[nn.Module] = []
    caches = 0
    for layer in range(ground.layers):
        if layer in layers:
            continue
        block = shallow_clone(ground.pool.block(MERGE, layer))
        if Half("mlp", layer) in halves:
            block.mlp, block.post_attention_layernorm = Nothing(attention=False), nn.Identity()
        if Half("attention", layer) in halves:
            block.self_attn, block.input_layernorm = Nothing(attention=True), nn.Identity()
        else:
            vars(block.self_attn)["layer_idx"], caches = caches, caches + 1
        blocks.append(block)
    return ground.pool.with_blocks(MERGE, blocks)


def saved(model: PreTrainedModel, batch: int, prompt: int = 16, answer: int = 16) -> tuple[float, float]:
    """Milliseconds that greedy decoding takes a token and text, and bytes of the cache a token and text."""
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache()
    with torch.inference_mode():
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        began = time.perf_counter()
        for _ in range(answer):
            chosen = logits[:, -1:].argmax(dim=-1)
            logits = model(chosen, past_key_values=cache, use_cache=True).logits
        seconds = time.perf_counter() - began
    held = sum(one.keys.nbytes + one.values.nbytes for one in cache.layers)
    return 1000 * seconds / answer / batch, held / batch / (prompt + answer)
