"""Where a model family keeps its blocks, embedding, final norm and head. A new decoder family is one entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import BadInput

ENDS = "ends"
"""Tensor group of what lies outside the blocks: embedding, final norm and head."""


@dataclass(frozen=True)
class Architecture:
    """Names of a decoder's tensors, and the keys of its ``config.json`` that depend on its depth."""

    blocks: str
    """Prefix of the blocks: block ``l`` holds the tensors ``{blocks}.{l}.…``."""
    embedding: str
    norm: str
    head: str
    layer_count: str = "num_hidden_layers"
    per_layer: tuple[str, ...] = ("layer_types",)
    """Keys that hold a list with one entry a layer."""
    sizes: tuple[str, ...] = (
        "hidden_size",
        "vocab_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    """Keys that models must share to be merged or to lend each other layers; the width comes first."""
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Endings of tensors that old checkpoints store although the model computes them."""

    def layers(self, config: dict[str, Any]) -> int:
        """Number of layers, L.

        Raises:
            BadInput: the config doesn't say.
        """
        count = config.get(self.layer_count)
        if not isinstance(count, int) or count < 1:
            raise BadInput(f"config.json: {self.layer_count}: {count} is no number of layers")
        return count

    def split(self, name: str) -> tuple[int | None, str]:
        """Layer of a tensor, and its name inside that block; ``None`` and the whole name where it is in no block."""
        if not name.startswith(f"{self.blocks}."):
            return None, name
        index, _, inner = name[len(self.blocks) + 1 :].partition(".")
        return int(index), inner

    def join(self, layer: int | None, inner: str) -> str:
        """Inverse of :meth:`split`."""
        return inner if layer is None else f"{self.blocks}.{layer}.{inner}"

    def group(self, name: str) -> str:
        """Tensor group: ``layer.3`` for block 3, ``ends`` for embedding, final norm and head.

        Raises:
            BadInput: the family has no tensor of that name.
        """
        layer, _ = self.split(name)
        if layer is not None:
            return f"layer.{layer}"
        if name in (self.embedding, self.norm, self.head):
            return ENDS
        raise BadInput(f"{name}: no tensor of this architecture; is it another kind of model?")

    def is_buffer(self, name: str) -> bool:
        """Whether the model computes this tensor itself."""
        return name.endswith(self.buffers)


LLAMA = Architecture("model.layers", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
}
"""By the name under ``architectures`` in ``config.json``."""


def architecture_of(config: dict[str, Any], label: str = "config.json") -> Architecture:
    """The entry of a model's family.

    Raises:
        BadInput: the family is unknown.
    """
    names = config.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise BadInput(f"{label}: architectures: {names[0]} is unknown; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[names[0]]


def group_of(config: dict[str, Any], name: str) -> str:
    """Tensor group of a tensor: ``layer.3`` for block 3, ``ends`` for embedding, final norm and head."""
    return architecture_of(config).group(name)


def is_tied(config: dict[str, Any]) -> bool:
    """Whether the head is the embedding."""
    return bool(config.get("tie_word_embeddings", False))


def with_layers(config: dict[str, Any], picks: Sequence[int]) -> dict[str, Any]:
    """The config of a model whose layer ``i`` is layer ``picks[i]`` of the model that ``config`` describes."""
    architecture = architecture_of(config)
    lists = {key: [config[key][layer] for layer in picks] for key in architecture.per_layer if config.get(key)}
    return {**config, architecture.layer_count: len(picks), **lists}
