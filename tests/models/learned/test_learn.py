"""Methods that learn from texts, on every family of decoders; tests/parity holds their numbers against fusion_bench."""

import json
from functools import partial

import pytest
import torch

from models.errors import BadInput
from models.learned.learn import learn
from models.merge.learning import regmean_plusplus
from models.merge.recipe import Recipe
from models.merge.source import open_recipes
from models.sources.checkpoint import open_checkpoint
from tests.conftest import random_tokenizer
from tests.models.sources.test_families import DECODERS, random_model

TEXTS = {"a": ["w3 w4 w5 w6 w7 w8", "w9 w3 w11"], "b": ["w20 w21 w3 w22", "w23 w24 w25"]}
INIT, STEPS = 0.3, 2


def merged(method, folders, root, **parameters):
    """What learns from the texts, and the steps of which it told."""
    for name, texts in TEXTS.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    models = [{"model": name, "texts": f"{name}.jsonl"} for name in TEXTS]
    document = {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}
    told = []
    let = partial(learn, tokenizer=root, find=root.joinpath, on_step=lambda *step: told.append(step))
    sources = {name: open_checkpoint(folder) for name, folder in folders.items()}
    return open_recipes([Recipe.model_validate(document)], sources.__getitem__, learn=let), sources, told


@pytest.fixture(params=DECODERS.values(), ids=DECODERS)
def family(request, tmp_path):
    """A base and an expert, and the tokenizer of both in the folder above."""
    random_tokenizer(60).save_pretrained(tmp_path)
    return {name: random_model(tmp_path / name, *request.param, seed) for seed, name in enumerate(("base", "a"))}


def layers(source):
    found = [one for one in source.names() if source.architecture.split(one)[0] is not None]
    assert found
    return found


def test_equal_experts_are_what_regmean_makes_of_them(family, tmp_path):
    made, sources, told = merged("regmean_plusplus", family | {"b": family["a"]}, tmp_path)
    assert told[-1] == (4, 4)
    for one in layers(made):
        assert torch.allclose(made.tensor(one), sources["a"].tensor(one), atol=1e-3), one
    for one in set(made.names()) - set(layers(made)):
        whose = "a" if made.architecture.is_before(one) else "base"
        assert torch.allclose(made.tensor(one), sources[whose].tensor(one)), one


def test_every_coefficient_of_a_layer_moves(family, tmp_path):
    made, sources, told = merged(
        "layer_wise_adamerging", family | {"b": family["a"]}, tmp_path, init=INIT, steps=STEPS, lr=0.01
    )
    assert told == [(1, STEPS), (2, STEPS)]
    assert set(made.learned) == set(made.names())
    still = [one for one in layers(made) if made.learned[one] == pytest.approx((INIT, INIT), abs=1e-6)]
    assert not [one for one in still if not one.endswith("bias")], still  # a key's bias changes no attention
    for one, (first, second) in made.learned.items():
        base, expert = sources["base"].tensor(one), sources["a"].tensor(one)
        assert torch.allclose(made.tensor(one), base + (first + second) * (expert - base), atol=1e-5), one


def test_too_few_texts_for_a_matrix_are_refused():
    gram, weight = torch.zeros(3, 3), torch.ones(2, 3)
    with pytest.raises(BadInput, match="the texts leave some inputs of a layer unused; give more of them"):
        regmean_plusplus(weight, [weight] * 2, learned=[gram] * 2, linear_layer=True, reduce_non_diagonal_ratio=0.9)
