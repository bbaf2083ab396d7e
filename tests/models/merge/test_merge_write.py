"""`hm3 merge` and `hm3 export` write plain Hugging Face folders, or nothing."""

import logging
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe, dump_recipes, parse_recipes
from models.merge.source import open_recipes
from models.merge.write import merge_to_disk, tokenizer_model
from models.sources.checkpoint import open_checkpoint

TIES = """
merge_method: ties
base_model: zoo/base
models:
- {model: zoo/a, parameters: {weight: 0.5, density: 0.5}}
- {model: zoo/b, parameters: {weight: 0.7, density: 0.5}}
"""


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    """As many tensors are merged at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def root(request, make_family, tmp_path):
    make_family(tmp_path / "zoo", tied=request.param)
    return tmp_path


def path_of_three_models(root):
    recipes = {"r-1": parse_recipes(TIES, "x")[0]}
    path = (("a", 0), ("r-1", 1), ("r-1", 1), ("b", 0), ("b", 2))
    return path_recipe(Candidate("r-1", path), recipes, lambda name: f"zoo/{name}", 3)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load_quietly(folder, caplog):
    """The model, if transformers finds nothing to complain about."""
    transformers_logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        AutoTokenizer.from_pretrained(folder)
    transformers_logging.disable_propagation()
    assert not caplog.records
    assert not any(report.values())
    return model


def test_a_path_loads_without_warnings_and_holds_the_live_tensors(root, caplog):
    recipes = path_of_three_models(root)
    merge_to_disk(recipes, root / "out", root.joinpath)
    model = load_quietly(root / "out", caplog)
    assert model.config.num_hidden_layers == 5
    live = open_recipes(recipes, lambda name: open_checkpoint(root / name))
    parameters = dict(model.named_parameters())
    assert sorted(parameters) == live.names()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, live.tensor(name))
    stored = load_file(root / "out" / "model.safetensors")
    assert ("lm_head.weight" in stored) != model.config.tie_word_embeddings
    assert {key.split(".")[2] for key in stored if key.startswith("model.layers.")} == set("01234")
    tokenizer = AutoTokenizer.from_pretrained(root / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(root / "zoo" / "base").chat_template


def test_the_written_recipe_makes_the_same_folder_again(root):
    merge_to_disk(path_of_three_models(root), root / "out", root.joinpath)
    again = parse_recipes((root / "out" / "recipe.yaml").read_text(), "recipe.yaml")
    merge_to_disk(again, root / "again" / "out", root.joinpath)
    assert files(root / "out") == files(root / "again" / "out")
    assert set(files(root / "out")) >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
    }


def test_the_card_tells_methods_and_lineage_but_no_place_on_this_machine(root):
    text = TIES.replace("zoo/", f"{root}/zoo/")
    merge_to_disk(parse_recipes(text, "x"), root / "ties", root.joinpath)
    merge_to_disk(path_of_three_models(root), root / "path", root.joinpath)
    ties, path = ((root / name / "README.md").read_text() for name in ("ties", "path"))
    assert str(root) not in ties and "`base`" in ties and "weight 0.5" in ties
    assert "mergekit (`mergekit-multi`) makes the same model" in ties
    assert "[TIES](https://arxiv.org/abs/2306.01708)" in path
    assert "| `r-1` | embedding, norm and head only | |" in path.replace("|  |", "| |")
    assert "| `zoo/a` | 0–0 |" in path


def test_a_dtype_given_by_hand_is_stored_and_recorded(root, caplog):
    merge_to_disk(parse_recipes(TIES, "x"), root / "out", root.joinpath, dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(root / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert load_quietly(root / "out", caplog).dtype == torch.bfloat16
    (recipe,) = parse_recipes((root / "out" / "recipe.yaml").read_text(), "x")
    assert recipe.out_dtype == "bfloat16" and recipe.dtype is None


def test_progress_counts_every_tensor(root):
    seen = []
    merge_to_disk(parse_recipes(TIES, "x"), root / "out", root.joinpath, on_tensor=lambda *one: seen.append(one))
    total = len(load_file(root / "out" / "model.safetensors"))
    assert seen == [(number, total) for number in range(1, total + 1)]


def test_the_tokenizer_comes_from_where_the_recipe_says():
    ties, path = parse_recipes(TIES, "x"), path_of_three_models(None)
    assert tokenizer_model(ties) == tokenizer_model(path) == "zoo/base"
    assert tokenizer_model(parse_recipes(TIES + "tokenizer_source: zoo/b", "x")) == "zoo/b"
    for source in ("base", "union"):
        assert tokenizer_model(parse_recipes(TIES + f"tokenizer_source: {source}", "x")) == "zoo/base"
    soup = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: zoo/b}, {model: zoo/a}]"
    assert tokenizer_model(parse_recipes(soup, "x")) == "zoo/b"


def test_lists_with_an_entry_a_layer_fit_the_path(tmp_path, caplog):
    """Qwen2 names the kind of attention of every layer; a path may repeat and reorder them."""
    config = Qwen2Config(
        vocab_size=41,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "a")
    steps = ((1, 3), (0, 1), (0, 1), (2, 3))
    slices = [{"sources": [{"model": "a", "layer_range": step}]} for step in steps]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    merge_to_disk([recipe], tmp_path / "out", tmp_path.joinpath)
    full, sliding = "full_attention", "sliding_attention"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.layer_types == [sliding, sliding, full, full, sliding]


def broken(root, text=TIES):
    """The message of a merge that is refused, and leaves nothing."""
    before = sorted(path.name for path in root.iterdir())
    with pytest.raises(BadInput) as caught:
        merge_to_disk(parse_recipes(text, "recipe.yaml"), root / "out", root.joinpath)
    assert sorted(path.name for path in root.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spoil(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[7] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_where_they_are(root, value):
    """Trimming could hide them: the value lies in an expert and is not among the largest."""
    spoil(root / "zoo" / "b", "model.layers.2.mlp.up_proj.weight", value)
    assert broken(root).startswith(f"{root}/zoo/b: model.layers.2.mlp.up_proj.weight: holds NaN or Inf")


def test_a_merge_that_overflows_is_refused(root):
    huge = TIES.replace("0.7", "1e7").replace("density: 0.5", "density: 1") + "parameters: {normalize: false}\n"
    assert "set dtype: float32" in broken(root, huge + "dtype: float16")


def test_a_missing_model_is_refused(root):
    assert "zoo/c: no such folder" in broken(root, TIES.replace("zoo/b,", "zoo/c,"))


def test_a_model_of_another_family_is_refused(root, make_llama):
    make_llama(root / "zoo" / "wide", hidden_size=32)
    message = broken(root, TIES.replace("zoo/b,", "zoo/wide,"))
    assert message.startswith("zoo/wide: config.json: hidden_size: 32, but the base has 16")


def test_tensors_that_differ_in_spite_of_equal_configs_are_refused(root):
    tensors = load_file(root / "zoo" / "b" / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(17)
    save_file(tensors, root / "zoo" / "b" / "model.safetensors", metadata={"format": "pt"})
    assert broken(root).startswith("model.norm.weight: shapes differ (zoo/a: [16], zoo/b: [17], zoo/base: [16])")


def test_nothing_is_written_over(root):
    merge_to_disk(parse_recipes(TIES, "x"), root / "out", root.joinpath)
    before = files(root / "out")
    assert "is there already" in broken(root)
    assert files(root / "out") == before


def test_a_killed_merge_leaves_no_folder_that_looks_whole(root):
    recipe = root / "recipe.yaml"
    recipe.write_text(dump_recipes(parse_recipes(TIES, "x")))
    program = (
        "import os, signal, sys; from pathlib import Path; from models.merge.recipe import parse_recipes;"
        "from models.merge.write import merge_to_disk; root = Path(sys.argv[1]);"
        "merge_to_disk(parse_recipes((root / 'recipe.yaml').read_text(), 'x'), root / 'out', root.joinpath,"
        "on_tensor=lambda done, total: done == total and os.kill(os.getpid(), signal.SIGKILL))"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(root)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    assert not (root / "out").exists()
    merge_to_disk(parse_recipes(TIES, "x"), root / "out", root.joinpath)
    assert sorted(path.name for path in root.iterdir()) == ["out", "recipe.yaml", "zoo"]
