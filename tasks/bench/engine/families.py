"""Models to measure on: Llamas with random weights, and projects whose family is made in a few minutes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.errors import BadInput
from models.paths.prefix import Pair
from models.sources.checkpoint import open_checkpoint
from tasks import zoo
from tasks.bench.engine.registry import Bench
from tasks.project.family import load_family
from tasks.project.workspace import Workspace, open_workspace

OPEN_GATES = {"min_own": 0.0, "max_foreign": 1.0, "min_range": 0.0, "min_distance": 0.0, "max_distance": 9.0}
"""Parameters of stage `zoo` for families that are trained too little to be good."""

NOISE = 0.1
"""Standard deviation of a task vector over that of the base's weights."""


@dataclass(frozen=True)
class Sizes:
    """Shape of a Llama whose head is tied to its embedding."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int


SMOLLM2_135M = Sizes(layers=30, width=576, feed_forward=1536, heads=9, kv_heads=3, vocabulary=49152)
SMALL = Sizes(layers=2, width=64, feed_forward=128, heads=4, kv_heads=2, vocabulary=600)


def write_family(folder: Path, experts: int, sizes: Sizes, seed: int) -> dict[str, Path]:
    """A base with random weights and fine-tunes of it, in single precision, with a tokenizer each.

    Args:
        folder: where their folders are made.
        experts: number of fine-tunes, each the base plus noise.
        sizes: of all of them.
        seed: of weights and noise.

    Returns:
        Folders of ``base``, ``expert-1``, ``expert-2``, …
    """
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model, tokenizer = LlamaForCausalLM(config), word_tokenizer(sizes.vocabulary)
    base = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    generator = torch.Generator().manual_seed(seed)
    folders = {}
    for name in ("base", *(f"expert-{number + 1}" for number in range(experts))):
        scale = 0.0 if name == "base" else NOISE * config.initializer_range
        tensors = {
            key: one + scale * torch.randn(one.shape, generator=generator) if scale else one
            for key, one in base.items()
        }
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        save_file(tensors, folders[name] / "model.safetensors", {"format": "pt"})
        model.config.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with so many words."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, size)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_pairs(count: int, vocabulary: int, seed: int) -> list[Pair]:
    """Requests of 12 to 24 random tokens, the last four of which are the continuation."""
    generator = torch.Generator().manual_seed(seed)
    pairs: list[Pair] = []
    for _ in range(count):
        length = int(torch.randint(12, 25, (), generator=generator))
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        pairs.append((ids[:-4], ids[-4:]))
    return pairs


def make_project(bench: Bench, layers: int | None, params: Mapping[str, Any]) -> Workspace:
    """A project of its own under the benchmark's folder, with the profile of the user's.

    The family is the user's if there is one with so many layers; else stage `zoo` makes it. That takes minutes, so it
    is kept for the next time that the same parameters are asked for.

    Args:
        bench: the user's project, and where to work.
        layers: of the family; any number if none is given.
        params: content of its ``params.yaml``.

    Raises:
        BadInput: the profile's family can't be made.
        Failed: its training failed.
    """
    user = bench.workspace
    root = bench.folder / f"layers-{layers or 'as-they-are'}"
    shutil.copytree(user.root / "profiles", root / "profiles", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": [user.name], **params}), encoding="utf-8")
    own = open_workspace(user.name, root, user.state)
    if _has_family(user, layers):
        _copy_family(user.run, own)
        return own
    described = json.dumps([own.params.seed, own.params.zoo.model_dump(), own.profile.model_dump()], sort_keys=True)
    kept = bench.kept / hashlib.sha256(described.encode()).hexdigest()[:16]
    if not kept.is_dir():
        zoo.run(own, bench.progress)
        part = kept.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for folder in (own.zoo, own.items):
            shutil.copytree(folder, part / folder.name)
        part.rename(kept)
    else:
        _copy_family(kept, own)
    return own


def _copy_family(run: Path, own: Workspace) -> None:
    """What stage `zoo` has left in a folder."""
    for folder in (own.zoo, own.items):
        shutil.copytree(run / folder.name, folder)


def _has_family(workspace: Workspace, layers: int | None) -> bool:
    """Whether the project has models of its own, of so many layers, that can be copied."""
    try:
        base = open_checkpoint(workspace.root / load_family(workspace).base)
    except BadInput:
        return False
    inside = base.path.resolve().is_relative_to(workspace.zoo.resolve())
    return inside and layers in (None, base.architecture.layers(base.config))
