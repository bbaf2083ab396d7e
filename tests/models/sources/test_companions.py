"""What travels beside the weights names nothing that stays behind, and ends texts where generation does."""

import json
import warnings

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from models.merge.recipe import parse_recipes
from models.merge.write import merge_to_disk
from tests.models.sources.test_vocabulary import extend


def edit(path, remove=(), **changes):
    content = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in remove}))


def merge(folders, out, **more):
    base, *others = folders
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": one, "parameters": {"weight": 0.5}} for one in others],
        **more,
    }
    merge_to_disk(parse_recipes(yaml.safe_dump(recipe), "recipe"), out, folders.__getitem__)
    return out


@pytest.fixture
def family(make_family, tmp_path):
    return make_family(tmp_path, experts=2)


def test_code_that_stays_behind_is_not_named(family, tmp_path):
    names = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "org/other--modeling_x.XModel"}
    edit(family["base"] / "config.json", auto_map=names)
    edit(family["base"] / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    out = merge(family, tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((out / name).read_text())
    with warnings.catch_warnings(action="error"):
        AutoConfig.from_pretrained(out)
        AutoModelForCausalLM.from_pretrained(out)
        assert len(AutoTokenizer.from_pretrained(out)) == 41


@pytest.mark.parametrize("value", ["/home/somebody/tokenizer.json", "../tokenizer.json", "gone.model", 3])
def test_a_file_that_stays_behind_is_not_named(family, tmp_path, value):
    edit(family["base"] / "tokenizer_config.json", tokenizer_file=value, vocab_file="tokenizer.json")
    out = merge(family, tmp_path / "out")
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert "tokenizer_file" not in config
    assert config["vocab_file"] == "tokenizer.json"  # which is there
    AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("source", [None, "base", "union", "a"])
def test_all_say_the_same_end_of_text(family, tmp_path, source):
    """As with a base whose fine-tune for conversations ends turns with a token of its own."""
    extend(family["a"], ["<end>"], special=True)
    edit(family["a"] / "tokenizer_config.json", eos_token="<end>")
    edit(family["a"] / "generation_config.json", eos_token_id=[2, 41])
    out = merge(family, tmp_path / "out", **({"tokenizer_source": source} if source else {}))
    tokenizer, config = AutoTokenizer.from_pretrained(out), AutoConfig.from_pretrained(out)
    generation = GenerationConfig.from_pretrained(out)
    assert config.eos_token_id == generation.eos_token_id == ([2, 41] if source == "a" else 2)
    assert tokenizer.eos_token_id == (41 if source == "a" else 2)


def test_without_a_generation_config_the_tokenizer_says_it(family, tmp_path):
    for folder in family.values():
        (folder / "generation_config.json").unlink()
        edit(folder / "config.json", eos_token_id=7)
    out = merge(family, tmp_path / "out")
    assert AutoConfig.from_pretrained(out).eos_token_id == AutoTokenizer.from_pretrained(out).eos_token_id == 2
