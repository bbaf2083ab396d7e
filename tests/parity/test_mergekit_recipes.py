"""Whole recipes: the checkpoints that mergekit writes from our YAML hold the tensors that we write and score."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import main as mergekit_multi
from safetensors.torch import load_file

from models.candidate import Candidate
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe, dump_recipes, mergekit_level, parse_recipes
from models.merge.source import open_recipes
from models.merge.write import merge_to_disk
from models.sources.checkpoint import open_checkpoint


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert (one[name].double() - other[name].double()).abs().max() <= tolerance, name


def both(document, folder, tolerance=1e-6):
    """Our folder and mergekit's for one recipe, compared."""
    text = yaml.safe_dump(document)
    run_merge(
        MergeConfiguration.model_validate(copy.deepcopy(document)),
        str(folder / "theirs"),
        MergeOptions(quiet=True, write_model_card=False),
    )
    merge_to_disk(parse_recipes(text, "recipe.yaml"), folder / "ours", Path)
    theirs = weights(folder / "theirs")
    assert_same(weights(folder / "ours"), theirs, tolerance)
    return theirs


def entry(folder, **parameters):
    return {"model": str(folder), **({"parameters": parameters} if parameters else {})}


def recipe(family, method="ties", models=None, **more):
    values = ({"weight": 0.5, "density": 0.4}, {"weight": 0.9, "density": 0.7}, {"weight": 0.3, "density": 0.2})
    models = models or [entry(family[name], **one) for name, one in zip("abc", values, strict=False) if name in family]
    return {"merge_method": method, "base_model": str(family["base"]), "models": models, **more}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("experts", [2, 3])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_methods(make_family, tmp_path, method, experts, tied):
    family = make_family(tmp_path, experts, tied=tied)
    document = recipe(family, method)
    if method == "linear":
        del document["base_model"]
        document["models"] = [entry(family[name], weight=0.3 + n) for n, name in enumerate("abc"[:experts])]
    merged = both(document, tmp_path)
    assert ("lm_head.weight" in merged) != tied


DETERMINISTIC = {
    "slerp": (1, True, {"t": [0.1, 0.8]}),
    "nuslerp": (2, False, {"weight": [0.2, 0.7]}),
    "nuslerp of task vectors by row": (2, True, {"weight": 0.5, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "breadcrumbs": (3, True, {"weight": 0.5, "density": [0.3, 0.9], "gamma": 0.05}),
    "breadcrumbs_ties": (2, True, {"weight": 0.5, "density": 0.7, "rescale": True}),
    "model_stock": (3, True, {}),
    "model_stock by row": (2, True, {"filter_wise": True}),
    "sce": (3, True, {"select_topk": {"filter": "mlp", "value": 0.2}}),
    "karcher": (3, False, {"max_iter": 5, "tol": 1e-6}),
    "karcher with a base": (2, True, {}),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", DETERMINISTIC)
def test_other_deterministic_methods(make_family, tmp_path, case, dtype, tied):
    experts, based, parameters = DETERMINISTIC[case]
    family = make_family(tmp_path, experts, tied=tied)
    models = [entry(family[name]) for name in "abc"[:experts]]
    document = recipe(family, case.split()[0], models, parameters=parameters, dtype=dtype)
    if not based:
        del document["base_model"]
    text = dump_recipes(parse_recipes(yaml.safe_dump(document), "recipe.yaml"))
    merged = both(yaml.safe_load(text), tmp_path, tolerance=1e-6 if dtype == "float32" else 0.0)
    assert ("lm_head.weight" in merged) != tied


def test_base_among_the_models_and_settings_for_all(make_family, tmp_path):
    family = make_family(tmp_path)
    models = [entry(family["base"]), entry(family["a"]), entry(family["b"], weight=0.2)]
    both(recipe(family, "ties", models, parameters={"weight": 0.8, "density": 0.5, "lambda": 1.3}), tmp_path)


def test_gradients_over_layers(make_family, tmp_path):
    family = make_family(tmp_path, layers=5)
    models = [entry(family["a"], weight=[0, 0.5, 1]), entry(family["b"], weight=[0.7, 0.1], density=[0.2, 0.9])]
    document = recipe(family, "ties", models, parameters={"normalize": [True, False, False], "lambda": [0.5, 1.5]})
    both(document, tmp_path)


def test_filters_by_tensor(make_family, tmp_path):
    family = make_family(tmp_path, layers=4)
    weight = [{"filter": "mlp", "value": [0.2, 0.8]}, {"filter": "q_proj", "value": 0}, {"value": 0.4}]
    models = [entry(family["a"], weight=weight), entry(family["b"], weight=[{"filter": "norm", "value": 1.0}])]
    both(recipe(family, "task_arithmetic", models, parameters={"weight": {"value": "3e-1"}}), tmp_path)


def test_slices_with_a_method(make_family, tmp_path):
    family = make_family(tmp_path, layers=4)
    document = {
        "merge_method": "task_arithmetic",
        "base_model": str(family["base"]),
        "parameters": {"weight": 0.5},
        "slices": [
            {
                "sources": [
                    {"model": str(family["base"]), "layer_range": [0, 3]},
                    {"model": str(family["a"]), "layer_range": [1, 4], "parameters": {"weight": [0.1, 0.9]}},
                ]
            },
            {
                "sources": [
                    {"model": str(family["base"]), "layer_range": [1, 3]},
                    {"model": str(family["b"]), "layer_range": [0, 2]},
                ],
                "parameters": {"weight": [1.0, 0.2]},
            },
        ],
    }
    merged = both(document, tmp_path)
    assert "model.layers.4.mlp.up_proj.weight" in merged


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", None])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_dtypes(make_family, make_llama, tmp_path, method, dtype, out_dtype):
    """Also models that are stored in different dtypes."""
    family = make_family(tmp_path)
    family["b"] = make_llama(tmp_path / "half", seed=9, base=family["base"], dtype=torch.bfloat16)
    dtypes = {"dtype": dtype, "out_dtype": out_dtype}
    document = recipe(family, method, **{key: value for key, value in dtypes.items() if value})
    if method == "linear":
        document |= {"parameters": {"weight": 1.0}, "models": [entry(family[name]) for name in "ab"]}
    both(document, tmp_path, tolerance=0.0 if method == "ties" else 1e-6)


# `dare_linear` draws its masks as `dare_ties` does, and `della_linear` as `della`
@pytest.mark.parametrize(
    "method",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in ("dare_linear", "della_linear")), "dare_ties", "della"],
)
def test_random_methods_agree_in_expectation(make_family, tmp_path, method):
    """mergekit takes our YAML with its seed; both means over masks are the same, within five standard errors."""
    family = make_family(tmp_path, hidden_size=8, intermediate_size=8, layers=1, vocabulary=11)
    draws, ours, theirs = 60, [], []
    models = [entry(family["a"], weight=0.6, density=0.7), entry(family["b"], weight=0.9, density=0.4)]
    for seed in range(draws):
        document = recipe(family, method, models, parameters={"seed": seed, "rescale": True})
        source = open_recipes(parse_recipes(yaml.safe_dump(document), "x"), lambda name: open_checkpoint(Path(name)))
        ours.append(torch.cat([source.tensor(name).flatten() for name in source.names()]))
        run_merge(
            MergeConfiguration.model_validate(document),
            str(tmp_path / str(seed)),
            MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False, random_seed=seed),
        )
        merged = weights(tmp_path / str(seed))
        theirs.append(torch.cat([merged[name].flatten() for name in source.names()]))
    one, other = torch.stack(ours).double(), torch.stack(theirs).double()
    error = ((one.var(0) + other.var(0)) / draws).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-9).all()
    assert (one.mean() - other.mean()).abs() < 5 * (one.mean(1).std() + other.mean(1).std()) / draws**0.5


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("host", ["b", "r-0000000a"])
def test_a_path_is_rebuilt_by_mergekit_multi(make_family, tmp_path, host, tied):
    """Merged layers, a repeat, a skip, and a host whose layers stand at neither end."""
    family = make_family(tmp_path, tied=tied)
    recipes = {"r-0000000a": Recipe.model_validate(recipe(family, "ties", parameters={"lambda": 1.2}))}
    path = (("a", 0), ("r-0000000a", 1), ("r-0000000a", 2), ("r-0000000a", 2), ("base", 1), ("base", 2))
    documents = path_recipe(Candidate(host, path), recipes, lambda name: str(family[name]), 3)
    assert mergekit_level(documents) == "exact"

    (tmp_path / "recipe.yaml").write_text(dump_recipes(documents))
    command = [tmp_path / "recipe.yaml", "-I", tmp_path / "merges", "--out-path", tmp_path / "theirs", "--quiet"]
    outcome = CliRunner().invoke(mergekit_multi, [str(one) for one in command], catch_exceptions=False)
    assert outcome.exit_code == 0

    merge_to_disk(documents, tmp_path / "ours", Path)
    live = open_recipes(documents, lambda name: open_checkpoint(Path(name)))
    theirs = weights(tmp_path / "theirs")
    assert_same(weights(tmp_path / "ours"), theirs, 1e-5)
    assert_same({name: live.tensor(name) for name in live.names()}, theirs, 1e-5)
    assert open_checkpoint(tmp_path / "theirs").config["num_hidden_layers"] == 6
    host_source = live if host == "r-0000000a" else open_checkpoint(family[host])
    assert torch.equal(theirs["model.embed_tokens.weight"], host_source.tensor("model.embed_tokens.weight"))
    assert (tmp_path / "theirs" / "tokenizer.json").is_file()


def test_a_whole_merged_model_is_its_own_recipe(make_family, tmp_path):
    family = make_family(tmp_path)
    recipes = {"r-0000000a": Recipe.model_validate(recipe(family, "ties"))}
    documents = path_recipe(Candidate.identity("r-0000000a", 3), recipes, str, 3)
    assert documents == [recipes["r-0000000a"]]
    both(yaml.safe_load(dump_recipes(documents)), tmp_path)
