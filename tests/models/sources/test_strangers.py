"""A stranger's model or adapter in a merge: nothing of the user's leaves with it, and what is written can be loaded."""

import json
import os
import re
import struct

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from models.errors import BadInput
from models.merge.recipe import parse_recipes
from models.merge.write import merge_to_disk
from tests.small_adapters import make_adapter

MINE = "what is in a file of the user's"
WEIGHTS, CONFIG, ADAPTER = "model.safetensors", "config.json", "adapter_config.json"


@pytest.fixture
def family(make_family, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"words": MINE, "chat_template": MINE}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one.jinja").write_text(MINE)
    made = make_family(tmp_path, experts=1)
    make_adapter(tmp_path / "adapter", made["base"], merge=False, r=2, target_modules=["q_proj", "v_proj"])
    return made | {"base+adapter": tmp_path / "base+adapter", "adapter": tmp_path / "adapter"}


def merge(folders, expert, base="base"):
    models = [{"model": expert, "parameters": {"weight": 0.5}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": models}
    out = folders["base"].parent / "out"
    merge_to_disk(parse_recipes(yaml.safe_dump(recipe), "recipe"), out, folders.__getitem__)
    return out


def edit(path, remove=(), **changes):
    content = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in remove}))


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def header(path, change):
    """Rewrite the list of tensors at the head of a file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def many(listed):
    return listed | {f"x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(200_000)}


def fill(path, name, value):
    tensors = load_file(path)
    tensors[name].view(-1)[3] = value
    save_file(tensors, path, {"format": "pt"})


def add(path, **tensors):
    save_file(load_file(path) | tensors, path, {"format": "pt"})


def shards(folder, place):
    """An index whose weights lie at a place of their own."""
    names = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    edit(folder / f"{WEIGHTS}.index.json", weight_map=dict.fromkeys(names, place))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


OF_MODELS = {
    "ten million layers": (lambda f: edit(f / CONFIG, num_hidden_layers=10**7), r"layers\.3\..*tensor is missing"),
    "layers that are no number": (lambda f: edit(f / CONFIG, num_hidden_layers="3"), "num_hidden_layers: Input should"),
    "a million million classes": (lambda f: edit(f / CONFIG, num_labels=10**12), "num_labels: Input should be less"),
    "a vocabulary of a thousand million": (lambda f: edit(f / CONFIG, vocab_size=10**9), "has 41 rows, but"),
    "kinds of layers for others": (
        lambda f: edit(f / CONFIG, layer_types=["full_attention"]),
        "must have an entry a layer, 3",
    ),
    "architectures that are no list": (lambda f: edit(f / CONFIG, architectures="LlamaForCausalLM"), "architectures:"),
    "more heads than there are": (lambda f: edit(f / CONFIG, num_attention_heads=4), "has another shape|num_attention"),
    "a list of tensors without end": (lambda f: header(f / WEIGHTS, many), r"its list of tensors has \d+ bytes"),
    "a layer of another name": (
        lambda f: header(
            f / WEIGHTS, lambda one: one | {"model.layers.٣.x": one.pop("model.layers.2.mlp.up_proj.weight")}
        ),
        "tensor is missing|is unknown",
    ),
    "an empty tensor": (lambda f: add(f / WEIGHTS, **{"model.norm.weight": torch.zeros(0)}), "norm.weight: is empty"),
    "quantised": (
        lambda f: add(f / WEIGHTS, **{"model.norm.weight": torch.zeros(16, dtype=torch.int8)}),
        "stored as I8",
    ),
    "infinite": (lambda f: fill(f / WEIGHTS, "model.norm.weight", float("inf")), "holds NaN or Inf"),
    "weights elsewhere": (lambda f: shards(f, "../elsewhere.safetensors"), "leads out of the folder"),
    "weights at a path": (lambda f: shards(f, str(f.parent / "elsewhere.safetensors")), "leads out of the folder"),
    "weights behind a link": (lambda f: link(f / WEIGHTS, "../base/model.safetensors"), "is a link out of the folder"),
    "weights that are a pipe": (lambda f: pipe(f / WEIGHTS), "is no regular file"),
    "a config that is a device": (lambda f: link(f / CONFIG, "/dev/zero"), "is a link out of the folder"),
    "a config that isn't finite": (lambda f: (f / CONFIG).write_text('{"a": NaN}'), "not readable as JSON"),
    "a config without end": (lambda f: (f / CONFIG).write_text("[" * 10**6), "not readable as JSON"),
    "a tokenizer behind a link": (lambda f: link(f / "tokenizer.json", "../mine.json"), "is a link out of the folder"),
    "tokens that are no numbers": (
        lambda f: edit(f / "tokenizer.json", model={"type": "BPE", "vocab": {"a": "b"}, "merges": []}),
        r"tokenizer\.json: .*model\.vocab",
    ),
}
OF_COMPANIONS = {
    "a bias that the file lacks": (lambda f: edit(f / CONFIG, attention_bias=True), "bias: is missing, by config"),
    "an activation that there isn't": (lambda f: edit(f / CONFIG, hidden_act="none"), "config.json: can't be loaded"),
    "a template behind a link": (
        lambda f: link(f / "chat_template.jinja", "../mine.json"),
        "is a link out of the folder",
    ),
    "templates behind a link": (
        lambda f: link(f / "additional_chat_templates", "../mine"),
        "is a link out of the folder",
    ),
    "settings behind a link": (lambda f: link(f / "special_tokens_map.json", "../mine.json"), "is a link out"),
    "a template that is none": (lambda f: (f / "chat_template.jinja").write_text("{% for %}"), "no template"),
    "generation without end": (
        lambda f: edit(f / "generation_config.json", eos_token_id=2, num_beams="many"),
        r"generation_config\.json: num_beams",
    ),
    "an end that is no token": (lambda f: edit(f / "generation_config.json", eos_token_id="x"), "eos_token_id"),
    "a length that is no number": (
        lambda f: edit(f / "tokenizer_config.json", model_max_length=["x"]),
        "tokenizer: can't be loaded",
    ),
    "a token without a row": (
        lambda f: edit(
            f / "tokenizer.json",
            added_tokens=[
                {"id": 41, "content": "<x>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
                | {"normalized": False}
            ],
        ),
        "has the id 41, but the embedding has 41 rows",
    ),
}
OF_ADAPTERS = {
    "another rank than its tensors": (lambda f: edit(f / ADAPTER, r=7), r"has rank 2, but adapter_config\.json says 7"),
    "a scale that isn't finite": (lambda f: (f / ADAPTER).write_text('{"r": 2, "lora_alpha": NaN}'), "isn't finite"),
    "a scale that no one trains": (lambda f: edit(f / ADAPTER, lora_alpha=1e300), "scales by 5e"),
    "a scale that is text": (lambda f: edit(f / ADAPTER, lora_alpha="16"), "lora_alpha"),
    "a pattern that takes for ever": (
        lambda f: edit(f / ADAPTER, alpha_pattern={r"(.|.)+[^\w.]": 3}),
        "alpha_pattern: .*TimeoutError",
    ),
    "a pattern that is none": (lambda f: edit(f / ADAPTER, rank_pattern={"(": 3}), "rank_pattern: "),
    "weights behind a link": (
        lambda f: link(f / "adapter_model.safetensors", "../base/model.safetensors"),
        "is a link out of the folder",
    ),
    "whole numbers": (
        lambda f: save_file(
            {name: tensor.to(torch.int32) for name, tensor in load_file(f / "adapter_model.safetensors").items()},
            f / "adapter_model.safetensors",
        ),
        "stored as I32",
    ),
}


def refused(family, expert, base="base"):
    """What is said, on one line; and nothing was written."""
    before = sorted(path.name for path in family["base"].parent.iterdir())
    with pytest.raises(BadInput) as error:
        merge(family, expert, base)
    assert sorted(path.name for path in family["base"].parent.iterdir()) == before
    assert MINE not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("what", OF_MODELS)
def test_a_model_that_is_hostile_or_damaged_is_refused_wherever_it_stands(family, what):
    change, message = OF_MODELS[what]
    change(family["a"])
    assert re.search(message, told := refused(family, "a")), told


@pytest.mark.parametrize("what", OF_COMPANIONS)
def test_what_lies_beside_the_weights_is_refused_before_it_is_passed_on(family, what):
    change, message = OF_COMPANIONS[what]
    change(family["a"])
    assert re.search(message, told := refused(family, "base", base="a")), told


@pytest.mark.parametrize("what", OF_ADAPTERS)
def test_an_adapter_that_is_hostile_or_damaged_is_refused(family, what):
    change, message = OF_ADAPTERS[what]
    change(family["adapter"])
    assert re.search(message, told := refused(family, "base+adapter")), told


def test_links_inside_a_folder_and_patterns_of_peft_are_taken(family):
    (family["a"] / WEIGHTS).rename(family["a"] / "other.safetensors")
    link(family["a"] / WEIGHTS, "other.safetensors")
    edit(family["adapter"] / ADAPTER, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 3})
    for expert in ("a", "base+adapter"):
        out = merge(family, expert)
        assert not any(path.is_symlink() for path in out.rglob("*"))
        out.rename(out.with_name(f"kept {expert}"))
