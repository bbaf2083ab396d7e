"""A member with repaired seams is rebuilt from its recipe and the rows, with the numbers that the engine scores."""

import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes, mergekit_level, parse_recipes
from models.paths.calibration import Calibration
from models.sources.checkpoint import open_checkpoint
from tasks.front.checkpoint import merge_recipe
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.scoring.evaluation import evaluate
from tasks.trials.repair import FILE, begin_repairs, recipe_block, repair_members
from tests.small_repairs import LAYERS, make_repair_project, mixed

DTYPES = {
    "single": ("float32", torch.float32),
    "half": ("bfloat16", torch.float32),
    "stored": ("bfloat16", torch.bfloat16),
}
"""In which a profile computes, and in which its models are stored."""


@pytest.fixture(scope="module", params=DTYPES)
def made(request, make_family, tmp_path_factory):
    """A project whose state is gone, a member's recipe, what the engine made of it, and its scores."""
    dtype, stored = DTYPES[request.param]
    root = tmp_path_factory.mktemp("project")
    workspace = make_repair_project(root, lambda *args, **more: make_family(*args, dtype=stored, **more), dtype=dtype)
    engine = Engine(workspace)
    merged = engine.add(mixed(a=0.6, b=0.5)).host
    assert begin_repairs(workspace, engine, [merged], Progress())
    engine.repairs.layers = frozenset(range(LAYERS - 1))
    steps = [(merged, 0), (merged, 1), ("b", 4), ("a", 3), ("a", 5), ("a", 5), (merged, 6)]
    member = Candidate("b", tuple(steps))
    assert repair_members(engine, [member]) == 2 * engine.repairs.cost  # seams behind the merge's layer, and a's
    block = recipe_block(workspace, engine, member)
    assert block.layers == (1, 3)
    recipes = path_recipe(member, engine.recipes, engine.locate, LAYERS, block)
    write_text(workspace.run / "members/x/recipe.yaml", dump_recipes(recipes))
    path = engine.repaired(member).path
    tensors = [{name: one.clone() for name, one in engine.pool.block(*step).named_parameters()} for step in path]
    (scored,) = engine.scored([member], "test")
    shutil.rmtree(workspace.state)
    return workspace, tensors, scored


@pytest.fixture
def recipe(made):
    return made[0].run / "members/x/recipe.yaml"


def test_a_rebuilt_member_has_the_tensors_that_are_scored_bit_for_bit(made, recipe, tmp_path):
    workspace, tensors, _ = made
    merge_recipe(recipe, tmp_path / "out", [workspace.root], "cpu", None, Progress())
    written, computed = open_checkpoint(tmp_path / "out"), getattr(torch, workspace.profile.dtype)
    assert written.config["num_hidden_layers"] == len(tensors)
    for position, layer in enumerate(tensors):
        for name, wanted in layer.items():
            assert torch.equal(written.tensor(f"model.layers.{position}.{name}").to(computed), wanted), (position, name)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == recipe.read_text()
    assert FILE in (tmp_path / "out" / "README.md").read_text()


def test_two_refitted_layers_differ_from_those_of_the_path_alone(made, recipe, tmp_path):
    workspace, tensors, _ = made
    *merges, path = parse_recipes(recipe.read_text(), "x")
    assert mergekit_level([*merges, path]) == "no"
    write_text(tmp_path / "naive.yaml", dump_recipes([*merges, path.model_copy(update={"repair": None})]))
    merge_recipe(tmp_path / "naive.yaml", tmp_path / "out", [tmp_path, workspace.root], "cpu", None, Progress())
    written = open_checkpoint(tmp_path / "out")
    changed = [
        (position, name)
        for position, layer in enumerate(tensors)
        for name, ours in layer.items()
        if not torch.equal(written.tensor(f"model.layers.{position}.{name}").to(ours.dtype), ours)
    ]
    assert changed == [(1, "mlp.down_proj.weight"), (3, "mlp.down_proj.weight")]


def test_the_recipe_and_the_rebuilt_member_have_the_members_scores(made, recipe, tmp_path):
    workspace, _, scored = made
    merge_recipe(recipe, tmp_path / "out", [workspace.root], "cpu", None, Progress())
    for target in (recipe, tmp_path / "out"):
        found = evaluate(workspace, str(target), "test", workspace.root, Progress())
        assert found.layers == scored.candidate.depth
        assert found.scores == scored.means() | {"layers": 1.0}


@pytest.fixture
def changed(made, tmp_path):
    """A copy of the project, and a function that refuses to rebuild its member for a reason."""
    workspace = open_workspace("p", shutil.copytree(made[0].root, tmp_path / "copy"))
    path = workspace.run / "members/x/recipe.yaml"

    def refused(message, **repair):
        documents = list(yaml.safe_load_all(path.read_text()))
        documents[-1]["repair"] |= repair
        path.write_text(yaml.safe_dump_all(documents))
        for build in (
            lambda: merge_recipe(path, tmp_path / "out", [workspace.root], "cpu", None, Progress()),
            lambda: evaluate(workspace, str(path), "test", workspace.root, Progress()),
        ):
            with pytest.raises(BadInput, match=message) as caught:
                build()
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    return workspace, refused


@pytest.mark.parametrize("made", ["single"], indirect=True)
def test_other_rows_and_missing_ones_are_refused(changed):
    workspace, refused = changed
    path = workspace.run / FILE
    items = Calibration.read(path)
    items.part(1, len(items.tasks)).write(path)
    refused(r"^repair\.rows: runs/p/anchors/calibration\.safetensors: not the items that the recipe was made with")
    items.write(path)
    refused(r"^repair\.rows: .*: not the items that the recipe was made with", tokens=100)
    path.write_bytes(path.read_bytes()[:-9])
    refused(r"calibration\.safetensors: ")
    path.unlink()
    refused(r"anchors/calibration\.safetensors: missing")


@pytest.mark.parametrize("made", ["single"], indirect=True)
def test_a_layer_behind_which_nothing_is_left_out_is_refused(changed):
    _, refused = changed
    refused(r"^repair\.layers: 0: nothing is left out behind it$", layers=[0, 1])


def test_members_of_models_of_which_one_has_more_tokens_are_rebuilt_too(make_family, tmp_path):
    workspace = make_repair_project(tmp_path / "project", make_family)
    folder = workspace.zoo / "b"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["more", "most"])
    model.resize_token_embeddings(43, mean_resizing=False)
    for one in (model, tokenizer):
        one.save_pretrained(folder)
    engine = Engine(workspace)
    merged = engine.add(mixed(a=0.6, b=0.4)).host
    begin_repairs(workspace, engine, [merged], Progress())
    engine.repairs.layers = frozenset(range(LAYERS - 1))
    members = [
        Candidate(host, tuple(path))
        for host, path in (
            ("a", [("a", 0), ("a", 1), ("b", 3), ("b", 6)]),
            (merged, [(merged, 0), (merged, 1), ("a", 3), ("a", 6)]),
            ("b", [("b", 0), ("b", 2)]),
        )
    ]
    repair_members(engine, members)
    for member, scored in zip(members, engine.scored(members, "test"), strict=True):
        recipes = path_recipe(member, engine.recipes, engine.locate, LAYERS, recipe_block(workspace, engine, member))
        write_text(tmp_path / "recipe.yaml", dump_recipes(recipes))
        merge_recipe(tmp_path / "recipe.yaml", tmp_path / member.id, [workspace.root], "cpu", None, Progress())
        found = evaluate(workspace, str(tmp_path / member.id), "test", workspace.root, Progress()).scores
        assert {name: found[name] for name in ("one", "two")} == scored.means()
