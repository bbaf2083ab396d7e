"""Methods that learn from texts, held against what fusion_bench's own code makes of the same models and texts."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from models.errors import BadInput
from models.merge.recipe import read_recipes
from models.merge.source import open_recipes
from models.sources.checkpoint import open_checkpoint
from tests.conftest import random_tokenizer
from tests.flows.project import hm3
from tests.parity.fusion_bench import INIT, KEPT, LR, RATIO, STEPS, TEXTS, make_model

PARAMETERS = {
    "regmean_plusplus": {"reduce_non_diagonal_ratio": RATIO},
    "layer_wise_adamerging": {"steps": STEPS, "lr": LR, "init": INIT, "rows": 1},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Folders of the models, and files of their texts."""
    root = tmp_path_factory.mktemp("family")
    for number, name in enumerate(("base", *TEXTS)):
        make_model(number).save_pretrained(root / name)
        random_tokenizer(41).save_pretrained(root / name)
    for name, texts in TEXTS.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return root


def merge(root, recipe, out):
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return hm3(root, "merge", "recipe.yaml", str(out))


def recipe_of(method, **parameters):
    models = [{"model": name, "texts": f"{name}.jsonl"} for name in TEXTS]
    return {
        "merge_method": method,
        "base_model": "base",
        "models": models,
        "parameters": PARAMETERS[method] | parameters,
    }


@pytest.mark.parametrize("method", PARAMETERS)
def test_a_merge_that_learns_is_that_of_fusion_bench(method, family, tmp_path):
    done = merge(family, recipe_of(method), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = {name.partition(":")[2]: one for name, one in load_file(KEPT).items() if name.startswith(f"{method}:")}
    assert ours.keys() == theirs.keys()
    base = dict(make_model(0).named_parameters())
    assert max(float((one - base[name]).abs().max()) for name, one in ours.items()) > 0.01
    for name, one in ours.items():
        assert float((one - theirs[name]).abs().max()) < 1e-6, name


def test_coefficients_that_learn_nothing_are_task_arithmetic(family, tmp_path):
    recipe = recipe_of("layer_wise_adamerging", steps=0)
    assert merge(family, recipe, tmp_path / "out").returncode == 0
    ours = load_file(tmp_path / "out" / "model.safetensors")
    base, *experts = (dict(make_model(number).named_parameters()) for number in range(3))
    for name, one in ours.items():
        expected = base[name] + INIT * sum(expert[name] - base[name] for expert in experts)
        assert float((one - expected).abs().max()) < 1e-7, name  # coefficients are float32


@pytest.mark.parametrize("method", PARAMETERS)
def test_padding_changes_nothing(method, family, tmp_path):
    """Texts of different lengths one by one, and together."""
    found = []
    for rows in (1, 3):
        out = tmp_path / str(rows)
        recipe = recipe_of(method, rows=rows, **({"steps": 0} if method == "layer_wise_adamerging" else {}))
        assert merge(family, recipe, out).returncode == 0
        found.append(load_file(out / "model.safetensors"))
    for name, one in found[0].items():
        assert float((one - found[1][name]).abs().max()) < 1e-9, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"models": [{"model": "a", "texts": "a.jsonl"}, {"model": "b"}]},
            "learns from each model's texts; add `texts`",
        ),
        ({"models": [{"model": "a", "texts": "none.jsonl"}]}, "none.jsonl: missing"),
        ({"models": [{"model": "a", "texts": "empty.jsonl"}]}, "empty.jsonl: holds no texts"),
        ({"models": [{"model": "a", "texts": "other.jsonl"}]}, 'line 1: has no text; each line must be {"text": "…"}'),
        ({"merge_method": "task_arithmetic", "parameters": {}}, "texts: task_arithmetic reads no texts of this model"),
    ],
)
def test_texts_that_are_missing_or_of_no_use_are_refused(change, message, family, tmp_path):
    (family / "empty.jsonl").write_text("")
    (family / "other.jsonl").write_text('{"prompt": "w3"}\n')
    done = merge(family, recipe_of("regmean_plusplus") | change, tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_learns_is_merged_before_it_is_scored(family):
    (family / "recipe.yaml").write_text(yaml.safe_dump(recipe_of("regmean_plusplus")))
    recipes = read_recipes(family / "recipe.yaml")
    with pytest.raises(BadInput, match="learns from texts; make the model with `hm3 merge`"):
        open_recipes(recipes, lambda name: open_checkpoint(family / name))
