"""Recipes as mergekit's users write them: those of its documentation and of model cards, with the names replaced.

Each is read, and means there what it means here, or is refused for the reason that is named.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import AutoTokenizer

from models.errors import BadInput
from models.merge.recipe import dump_recipes, parse_recipes
from models.merge.write import merge_to_disk
from tests.models.sources.test_vocabulary import EMBEDDING, extend

EXAMPLES = Path(__file__).with_name("recipes.yaml")
"""Documents with ``about``, ``recipe`` (its text) and, for one that is refused, ``refused``."""


def examples():
    return yaml.safe_load(EXAMPLES.read_text())


@pytest.mark.parametrize("example", examples(), ids=lambda one: one["about"])
def test_a_recipe_as_people_write_them_is_read_or_refused_for_its_reason(example):
    if "refused" in example:
        with pytest.raises(BadInput) as caught:
            parse_recipes(example["recipe"], "recipe.yaml")
        assert example["refused"] in str(caught.value)
        return
    recipes = parse_recipes(example["recipe"], "recipe.yaml")
    assert parse_recipes(dump_recipes(recipes), "again") == recipes
    for one, document in zip(recipes, yaml.safe_load_all(example["recipe"]), strict=True):
        theirs = MergeConfiguration.model_validate({key: value for key, value in document.items() if key != "name"})
        assert theirs.merge_method == one.merge_method
        assert {str(model).removeprefix("model:") for model in theirs.referenced_models()} == set(one.referenced)
        again = MergeConfiguration.model_validate(yaml.safe_load(dump_recipes([one.model_copy(update={"name": None})])))
        assert {str(model) for model in again.referenced_models()} == set(one.referenced)


def test_there_are_enough_of_them():
    assert len(examples()) >= 45


@pytest.fixture
def family(make_family, tmp_path):
    """Base, and two fine-tunes with tokens of their own, one of which both have."""
    made = make_family(tmp_path, experts=2, tied=False)
    extend(made["a"], ["<of-a>", "<of-both>"])
    extend(made["b"], ["<of-both>", "<of-b>"])
    return made


TOKENIZERS = {
    "union": {"source": "union"},
    "base": {"source": "base"},
    "of a model": {"source": "A"},
    "token of a model": {"source": "union", "tokens": {"<of-both>": {"source": "A"}}},
    "forced": {"source": "union", "tokens": {"w5": {"source": "B", "force": True}}},
    "renamed": {
        "source": "union",
        "tokens": {"<of-b>": {"source": {"kind": "model_token", "model": "A", "token": "w7"}}},
    },
    "by id": {
        "source": "base",
        "tokens": {"w9": {"source": {"kind": "model_token", "model": "B", "token_id": 12}, "force": True}},
    },
    "zero": {"source": "union", "tokens": {"<of-a>": {"source": {"kind": "zero"}, "force": True}}},
    "new": {"source": "union", "tokens": {"<new>": {"source": {"kind": "model_token", "model": "A", "token": "w6"}}}},
    "padded": {"source": "union", "pad_to_multiple_of": 16},
    "padded and forced": {"source": "base", "pad_to_multiple_of": 8, "tokens": {"w5": {"source": "A", "force": True}}},
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_block_gives_mergekits_rows(family, tmp_path, case):
    text = json.dumps(TOKENIZERS[case])
    for name, folder in (("A", family["a"]), ("B", family["b"])):
        text = text.replace(f'"{name}"', json.dumps(str(folder)))
    document = {
        "merge_method": "linear",
        "base_model": str(family["base"]),
        "models": [
            {"model": str(family[name]), "parameters": {"weight": weight}}
            for name, weight in (("base", 0.2), ("a", 0.3), ("b", 0.5))
        ],
        "tokenizer": json.loads(text),
        "dtype": "float32",
    }
    options = MergeOptions(quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(copy.deepcopy(document)), str(tmp_path / "theirs"), options)
    merge_to_disk(parse_recipes(yaml.safe_dump(document), "recipe.yaml"), tmp_path / "ours", Path)
    (ours, our_ids), (theirs, their_ids) = (read(tmp_path / name) for name in ("ours", "theirs"))
    assert our_ids.keys() == their_ids.keys()
    for name in (EMBEDDING, "lm_head.weight"):
        assert ours[name].shape == theirs[name].shape
        for token, row in our_ids.items():
            torch.testing.assert_close(ours[name][row], theirs[name][their_ids[token]], rtol=0, atol=1e-6)
        padding = slice(len(our_ids), None)
        torch.testing.assert_close(ours[name][padding], theirs[name][padding], rtol=0, atol=1e-6)


def read(folder):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert config["vocab_size"] == len(tensors[EMBEDDING])
    return tensors, AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize("template", ["auto", "chatml", "llama3", "mistral", "{{ messages[0]['content'] }}!"])
def test_a_chat_template_is_the_one_that_mergekit_writes(family, tmp_path, template):
    for name in "ab":
        (family[name] / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}?")
    document = {
        "merge_method": "linear",
        "models": [{"model": str(folder), "parameters": {"weight": 1}} for folder in family.values()],
        "tokenizer_source": str(family["base"]),
        "chat_template": template,
    }
    options = MergeOptions(quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(copy.deepcopy(document)), str(tmp_path / "theirs"), options)
    merge_to_disk(parse_recipes(yaml.safe_dump(document), "recipe.yaml"), tmp_path / "ours", Path)
    turns = [("system", "be brief"), ("user", "w3 w4"), ("assistant", "w5"), ("user", "w6")]
    for said in (turns, turns[1:], turns[1:2]):
        messages = [{"role": role, "content": text} for role, text in said]
        for prompt in (True, False):
            one, other = (written(tmp_path / name, messages, prompt) for name in ("ours", "theirs"))
            assert one == other


def written(folder, messages, prompt):
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # noqa: BLE001 (of whichever library)
        return f"refused: {type(error).__name__}"
