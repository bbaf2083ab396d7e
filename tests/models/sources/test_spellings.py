"""One model, however its files and its config spell it: what transformers loads is what is merged."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from models.errors import BadInput
from models.merge.recipe import parse_recipes
from models.merge.write import merge_to_disk
from models.sources.architecture import position_settings
from models.sources.checkpoint import INDEX, WEIGHTS, open_checkpoint, write_checkpoint
from models.sources.compatibility import check_compatible
from models.sources.vocabulary_source import share_vocabulary
from tests.models.sources.test_checkpoint import edit

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = torch.arange(3, 20)[None]


def edit_config(folder, remove=(), **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    for key in remove:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))


def logits(folder):
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits


def merged(tmp_path, **models):
    """What a sum of task vectors of these models writes; the first is the base."""
    base, *others = models
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in others],
    }
    merge_to_disk(parse_recipes(yaml.safe_dump(recipe), "recipe"), tmp_path / "out", models.__getitem__)
    return tmp_path / "out"


def assert_reads_as_transformers_does(folder, tmp_path):
    """A model passed through is the model that transformers loads."""
    recipe = {"merge_method": "passthrough", "models": [{"model": "m"}]}
    merge_to_disk(parse_recipes(yaml.safe_dump(recipe), "recipe"), tmp_path / "through", lambda name: folder)
    assert torch.equal(logits(tmp_path / "through"), logits(folder))


@pytest.fixture
def folder(make_llama, tmp_path):
    return make_llama(tmp_path / "model", seed=3)


def shards(folder, other):
    """Put the weights of another model into a folder as shards with an index."""
    source = open_checkpoint(other)
    out = folder.parent / "shards"
    tensors = ((name, source.tensor(name)) for name in source.names())
    write_checkpoint(out, source.config, tensors, tokenizer_from=other, shard_bytes=5000)
    for path in (*out.glob("model-*"), out / INDEX):
        shutil.copy(path, folder)


def test_the_same_weights_in_one_file_and_in_several_are_one_model(folder, tmp_path):
    shards(folder, folder)
    assert_reads_as_transformers_does(folder, tmp_path)


def test_other_weights_in_one_file_and_in_several_are_refused(folder, make_llama, tmp_path):
    shards(folder, make_llama(tmp_path / "newer", seed=4))
    with pytest.raises(BadInput, match=f"{WEIGHTS} and {INDEX}: hold different weights; remove the one"):
        open_checkpoint(folder)
    (folder / WEIGHTS).unlink()
    assert_reads_as_transformers_does(folder, tmp_path)


def test_a_config_that_names_another_file_is_refused(folder):
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    edit_config(folder, transformers_weights="other.safetensors")
    with pytest.raises(BadInput, match=r"transformers_weights: isn't supported; rename 'other\.safetensors' to model"):
        open_checkpoint(folder)


@pytest.mark.parametrize("stored", ["head alone", "both", "both, which differ"])
def test_a_tied_file_is_read_as_transformers_loads_it(folder, tmp_path, stored):
    def store(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()
        if stored == "head alone":
            del tensors[EMBEDDING]
        if stored == "both, which differ":
            tensors[HEAD] += 0.5

    edit(folder, store)
    assert_reads_as_transformers_does(folder, tmp_path)
    assert (HEAD in open_checkpoint(folder).names()) == (stored == "both, which differ")


@pytest.mark.parametrize("tied", ["base", "a", "b"])
def test_tied_and_untied_models_are_merged_with_a_head(make_llama, tmp_path, tied):
    base = make_llama(tmp_path / "tied")
    models = {name: make_llama(tmp_path / name, seed=seed, base=base) for seed, name in enumerate(("base", "a", "b"))}
    for folder in (folder for name, folder in models.items() if name != tied):
        edit(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] * 1.5 + 0.1}))
        edit_config(folder, tie_word_embeddings=False)
    states = {name: AutoModelForCausalLM.from_pretrained(folder).state_dict() for name, folder in models.items()}
    out = AutoModelForCausalLM.from_pretrained(merged(tmp_path, **models))
    assert out.config.tie_word_embeddings is False
    for name, tensor in out.state_dict().items():
        one, *others = (states[model][name] for model in ("base", "a", "b"))
        torch.testing.assert_close(tensor, one + sum(0.5 * (other - one) for other in others), rtol=0, atol=1e-6)


ABSENT = {
    "head_dim": {},
    "num_key_value_heads": {"num_key_value_heads": 2},
    "architectures": {},
    "rope_parameters": {},
    "tie_word_embeddings": {"tied": False},
    "max_position_embeddings": {},
}
"""Keys that a config may leave to transformers, and the sizes at which its own value is the model's."""


@pytest.mark.parametrize("of", ["base", "a", "all"])
@pytest.mark.parametrize("key", ABSENT)
def test_a_key_that_a_config_leaves_out_has_the_value_of_transformers(make_family, tmp_path, key, of):
    family = make_family(tmp_path, experts=1, **ABSENT[key])
    for folder in family.values():
        edit_config(folder, num_attention_heads=2)
    expected = logits(merged(tmp_path / "whole", **family))
    for name in family if of == "all" else [of]:
        edit_config(family[name], remove=[key])
    assert torch.equal(logits(merged(tmp_path, **family)), expected)


def test_a_key_that_differs_from_the_value_that_is_left_out_is_refused(make_family, tmp_path):
    family = make_family(tmp_path, experts=1, num_key_value_heads=1)
    edit_config(family["base"], remove=["num_key_value_heads"])  # two, as many as heads
    base, other = (open_checkpoint(one) for one in family.values())
    with pytest.raises(BadInput, match="num_key_value_heads: 1, but the base has 2"):
        check_compatible(*share_vocabulary({"base": base, "a": other}).values(), "a")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD = {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}, "rope_theta": 5e5}
NEW = {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32, "rope_theta": 5e5}}
LLAMA = {"model_type": "llama", "max_position_embeddings": 64}
GEMMA = {"model_type": "gemma3_text", "num_hidden_layers": 6}
NEOX = {"model_type": "gpt_neox"}
SAME = [
    (LLAMA, LLAMA | {"rope_theta": 1e4}),
    (LLAMA, LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    (LLAMA | OLD, LLAMA | NEW),
    (LLAMA | {"rope_scaling": None}, LLAMA),
    (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    (GEMMA, GEMMA | {"rope_local_base_freq": 1e4, "rope_theta": 1e6}),
    (NEOX, NEOX | {"rotary_pct": 0.25, "rotary_emb_base": 1e4}),
]
OTHER = [
    (LLAMA | {"rope_theta": 5e5}, LLAMA | OLD, {"rope_type", "factor", "original_max_position_embeddings"}),
    (LLAMA | OLD, LLAMA | {"rope_theta": 5e5}, {"rope_type", "factor"}),
    (LLAMA | OLD, LLAMA | NEW | {"rope_parameters": NEW["rope_parameters"] | {"factor": 32.0}}, {"factor"}),
    (
        LLAMA | OLD,
        LLAMA | {"rope_scaling": OLD["rope_scaling"] | {"original_max_position_embeddings": 16}, "rope_theta": 5e5},
        {"original_max_position_embeddings"},
    ),
    (GEMMA, GEMMA | {"rope_local_base_freq": 2e4}, {"sliding_attention.rope_theta"}),
    (GEMMA, GEMMA | {"rope_theta": 2e6}, {"full_attention.rope_theta"}),
    (NEOX, NEOX | {"rotary_pct": 0.5}, {"partial_rotary_factor"}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_positions_are_the_same_whatever_their_spelling(one, other):
    assert position_settings(one) == position_settings(other) != {}


@pytest.mark.parametrize(("one", "other", "keys"), OTHER)
def test_positions_that_differ_are_told_by_name(one, other, keys):
    ours, theirs = position_settings(one), position_settings(other)
    assert keys <= {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
