"""`MODEL+ADAPTER` holds what peft's own merge_and_unload makes, and refuses what it can't."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, VeraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from models.errors import BadInput
from models.merge.recipe import parse_recipes
from models.merge.write import merge_to_disk
from models.sources.checkpoint import check_finite, open_checkpoint
from models.sources.lora import open_model
from models.sources.lora_settings import READ, WITHOUT_EFFECT, _is_default
from tests.small_adapters import make_adapter

ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


GPT2_KINDS = [
    *[(prefix, flag, True) for prefix in ("transformer.", "") for flag in (True, False)],
    ("transformer.", True, "pissa"),
]


def make_gpt2(folder):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def assert_equal(source, merged, base):
    expected, before = dict(merged.named_parameters()), open_checkpoint(base)
    assert set(source.names()) == set(expected)
    for name, parameter in expected.items():
        torch.testing.assert_close(source.tensor(name), parameter.detach(), rtol=0, atol=1e-6)
    assert any(not torch.equal(source.tensor(name), before.tensor(name)) for name in source.names())


def opened(base, adapter):
    return open_model(f"{base}+{adapter}", Path)


def refused(base, adapter):
    with pytest.raises(BadInput) as caught:
        check_finite(opened(base, adapter), "model")
    assert "\n" not in str(caught.value)
    return str(caught.value)


LLAMA_SETTINGS = {
    "all projections": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
        "alpha_pattern": {"v_proj": 5, r"model\.layers\.[01]\.mlp.*": 3},
    },
    "some layers": {"r": 2, "lora_alpha": 3, "target_modules": ATTENTION, "layers_to_transform": [1]},
    "norms of its own": {"r": 2, "lora_alpha": 8, "target_modules": ATTENTION, "modules_to_save": ["norm"]},
    "bias": {"r": 2, "lora_alpha": 8, "target_modules": ATTENTION, "bias": "all"},
    "bias of its weights": {"r": 2, "lora_alpha": 8, "target_modules": ATTENTION, "bias": "lora_only"},
    "PiSSA": {"r": 4, "lora_alpha": 6, "target_modules": ALL, "init_lora_weights": "pissa"},
    "PiSSA with patterns": {
        "r": 4,
        "target_modules": ATTENTION,
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 5},
    },
    "OLoRA": {"r": 4, "lora_alpha": 6, "target_modules": ALL, "init_lora_weights": "olora"},
    "gaussian": {"r": 4, "target_modules": ALL, "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "target_modules": ALL, "init_lora_weights": "orthogonal"},
    "MiCA": {"r": 4, "target_modules": ALL, "init_lora_weights": "mica"},
    "no start": {"r": 4, "target_modules": ALL, "init_lora_weights": False},
}


@pytest.fixture(scope="module")
def llama(make_llama, tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("lora") / "llama", layers=2, attention_bias=True)


@pytest.mark.parametrize("settings", LLAMA_SETTINGS)
def test_an_adapter_of_a_llama_is_what_peft_merges(llama, tmp_path, settings):
    merged = make_adapter(tmp_path / "adapter", llama, **LLAMA_SETTINGS[settings])
    assert_equal(opened(llama, tmp_path / "adapter"), merged, llama)


TIED_SETTINGS = {
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "head": ({"target_modules": ["lm_head", "q_proj"]}, False),
    "both": ({"target_modules": ["embed_tokens", "lm_head"]}, False),
    "both, kept tied": ({"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, True),
    "embedding, kept tied": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "head copied": ({"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}, False),
    "embedding copied": ({"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}, False),
    "both copied": ({"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]}, False),
    "copied, kept tied": (
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        True,
    ),
    "head copied, embedding": ({"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}, False),
    "rows added": ({"target_modules": ATTENTION, "resize": 44}, True),
    "rows added, embedding": ({"target_modules": ["embed_tokens", "v_proj"], "resize": 44}, False),
    "rows added, both copied": (
        {"target_modules": ATTENTION, "resize": 44, "modules_to_save": ["embed_tokens", "lm_head"]},
        False,
    ),
    "rows added, embedding copied": (
        {"target_modules": ATTENTION, "resize": 44, "modules_to_save": ["embed_tokens"]},
        False,
    ),
    "PiSSA, embedding": ({"target_modules": ["embed_tokens", "v_proj"], "init_lora_weights": "pissa"}, False),
}
"""Adapters of a tied base, and whether the result is tied, too."""


@pytest.mark.parametrize("settings", TIED_SETTINGS)
def test_ends_of_a_tied_base_are_what_peft_runs(llama, tmp_path, settings):
    about, tied = TIED_SETTINGS[settings]
    running = make_adapter(tmp_path / "adapter", llama, r=2, lora_alpha=8, merge=False, **about)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{llama}+{tmp_path / 'adapter'}"}]}
    merge_to_disk(parse_recipes(yaml.safe_dump(recipe), "x"), tmp_path / "out", Path)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert written.config.tie_word_embeddings is tied
    rows = written.get_input_embeddings().weight.shape[0]
    assert rows == written.get_output_embeddings().weight.shape[0] == written.config.vocab_size
    tokens = torch.arange(rows)[None]
    with torch.inference_mode():
        expected, before = (
            running.eval()(tokens).logits,
            AutoModelForCausalLM.from_pretrained(llama)(tokens % 41).logits,
        )
        torch.testing.assert_close(written(tokens).logits, expected, rtol=0, atol=1e-5)
    assert (expected[..., :41] - before).abs().max() > 0.01


STARTS = {
    "pissa_niter_4": "part of the base was taken out when training began",
    "corda": "part of the base was taken out",
    "loftq": "part of the base was taken out",
    "lora_ga": "part of the base was taken out",
    "a new one": "part of the base was taken out",
}


@pytest.mark.parametrize("start", STARTS)
def test_starts_that_the_file_does_not_tell_are_refused(llama, tmp_path, start):
    make_adapter(tmp_path / "adapter", llama, r=2, target_modules=ATTENTION)
    edit_config(tmp_path / "adapter", init_lora_weights=start)
    assert f"init_lora_weights: {start}: {STARTS[start]}" in refused(llama, tmp_path / "adapter")


def test_a_head_that_is_tied_can_not_give_up_its_start(llama, tmp_path):
    make_adapter(tmp_path / "adapter", llama, r=2, target_modules=["lm_head"], init_lora_weights="pissa")
    assert "init_lora_weights: on a head that is tied" in refused(llama, tmp_path / "adapter")


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_unknown_fields_without_a_value_are_let_pass(llama, tmp_path, value):
    merged = make_adapter(tmp_path / "adapter", llama, r=2, target_modules=ATTENTION)
    edit_config(tmp_path / "adapter", use_something_new=value)
    assert_equal(opened(llama, tmp_path / "adapter"), merged, llama)


@pytest.mark.parametrize("value", [True, 1, 0.5, "all", [1], {"a": 1}])
def test_unknown_fields_with_a_value_are_refused(llama, tmp_path, value):
    make_adapter(tmp_path / "adapter", llama, r=2, target_modules=ATTENTION)
    edit_config(tmp_path / "adapter", use_something_new=value)
    assert f"use_something_new: {value} isn't supported" in refused(llama, tmp_path / "adapter")


def test_every_field_of_peft_is_understood_or_has_its_own_value():
    """Whatever peft adds is refused, unless it has its default."""
    for field, value in LoraConfig().to_dict().items():
        assert field in (*READ, *WITHOUT_EFFECT, "init_lora_weights") or not value or _is_default(field, value), field


def test_a_head_of_its_own_is_taken(make_llama, tmp_path):
    base = make_llama(tmp_path / "base", tied=False, layers=2)
    settings = {"r": 2, "target_modules": [*ATTENTION, "lm_head"], "modules_to_save": ["embed_tokens"]}
    merged = make_adapter(tmp_path / "adapter", base, **settings)
    assert_equal(opened(base, tmp_path / "adapter"), merged, base)


@pytest.mark.parametrize(("prefix", "flag", "start"), GPT2_KINDS)
def test_an_adapter_of_gpt2_is_what_peft_merges(tmp_path, prefix, flag, start):
    """Conv1D lies transposed, and its square c_proj would fit the wrong way too; old files leave a prefix out."""
    base = make_gpt2(tmp_path / "gpt2")
    settings = {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "init_lora_weights": start}
    merged = make_adapter(tmp_path / "adapter", base, fan_in_fan_out=flag, **settings)
    tensors = load_file(base / "model.safetensors")
    renamed = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    assert_equal(opened(base, tmp_path / "adapter"), merged, base)


def test_weights_keep_their_number_format(make_llama, tmp_path):
    base = make_llama(tmp_path / "base", dtype=torch.bfloat16)
    merged = make_adapter(tmp_path / "adapter", base, r=4, target_modules=ALL)
    source = opened(base, tmp_path / "adapter")
    for name, parameter in merged.named_parameters():
        assert source.tensor(name).dtype == parameter.dtype == torch.bfloat16
        torch.testing.assert_close(source.tensor(name), parameter.detach(), rtol=2**-7, atol=1e-3)


def test_a_resized_embedding_is_taken_with_its_rows(llama, tmp_path):
    """peft stores the whole embedding then, and the tied head once more."""
    merged = make_adapter(tmp_path / "adapter", llama, resize=44, r=2, target_modules=ATTENTION)
    source = opened(llama, tmp_path / "adapter")
    assert source.config["vocab_size"] == 44
    assert_equal(source, merged, llama)


def test_the_digest_names_base_and_adapter(make_llama, tmp_path):
    for name, seed in (("base", 0), ("other", 5)):
        make_llama(tmp_path / name, seed=seed)
    settings = {"r": 2, "target_modules": ATTENTION, "layers_to_transform": [1]}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        make_adapter(tmp_path / name, tmp_path / "base", seed, **settings)
    one, again, two = (opened(tmp_path / "base", tmp_path / name) for name in ("one", "again", "two"))
    base, elsewhere = open_checkpoint(tmp_path / "base"), opened(tmp_path / "other", tmp_path / "one")
    for group in ("ends", "layer.0", "layer.2"):
        assert one.digest(group) == base.digest(group)
    digests = [source.digest("layer.1") for source in (one, two, base, elsewhere)]
    assert len(set(digests)) == 4 and again.digest("layer.1") == one.digest("layer.1")
    edit_config(tmp_path / "again", lora_alpha=9)
    assert opened(tmp_path / "base", tmp_path / "again").digest("layer.1") != one.digest("layer.1")


def test_a_released_adapter_can_be_read_on(llama, tmp_path):
    merged = make_adapter(tmp_path / "adapter", llama, r=2, target_modules=ATTENTION)
    source = opened(llama, tmp_path / "adapter")
    source.release()
    assert_equal(source, merged, llama)


def test_adapters_merge_like_the_models_that_they_make(make_llama, tmp_path):
    """In every place of a recipe: as base, as a model, in an intermediate merge and in slices."""
    make_llama(tmp_path / "base")
    for seed, name in enumerate("abc"):
        make_adapter(tmp_path / f"{name}-adapter", tmp_path / "base", seed, r=2, target_modules=ALL).save_pretrained(
            tmp_path / f"{name}-whole"
        )
        shutil.copy(tmp_path / "base" / "tokenizer.json", tmp_path / f"{name}-whole")
    text = """
name: r
merge_method: task_arithmetic
base_model: C
models:
- {model: A, parameters: {weight: 0.5}}
- {model: B, parameters: {weight: 0.7}}
---
merge_method: passthrough
slices:
- sources: [{model: r, layer_range: [0, 2]}]
- sources: [{model: A, layer_range: [1, 3]}]
"""
    for out, written in (("adapters", r"base+\g<0>-adapter"), ("whole", r"\g<0>-whole")):
        recipe = re.sub(r"\b[ABC]\b", lambda one, w=written: one.expand(w).replace(one[0], one[0].lower()), text)
        merge_to_disk(parse_recipes(recipe, "x"), tmp_path / out, tmp_path.joinpath)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("adapters", "whole"))
    assert set(one) == set(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-6)
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert "`base+a-adapter`" in card


def test_mergekit_makes_the_same_of_it(make_llama, tmp_path):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    llama = make_llama(tmp_path / "llama")
    make_adapter(tmp_path / "adapter", llama, r=4, target_modules=ALL)
    reference = f"{llama}+{tmp_path / 'adapter'}"
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(llama),
        "models": [{"model": reference, "parameters": {"weight": 0.6}}],
        "dtype": "float32",
    }
    merge_to_disk(parse_recipes(yaml.safe_dump(recipe), "x"), tmp_path / "ours", Path)
    options = MergeOptions(quiet=True, lora_merge_cache=str(tmp_path / "cache"))
    run_merge(MergeConfiguration.model_validate(recipe), str(tmp_path / "theirs"), options)
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("ours", "theirs"))
    assert ours.names() == theirs.names()
    for name in ours.names():
        torch.testing.assert_close(ours.tensor(name), theirs.tensor(name), rtol=0, atol=1e-6)


def edit_config(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


def edit(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
WEIGHTS = "adapter_model.safetensors"
BREAKAGES = {
    "folder": (shutil.rmtree, "adapter: no such folder; an adapter is a folder with adapter_config.json"),
    "config": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter: adapter_config.json: missing"),
    "config that is no JSON": (lambda folder: (folder / "adapter_config.json").write_text("["), "not readable as JSON"),
    "rank that is none": (lambda folder: edit_config(folder, r="four"), "r: Input should be a valid integer"),
    "weights": (lambda folder: (folder / WEIGHTS).unlink(), f"adapter: {WEIGHTS}: missing"),
    "end of the weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]),
        f"adapter: {WEIGHTS}: truncated or no safetensors file",
    ),
    "DoRA": (
        lambda folder: edit_config(folder, use_dora=True),
        "adapter_config.json: use_dora: True isn't supported; merge it",
    ),
    "other kind": (lambda folder: edit_config(folder, peft_type="IA3"), "peft_type: IA3 isn't supported, LORA is"),
    "one factor": (
        lambda folder: edit(folder, lambda tensors: tensors.pop(KEY.format("B"))),
        f"adapter: {WEIGHTS}: has {KEY.format('A')} without its counterpart",
    ),
    "other factor": (
        lambda folder: edit(folder, lambda tensors: tensors.pop(KEY.format("A"))),
        f"adapter: {WEIGHTS}: has {KEY.format('B')} without its counterpart",
    ),
    "factors of other ranks": (
        lambda folder: edit(folder, lambda tensors: tensors.update({KEY.format("B"): torch.zeros(16, 3)})),
        f"adapter: {KEY.format('A')}: gives [16, 16]",
    ),
    "width": (
        lambda folder: edit(folder, lambda tensors: tensors.update({KEY.format("A"): torch.zeros(2, 32)})),
        f"adapter: {KEY.format('A')}: gives [16, 32], but model.layers.0.self_attn.q_proj.weight of",
    ),
    "layer": (
        lambda folder: edit(
            folder,
            lambda tensors: tensors.update(
                {KEY.replace("layers.0", "layers.7").format(one): torch.zeros(2, 16) for one in "AB"}
            ),
        ),
        "layers.7.self_attn.q_proj.lora_A.weight: fits no weight of",
    ),
    "NaN": (
        lambda folder: edit(folder, lambda tensors: tensors[KEY.format("A")].view(-1)[3:4].fill_(float("nan"))),
        f"adapter: {KEY.format('A')}: holds NaN or Inf",
    ),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_broken_adapters_are_refused(llama, tmp_path, what):
    make_adapter(tmp_path / "adapter", llama, r=2, target_modules=ATTENTION)
    breaks, message = BREAKAGES[what]
    breaks(tmp_path / "adapter")
    assert message in refused(llama, tmp_path / "adapter")


def test_other_adapters_of_peft_are_refused(llama, tmp_path):
    make_adapter(tmp_path / "dora", llama, r=2, target_modules=ATTENTION, use_dora=True)
    make_adapter(tmp_path / "vera", llama, kind=VeraConfig, r=2, target_modules=["q_proj"])
    assert "use_dora: True isn't supported; merge it into its base with peft's" in refused(llama, tmp_path / "dora")
    assert "peft_type: VERA isn't supported" in refused(llama, tmp_path / "vera")


def test_ends_with_different_rows_are_refused(llama, tmp_path):
    about = {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}
    make_adapter(tmp_path / "adapter", llama, resize=44, r=2, **about)
    edit(
        tmp_path / "adapter",
        lambda tensors: [tensors.pop(key) for key in [*tensors] if re.search("original_module|lm_head", key)],
    )
    assert "embedding and head have 44 and 41 rows" in refused(llama, tmp_path / "adapter")


@pytest.mark.parametrize("name", ["adapter", 'John\'s "adapter" $(exit 3) `exit 4`'])
def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(llama, tmp_path, name):
    adapter = tmp_path / name
    merged = make_adapter(adapter, llama, r=2, target_modules=ATTENTION)
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    message = refused(llama, adapter)
    assert message.startswith(f"{adapter}: adapter_model.bin: a pickled adapter is refused")
    python, flag, program = shlex.split(message.split("run: ")[1])
    assert (python, flag) == ("python", "-c")
    exec(program, {})
    assert_equal(opened(llama, adapter), merged, llama)


def test_a_plus_in_the_name_of_a_folder_is_no_adapter(make_llama, tmp_path):
    make_llama(tmp_path / "a+b")
    merged = make_adapter(tmp_path / "adapter", tmp_path / "a+b", r=2, target_modules=ATTENTION)
    assert open_model("a+b", tmp_path.joinpath).path == tmp_path / "a+b"
    assert_equal(open_model("a+b+adapter", tmp_path.joinpath), merged, tmp_path / "a+b")
    with pytest.raises(BadInput, match="takes one adapter"):
        open_model("base+adapter+adapter", tmp_path.joinpath)


@pytest.mark.skipif("HM3_SHARED" not in os.environ, reason="adapters of a real model lie in HM3_SHARED/zoo")
def test_adapters_of_a_real_model_fit_their_base(make_llama, tmp_path):
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    base = open_checkpoint(make_llama(tmp_path / "base", layers=30, **sizes))
    for adapter in sorted((Path(os.environ["HM3_SHARED"]) / "zoo" / "smollm2").iterdir()):
        source = opened(base.path, adapter)
        assert all(source.digest(f"layer.{layer}") != base.digest(f"layer.{layer}") for layer in (0, 29))
        assert source.digest("ends") == base.digest("ends")
