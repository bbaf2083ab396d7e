"""A candidate's path becomes recipes that make exactly its layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.blocks import Repair
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe, dump_recipes, mergekit_level, parse_recipes
from models.merge.source import open_recipes
from models.sources.checkpoint import open_checkpoint

LAYERS = 3
MERGED = Recipe(
    merge_method="task_arithmetic",
    base_model="zoo/base",
    models=[{"model": "zoo/a", "parameters": {"weight": 0.5}}],
)


def locate(model):
    if model not in ("base", "a", "b"):
        raise BadInput(f"{model}: no such model")
    return f"zoo/{model}"


def recipes(host, *path):
    return path_recipe(Candidate(host, path), {"r-1": MERGED}, locate, LAYERS)


def slices(documents):
    return [(one.sources[0].model, *one.sources[0].layer_range) for one in documents[-1].slices]


def test_consecutive_layers_of_a_model_are_one_slice():
    (final,) = recipes("a", ("a", 0), ("a", 1), ("b", 2), ("a", 2), ("a", 2))
    assert slices([final]) == [("zoo/a", 0, 2), ("zoo/b", 2, 3), ("zoo/a", 2, 3), ("zoo/a", 2, 3)]
    assert final.base_model == "zoo/a"


def test_a_host_that_lends_no_end_layer_stands_there_with_an_empty_slice():
    assert slices(recipes("b", ("a", 0), ("r-1", 1), ("a", 2))) == [
        ("zoo/b", 0, 0),
        ("zoo/a", 0, 1),
        ("r-1", 1, 2),
        ("zoo/a", 2, 3),
        ("zoo/b", 0, 0),
    ]


def test_recipes_of_merged_models_come_first_under_their_names():
    merged, final = recipes("r-1", ("a", 0), ("a", 1))
    assert merged == MERGED.model_copy(update={"name": "r-1"})
    assert final.base_model == "r-1"
    assert recipes("a", ("a", 0)) == [final for final in recipes("a", ("a", 0)) if final.name is None]


def test_merges_of_merges_come_behind_what_they_need():
    outer = Recipe(
        merge_method="linear", parameters={"weight": 1}, models=[{"model": "r-1"}, {"model": "zoo/b"}], name="outer"
    )
    known = {"r-2": outer, "r-1": MERGED}
    inner = MERGED.model_copy(update={"name": "r-1"})
    path = path_recipe(Candidate("a", (("r-2", 0), ("r-1", 1))), known, locate, LAYERS)
    assert path[:-1] == [inner, outer.model_copy(update={"name": "r-2"})]
    whole = path_recipe(Candidate.identity("r-2", LAYERS), known, locate, LAYERS)
    assert whole == [inner, outer.model_copy(update={"name": None})]
    assert parse_recipes(dump_recipes(path), "x") == path


def test_a_whole_merged_model_is_its_recipe():
    assert path_recipe(Candidate.identity("r-1", LAYERS), {"r-1": MERGED}, locate, LAYERS) == [MERGED]
    assert len(recipes("r-1", ("r-1", 0), ("r-1", 1))) == 2


def test_a_repair_stands_in_the_recipe_of_the_path_alone():
    repair = Repair(rows="rows.safetensors", sha256="0" * 64, tokens=24_000, ridge=0.003, layers=(0, 1))
    path = Candidate("b", (("r-1", 0), ("a", 2)))
    documents = path_recipe(path, {"r-1": MERGED}, locate, LAYERS, repair)
    assert [one.repair for one in documents] == [None, repair]
    assert documents[-1].model_copy(update={"repair": None}) == recipes("b", *path.path)[-1]
    assert parse_recipes(dump_recipes(documents), "x") == documents
    assert mergekit_level(documents) == "no"


@pytest.mark.parametrize(
    ("host", "path", "message"),
    [
        ("a", (), "path: is empty"),
        ("a", (("a", 0), ("b", 3)), "path: b.3: layer is unknown; there are 0 to 2"),
        ("a", (("a", -1),), "path: a.-1: layer is unknown"),
        ("a", (("a", 0), ("x", 1)), "x: no such model"),
        ("r-2", (("a", 0),), "r-2: no such model"),
    ],
)
def test_unknown_layers_and_models_are_refused(host, path, message):
    with pytest.raises(BadInput, match=message):
        recipes(host, *path)


@pytest.fixture(scope="module")
def sources(make_family, tmp_path_factory):
    folders = make_family(tmp_path_factory.mktemp("zoo"))
    zoo = {f"zoo/{name}": open_checkpoint(folder) for name, folder in folders.items()}
    return zoo | {"r-1": open_recipes([MERGED], zoo.__getitem__)}


steps = st.tuples(st.sampled_from(["base", "a", "b", "r-1"]), st.integers(0, LAYERS - 1))


@settings(deadline=None, max_examples=40)
@given(host=st.sampled_from(["base", "a", "b", "r-1"]), path=st.lists(steps, min_size=1, max_size=8))
def test_every_path_gives_its_layers_and_its_hosts_ends(sources, host, path):
    documents = parse_recipes(dump_recipes(recipes(host, *path)), "recipe.yaml")
    made = open_recipes(documents, sources.__getitem__)
    where = {name: sources.get(name) or sources[f"zoo/{name}"] for name in (host, *(model for model, _ in path))}
    assert made.config["num_hidden_layers"] == len(path)
    for name in made.names():
        position, inner = made.architecture.split(name)
        model, layer = (host, None) if position is None else path[position]
        assert torch.equal(made.tensor(name), where[model].tensor(made.architecture.join(layer, inner)))
    for position, (model, layer) in enumerate(path):
        assert made.digest(f"layer.{position}") == where[model].digest(f"layer.{layer}")
    assert made.digest("ends") == where[host].digest("ends")
