"""Where a model family keeps its blocks, embedding, final norm and head. A new family is one entry.

Names are those of the tensors in the family's checkpoints. Where transformers calls a module otherwise in memory, the
entry says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.errors import BadInput, one_line

INDEX = re.compile("0|[1-9][0-9]{0,5}")
"""Of a block in the name of a tensor."""

ENDS = "ends"
"""Tensor group of what lies outside the blocks: embedding, final norm and head."""

DECODER_SIZES = (
    "hidden_size",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
VISION_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size", "projection_dim")


@dataclass(frozen=True)
class Architecture:
    """Names of a family's tensors, and the keys of its ``config.json`` that depend on its depth."""

    blocks: str
    """Prefix of the blocks: block ``l`` holds the tensors ``{blocks}.{l}.…``."""
    embedding: str
    norm: str
    head: str | None
    """A family without a head ends with its final norm."""
    before: tuple[str, ...] = ()
    """Modules, or tensors, before the blocks, beside the embedding's own."""
    after: tuple[str, ...] = ()
    """Modules, or tensors, behind the blocks, beside the norm's and the head's own."""
    in_memory: tuple[tuple[str, str], ...] = ()
    """Parts of names in checkpoints, and what they are in memory; applied in this order."""
    layer_count: str = "num_hidden_layers"
    per_layer: tuple[str, ...] = ("layer_types",)
    """Keys that hold a list with one entry a layer."""
    sizes: tuple[str, ...] = DECODER_SIZES
    """Keys that models must share to be merged or to lend each other layers; the width comes first."""
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Endings of tensors that old checkpoints store although the model computes them."""
    tied: bool = False
    """Whether the head is the embedding where ``config.json`` doesn't say."""
    inputs_first: bool = False
    """Whether weights of linear layers are stored as (inputs, outputs)."""
    left_out: str = ""
    """Prefix that some of the family's checkpoints leave out."""
    classes: Literal["", "head", "texts"] = ""
    """Of an encoder of images: whether classes are rows of its head, or texts where its head projects to."""
    beside: tuple[str, ...] = ()
    """Beginnings of tensors that some of the family's checkpoints hold beside the encoder, such as a text tower."""
    down: str = "mlp.down_proj.weight"
    """Second matrix of a block's MLP, by its name inside the block; what leaves it is added to the residual stream."""
    behind: str = ""
    """Weight of a norm that it passes before that."""
    fixed_place: tuple[str, ...] = ()
    """Switches that make a layer depend on its own index, so that it can't stand elsewhere."""

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
        return (int(index), inner) if INDEX.fullmatch(index) else (None, name)

    def join(self, layer: int | None, inner: str) -> str:
        """Inverse of :meth:`split`."""
        return inner if layer is None else f"{self.blocks}.{layer}.{inner}"

    def is_before(self, name: str) -> bool:
        """Whether a tensor outside the blocks is used before them: the embedding, and what stands beside it."""
        return _within(name, (module_of(self.embedding), *self.before))

    def is_after(self, name: str) -> bool:
        """Whether a tensor outside the blocks is used behind them: final norm, head, and what stands beside them."""
        heads = (module_of(self.head),) if self.head else ()
        return _within(name, (module_of(self.norm), *heads, *self.after))

    def group(self, name: str) -> str:
        """Tensor group: ``layer.3`` for block 3, ``ends`` for embedding, final norm and head.

        Raises:
            BadInput: the family has no tensor of that name.
        """
        layer, _ = self.split(name)
        if layer is not None:
            return f"layer.{layer}"
        if self.is_before(name) or self.is_after(name):
            return ENDS
        raise BadInput(f"{name}: no tensor of this architecture; is it another kind of model?")

    def is_buffer(self, name: str) -> bool:
        """Whether the model computes this tensor itself, or doesn't have it at all."""
        return name.endswith(self.buffers) or (bool(self.beside) and name.startswith(self.beside))

    def canonical(self, name: str) -> str:
        """The name with the prefix that some checkpoints leave out."""
        known = (self.left_out, *self.beside, module_of(self.head or ""))
        if not self.left_out or name.startswith(known):
            return name
        return f"{self.left_out}{name}"

    def live(self, name: str) -> str:
        """What transformers calls a tensor, or a module, of the checkpoint in memory."""
        for stored, held in self.in_memory:
            name = name.replace(stored, held)
        return name


LLAMA = Architecture("model.layers", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
GEMMA = replace(LLAMA, tied=True)
GEMMA2 = replace(GEMMA, behind="post_feedforward_layernorm.weight")
GPT2 = Architecture(
    "transformer.h",
    "transformer.wte.weight",
    "transformer.ln_f.weight",
    "lm_head.weight",
    before=("transformer.wpe",),
    layer_count="n_layer",
    sizes=("n_embd", "vocab_size", "n_inner", "n_head", "n_positions"),
    buffers=(".attn.bias", ".attn.masked_bias"),
    tied=True,
    inputs_first=True,
    left_out="transformer.",
    down="mlp.c_proj.weight",
    fixed_place=("scale_attn_by_inverse_layer_idx",),
)
GPT_NEOX = Architecture(
    "gpt_neox.layers",
    "gpt_neox.embed_in.weight",
    "gpt_neox.final_layer_norm.weight",
    "embed_out.weight",
    in_memory=(("embed_out", "lm_head"),),
    buffers=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    down="mlp.dense_4h_to_h.weight",
)
VIT = Architecture(
    "vit.encoder.layer",
    "vit.embeddings.patch_embeddings.projection.weight",
    "vit.layernorm.weight",
    "classifier.weight",
    before=("vit.embeddings",),
    in_memory=(
        ("vit.encoder.layer", "vit.layers"),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
    sizes=VISION_SIZES,
    left_out="vit.",
    down="output.dense.weight",
    classes="head",
    beside=("pooler.", "vit.pooler."),
)
CLIP_VISION = Architecture(
    "vision_model.encoder.layers",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.post_layernorm.weight",
    "visual_projection.weight",
    before=("vision_model.embeddings", "vision_model.pre_layrnorm"),
    sizes=VISION_SIZES,
    buffers=("embeddings.position_ids",),
    down="mlp.fc2.weight",
    left_out="vision_model.",
    classes="texts",
    beside=("text_model.", "text_projection.", "logit_scale"),
)

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "GemmaForCausalLM": GEMMA,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA2,
    "Phi3ForCausalLM": LLAMA,
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": GPT_NEOX,
    "ViTForImageClassification": VIT,
    "CLIPVisionModelWithProjection": CLIP_VISION,
}
"""By the name under ``architectures`` in ``config.json``."""


def architecture_of(config: dict[str, Any], label: str = "config.json") -> Architecture:
    """The entry of a model's family.

    Raises:
        BadInput: the family is unknown, or the model's layers depend on their place.
    """
    names = config.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise BadInput(f"{label}: architectures: {names[0]} is unknown; there are {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[names[0]]
    for key in architecture.fixed_place:
        if config.get(key):
            raise BadInput(f"{label}: {key}: makes each layer depend on its place; such a model isn't supported")
    return architecture


def named_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the name of its decoder under ``architectures``, which some files leave to ``model_type``."""
    if config.get("architectures") or not isinstance(config.get("model_type"), str):
        return config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config["model_type"])
    return {**config, "architectures": [name]} if isinstance(name, str) else config


def resolved_config(config: dict[str, Any], label: str = "config.json") -> dict[str, Any]:
    """What transformers' class makes of a config: absent keys have its defaults, and old spellings the new names.

    Raises:
        BadInput: the class doesn't take it.
    """
    from transformers.models.auto import CONFIG_MAPPING  # takes a second, and few merges need it

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return config
    try:
        resolved: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(deepcopy(config)).to_dict()
    except Exception as error:  # noqa: BLE001 (its validators raise classes of their own)
        raise BadInput(f"{label}: not a config of {kind} ({one_line(error, 200)}); fetch or copy it again") from None
    return resolved


def position_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What rotary embeddings depend on, by name, whichever way the config spells it; nothing where there are none.

    Kinds of layers that have settings of their own come before a dot: ``sliding_attention.rope_theta``.
    """
    rope = resolved_config(config).get("rope_parameters") or {}
    nested = {kind: own for kind, own in rope.items() if isinstance(own, dict)} or {"": rope}
    found: dict[str, Any] = {}
    for kind, own in nested.items():
        own = {"rope_type": "default", **{key: value for key, value in own.items() if key != "type"}}
        found |= {f"{kind}.{key}".lstrip("."): value for key, value in own.items() if value is not None}
    return found


def encoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the encoder of images in a model that holds more, or less, than it: the config itself of any other.

    A whole CLIP has a text tower beside it; a bare encoder lacks the head, which ``models.sources.heads`` gives it.
    """
    name = (config.get("architectures") or ["none"])[0]
    if name == "CLIPModel":
        from transformers.models.auto import CONFIG_MAPPING

        family = CONFIG_MAPPING["clip_vision_model"]
        tower: dict[str, Any] = family.from_dict(config.get("vision_config") or {}).to_dict()
        projection = config.get("projection_dim", tower["projection_dim"])
        return tower | {"projection_dim": projection, "architectures": ["CLIPVisionModelWithProjection"]}
    return {**config, "architectures": [ENCODERS[name]]} if name in ENCODERS else config


ENCODERS = {"CLIPVisionModel": "CLIPVisionModelWithProjection", "ViTModel": "ViTForImageClassification"}
"""Bare encoders, and what they are with a head."""


def is_tied(config: dict[str, Any]) -> bool:
    """Whether the head is the embedding."""
    architecture = architecture_of(config)
    return not architecture.classes and bool(config.get("tie_word_embeddings", architecture.tied))


def with_layers(config: dict[str, Any], picks: Sequence[int]) -> dict[str, Any]:
    """The config of a model whose layer ``i`` is layer ``picks[i]`` of the model that ``config`` describes."""
    architecture = architecture_of(config)
    if list(picks) != list(range(architecture.layers(config))):
        config = {**config, **_lists_by_default(config, architecture.per_layer)}
    lists = {key: [config[key][layer] for layer in picks] for key in architecture.per_layer if config.get(key)}
    return {**config, architecture.layer_count: len(picks), **lists}


def keeps_lists(config: dict[str, Any], picks: Sequence[int]) -> bool:
    """Whether lists with one entry a layer stay as they are when layers are picked: mergekit can't change them."""
    picked = with_layers(config, picks)
    return all(picked.get(key) == config.get(key) for key in architecture_of(config).per_layer)


def _lists_by_default(config: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Lists with one entry a layer that the file leaves to the family's rule: the rule is for layers in their order."""
    missing = [key for key in keys if not config.get(key)]
    if not missing:
        return {}
    described = resolved_config(config)
    return {key: described[key] for key in missing if described.get(key)}


def module_of(tensor: str) -> str:
    """The module that holds a tensor."""
    return tensor.rpartition(".")[0]


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
