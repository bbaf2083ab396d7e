"""Families beside Llama: mergekit writes the tensors that we write, for merges and for paths.

GPT-NeoX is left out: mergekit asks for buffers that its checkpoints no longer hold.
"""

from pathlib import Path

import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from models.candidate import Candidate
from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes, parse_recipes
from models.merge.source import open_recipes
from models.sources.checkpoint import open_checkpoint
from tests.models.sources.test_families import DECODERS, LAYERS, PATH, random_model


@pytest.fixture(params=[name for name in DECODERS if not name.startswith("gpt_neox")])
def family(request, tmp_path):
    kind, config = DECODERS[request.param]
    return {name: random_model(tmp_path / name, kind, config, seed) for seed, name in enumerate(("base", "a", "b"))}


def assert_equal(text, tmp_path, tolerance):
    ours = open_recipes(parse_recipes(text, "recipe.yaml"), lambda folder: open_checkpoint(Path(folder)))
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)),
        str(tmp_path / "theirs"),
        MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False),
    )
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    for name in ours.names():
        one = ours.tensor(name)
        assert one.dtype == theirs[name].dtype
        assert (one.double() - theirs[name].double()).abs().max() <= tolerance, name
    left = set(theirs) - set(ours.names())
    assert all(torch.equal(theirs[name], theirs[ours.architecture.embedding]) for name in left)  # a tied head


def test_a_merge(family, tmp_path):
    models = [{"model": str(family[name]), "parameters": {"weight": 0.4 + n}} for n, name in enumerate("ab")]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(family["base"]), "models": models}
    assert_equal(yaml.safe_dump(recipe), tmp_path, 1e-6)


def test_a_path(family, tmp_path):
    """As long as the models: some families list the kinds of their layers, which mergekit leaves as they are."""
    documents = path_recipe(Candidate("b", PATH[:LAYERS]), {}, lambda name: str(family[name]), LAYERS)
    assert_equal(dump_recipes(documents), tmp_path, 0.0)
