"""Families of the architectures of the paper's models, random and of toy size, through all stages on the CPU."""

import importlib
import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tests.small_adapters import make_adapter
from tests.small_gguf import small_tokenizer
from tests.small_tasks import COUNTS, write_items, write_profile, write_task

STAGES = ("zoo", "sample", "dataset", "train", "search", "pareto")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
PARAMS = {
    "profiles": ["p"],
    "sample": {"candidates": 6, "preferences": 4, "anchors": 2},
    "dataset": {"edits": 6, "random": 3, "items": 4},
    "train": {"steps": 6},
    "search": {"budget": 900, "batch": 8, "rungs": [4, 14], "preferences": 4},
    "pareto": {"members": 3, "rescored": 4},
}


ROWS = len(small_tokenizer())


def write_model(folder, config, seed, base=None, added=(), **changes):
    """A model with a tokenizer; with ``base`` its weights plus noise, with rows for tokens that are added."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(type(config)(**{**config.to_dict(), **changes}))
    if base is not None:
        made.load_state_dict(AutoModelForCausalLM.from_pretrained(base).state_dict())
        if added:
            made.resize_token_embeddings(ROWS + len(added), mean_resizing=False)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(folder)
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    return folder


def qwen(root):
    """As Qwen2.5: biases at query, key and value, a tied head, and one expert with another rotary base."""
    config = Qwen2Config(vocab_size=ROWS, tie_word_embeddings=True, **SIZES)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1_000_000.0}
    base = write_model(root / "models" / "base", config, 0)
    write_model(root / "models" / "a", config, 1, base)
    other = {"rope_type": "default", "rope_theta": 10_000.0}
    write_model(root / "models" / "b", config, 2, base, rope_parameters=other)
    return {"a": "models/a", "b": "models/b"}


def llama(root):
    """As Llama-2: a head of its own; one expert with tokens that the base lacks, and one that is an adapter."""
    config = LlamaConfig(vocab_size=ROWS, tie_word_embeddings=False, **SIZES)
    base = write_model(root / "models" / "base", config, 0)
    write_model(root / "models" / "a", config, 1, base, added=["<mark>", "<pad>"])
    make_adapter(root / "adapters" / "b", base, target_modules="all-linear")
    return {"a": "models/a", "b": "models/base+adapters/b"}


def sums(count, seed):
    """Items whose answers a random model foresees more or less well."""
    numbers = np.random.default_rng(seed).integers(1, 90, (count, 2)).tolist()
    return [{"id": f"{seed}-{a}-{b}", "prompt": f"{a} and {b} make", "answer": f" {a + b}"} for a, b in numbers]


@pytest.mark.parametrize("make", [qwen, llama])
def test_a_given_family_passes_all_stages(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HM3_SMALL", str(tmp_path))
    experts = make(tmp_path)
    for number, name in enumerate(("one", "two")):
        for place, (split, count) in enumerate(COUNTS.items()):
            items = sums(count, 10 * number + place)
            write_items(tmp_path / "runs" / "p" / "items" / f"{name}.{split}.jsonl", items)
        files = {split: f"${{HM3_SMALL}}/runs/p/items/{name}.{split}.jsonl" for split in COUNTS}
        metrics = [{"metric": "acc"}, {"metric": "perplexity"}]
        write_task(tmp_path, name, dataset_kwargs={"data_files": files}, metric_list=metrics)
    objectives = [
        {
            "name": "one",
            "task": "one",
            "metric": "perplexity",
            "items": COUNTS,
            "reported": [{"task": "one", "metric": "acc"}],
        },
        {
            "name": "two",
            "task": "two",
            "metric": "perplexity",
            "items": COUNTS,
            "reported": [{"task": "one", "metric": "acc"}],
        },
    ]
    given = {"made": None, "base": "models/base", "experts": {"a": "${HM3_SMALL}/models/a", "b": experts["b"]}}
    write_profile(tmp_path, objectives, threads=1, **given)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    workspace = open_workspace("p", tmp_path)
    for stage in STAGES:
        importlib.import_module(f"tasks.{stage}").run(workspace, Progress())
    front = Front.read(workspace.run)
    assert len(front.members) >= 1 and len([one for one in front.members if not one.corner]) <= 3
    for member in front.members:
        assert set(member.scores["test"]) == {"one", "two", "layers"}
        assert 0 <= member.reported["one_acc"] <= 1
    family = json.loads((workspace.zoo / "family.json").read_text())
    assert family["experts"] == {"a": "${HM3_SMALL}/models/a", "b": experts["b"]}
    for path in (one for one in workspace.run.rglob("*") if one.is_file() and "items" not in one.parts):
        assert str(tmp_path).encode() not in path.read_bytes(), path
