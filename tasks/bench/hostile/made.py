"""Small valid files of every kind, as a project: what is mutated, and proof that all of them are taken as they are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from models.agent.actor import Actor
from models.agent.agent import Agent, AgentConfig
from models.agent.surrogate import Surrogate
from models.candidate import Candidate
from models.front import Scale
from models.search.environment import PathRules
from tasks.objectives.task_files import default_index
from tasks.scoring.journal import Entry, Journal

LAYERS = 3
TASKS = ("math", "code")
PROFILE = "p"
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_rslora": False}
ENDS = ("<|end|>", "<|endoftext|>")
"""Special tokens; the second is what a class of transformers adds to a GGUF's by itself."""
RECIPE: dict[str, Any] = {
    "merge_method": "task_arithmetic",
    "base_model": "models/base",
    "models": [
        {"model": "models/a", "parameters": {"weight": 0.5}},
        {"model": "models/b", "parameters": {"weight": [0.2, 0.4]}},
    ],
}


RECIPES = {
    "plain": [RECIPE],
    "settings": [
        {
            "merge_method": "ties",
            "base_model": "models/base",
            "slices": [
                {"sources": [{"model": f"models/{name}", "layer_range": layers} for name in ("base", "a", "b")]}
                for layers in ([0, 2], [1, 3])
            ],
            "parameters": {"density": [{"filter": "mlp", "value": [0.4, 0.6]}, {"value": 0.5}], "weight": 0.5},
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }
    ],
    "tokens": [
        {**RECIPE, "name": "first"},
        {
            "merge_method": "dare_ties",
            "base_model": "models/base",
            "models": [
                {"model": one, "parameters": {"weight": 0.3, "density": 0.5}} for one in ("first", "models/words")
            ],
            "parameters": {"seed": 3, "normalize": False},
            "tokenizer": {"source": "union", "tokens": {"w1": {"source": "models/words"}}, "pad_to_multiple_of": 8},
            "chat_template": "chatml",
        },
    ],
    "layers": [
        {
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": "models/a", "layer_range": [0, 2]}]}] * 2,
        }
    ],
}
"""Documents of each recipe."""


def make_project(root: Path) -> None:
    """Write a project with models, an adapter, a GGUF file, recipes, outs of all stages, a journal and data."""
    tokenizer = small_tokenizer()
    for number, name in enumerate(("base", "a", "b")):
        torch.manual_seed(number)
        model = LlamaForCausalLM(small_config(len(tokenizer)))
        shards = {"max_shard_size": "8KB"} if name == "b" else {}
        model.save_pretrained(root / "models" / name, **shards)
        tokenizer.save_pretrained(root / "models" / name)
        GenerationConfig(eos_token_id=0, max_length=64).save_pretrained(root / "models" / name)
    make_others(root / "models", len(tokenizer))
    adapter = root / "models" / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", ADAPTER | {"alpha_pattern": {"layers.0.*q_proj": 2}})
    prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    factors = [("A", (2, 16)), ("B", (16, 2))]
    tensors = {prefix.format(n, part): torch.randn(shape) for n in range(LAYERS) for part, shape in factors}
    save_file(tensors, adapter / "adapter_model.safetensors")
    if importlib.util.find_spec("gguf"):
        from tasks.bench.hostile.written_gguf import write_gguf

        write_gguf(root / "models" / "small.gguf", LlamaForCausalLM(small_config(len(tokenizer))), tokenizer)
    for name, documents in RECIPES.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    rows = [
        {"prompt": f"{n} plus {n} is", "answer": f" {2 * n}", "text": f"{n} plus {n} is {2 * n}"} for n in range(40)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    make_profile(root)
    make_outs(root / "runs" / PROFILE)
    journal = Journal(root / ".hm3" / "journal" / PROFILE)
    journal.append([Entry(hashlib.sha256(b"a").hexdigest(), 0, 4, dict.fromkeys(TASKS, (0.0, 1.0, 0.5, 1.0)))])
    journal.append([Entry(hashlib.sha256(b"b").hexdigest(), 0, 4, {}, "a reason")])
    default_index(root / ".hm3")  # or each case that asks for it would read 15,000 files of lm-eval
    write_json(root / "manifest.json", {"files": {"config.json": {"bytes": 3, "sha256": "0" * 64}}})
    save_file({"digits.weight": torch.randn(10, 4), "digits.bias": torch.zeros(10)}, root / "heads.safetensors")


def make_others(models: Path, rows: int) -> None:
    """A model with words for tokens, an adapter on the ends, GPT-2 with the old files of a tokenizer, and encoders."""
    words = {"<unk>": 0, **{f"w{number}": number for number in range(1, rows + 3)}}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))  # noqa: S106 (a token of a text)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(7)
    LlamaForCausalLM(small_config(len(words))).save_pretrained(models / "words")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<unk>").save_pretrained(models / "words")  # noqa: S106
    ends = models / "ends"
    ends.mkdir()
    config = {**ADAPTER, "target_modules": ["embed_tokens"], "modules_to_save": ["norm"], "rank_pattern": {}}
    write_json(ends / "adapter_config.json", config)
    prefix = "base_model.model.model."
    tensors = {f"{prefix}embed_tokens.lora_embedding_A": torch.randn(2, rows)}
    tensors |= {f"{prefix}embed_tokens.lora_embedding_B": torch.randn(16, 2), f"{prefix}norm.weight": torch.ones(16)}
    save_file(tensors, ends / "adapter_model.safetensors")
    letters = {chr(33 + number): number for number in range(90)} | {"ab": 90, "<|endoftext|>": 91}
    for number, name in enumerate(("gpt2", "gpt2-a")):
        torch.manual_seed(number)
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": len(letters)}
        GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=91, eos_token_id=91)).save_pretrained(models / name)
        write_json(models / name / "vocab.json", letters)
        (models / name / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
        write_json(models / name / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
        write_json(models / name / "special_tokens_map.json", {"eos_token": "<|endoftext|>"})
    for number, name in enumerate(("vit", "vit-a")):
        torch.manual_seed(number)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        vit = ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
        ViTForImageClassification(vit).save_pretrained(models / name)
        write_json(models / name / "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"})


def small_tokenizer(ends: Sequence[str] = ENDS, size: int = 270) -> PreTrainedTokenizerFast:
    """Byte pairs over a few words, as GGUF knows them under the name gpt2, with a chat template.

    Texts end with the first of the ``ends``.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, special_tokens=list(ends), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["one two three four, one and two make three"] * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=ends[0], bos_token=ends[0])
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return made


def small_config(vocabulary: int) -> LlamaConfig:
    """A Llama of a few thousand parameters."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )


def make_profile(root: Path) -> None:
    """Parameters, a profile over the models, and its task file."""
    write_yaml(root / "params.yaml", {"profiles": [PROFILE], "seed": 0, "search": {"budget": 5000}})
    objectives = [{"name": task, "task": f"{task}.yaml", "metric": "acc", "items": ITEMS} for task in TASKS]
    experts = {"math": "models/a", "code": "models/b"}
    content = {"base": "models/base", "experts": experts, "objectives": objectives, "layers": {"ideal": 0.5}}
    (root / "profiles" / PROFILE).mkdir(parents=True)
    write_yaml(root / "profiles" / f"{PROFILE}.yaml", content)
    for task in TASKS:
        config = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": dict.fromkeys(ITEMS, "data.jsonl")},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "prompt",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        write_yaml(root / "profiles" / PROFILE / f"{task}.yaml", config)


ITEMS = {"search": 4, "selection": 4, "test": 4}


def make_outs(run: Path) -> None:
    """What the stages leave under ``runs/PROFILE``."""
    (run / "zoo").mkdir(parents=True)
    write_json(
        run / "zoo" / "family.json", {"base": "models/base", "experts": {"math": "models/a", "code": "models/b"}}
    )
    names = [*TASKS, "layers"]
    members = [Candidate("r-1", tuple(("r-1", layer) for layer in range(depth))) for depth in (3, 2)]
    for one in members:
        (run / "members" / one.id).mkdir(parents=True)
        write_yaml(run / "members" / one.id / "recipe.yaml", RECIPE)
    scores = {split: {"math": 0.7, "code": 0.6, "layers": 1.0} for split in ITEMS}
    rows = [
        {
            "id": one.id,
            "layers": one.depth,
            "path": [list(step) for step in one.path],
            "host": one.host,
            "recipe": f"members/{one.id}/recipe.yaml",
            "serves": {"math": 0.5, "code": 0.25, "layers": 0.25},
            "mergekit": "exact",
            "kind": "recipe",
            "reported": {"chrf": 0.5},
            "scores": {split: {**own, "layers": one.depth / LAYERS} for split, own in scores.items()},
        }
        for one in members
    ]
    bounds = {
        "ideal": dict.fromkeys(names, 1.0) | {"layers": 0.5},
        "nadir": dict.fromkeys(names, 0.0) | {"layers": 1.1},
    }
    front: dict[str, Any] = {"profile": PROFILE, "objectives": names, **bounds, "hv": dict.fromkeys(ITEMS, 0.2)}
    front |= {"members": rows, "references": [{"name": "base", "kind": "base", "scores": scores}]}
    write_json(run / "front.json", front)
    scored = {"name": "base", "kind": "base", "title": "base", "recipe": None, "scores": dict.fromkeys(TASKS, 0.5)}
    within = {key: {task: own[task] for task in TASKS} for key, own in bounds.items()}
    write_json(
        run / "anchors.json", {"objectives": list(TASKS), **within, "spent": 9, "anchors": [], "scored": [scored]}
    )
    table = pd.DataFrame({"candidate": [one.to_json() for one in members], "kind": ["path"] * 2, "failed": None})
    table = table.assign(round=0, items=4, charged=8, at=[8, 16], recipes=None, math=0.5, code=[0.25, 0.5], layers=1.0)
    for name in ("archive.parquet", "offline.parquet"):
        table.astype({"failed": "string", "recipes": "string"}).to_parquet(run / name)
    scale = Scale(tuple(names), (1.0, 1.0, 0.5), (0.0, 0.0, 1.1))
    surrogate, rng = Surrogate(np.arange(4)), np.random.default_rng(0)
    surrogate.fit(rng.random((6, 4)), rng.random((6, len(TASKS))), np.full(6, 4), 1, rng)
    actor = Actor.untrained(("math", "code"), LAYERS, len(TASKS), [0, 1])
    config = AgentConfig(actor.experts, LAYERS, PathRules(), scale, actor.experts, spent=0)
    Agent(config, actor, surrogate).save(run / "agent")


def write_json(path: Path, content: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_yaml(path: Path, content: Any) -> None:
    """A YAML file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
