"""Methods that learn from texts, held against what fusion_bench's own code makes of the same models and texts."""

import json

import pytest
import yaml
from safetensors.torch import load_file

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
