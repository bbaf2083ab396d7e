"""`hm3 evaluate` and `hm3 export`: a folder, a recipe and a member are scored alike, in memory as on disk."""

import shutil

import numpy as np
import pytest
import yaml

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.front.checkpoint import merge_recipe, write_member
from tasks.front.front import Front
from tasks.objectives.objectives import Objectives
from tasks.project.progress import Progress
from tasks.registry.aliases import named, target_of
from tasks.scoring.evaluation import evaluate
from tests.small_front import SPLITS, member, write_front, write_recipe
from tests.small_tasks import make_family_project

PATH = Candidate("a", (("a", 0), ("b", 1), ("a", 1), ("a", 2)))


@pytest.fixture(scope="module")
def workspace(make_family, tmp_path_factory):
    """A project with a family and a front of one member, whose path is longer than the base."""
    root = tmp_path_factory.mktemp("evaluation")
    workspace = make_family_project(root, make_family)
    scores = {split: {"one": 0.5, "two": 0.5, "layers": 4 / 3} for split in SPLITS}
    write_front(workspace, [member(PATH, write_recipe(workspace, PATH), scores, {"one": 1.0})])
    return workspace


def scored(workspace, target, split="test", here=None):
    return evaluate(workspace, str(target), split, here or workspace.root, Progress())


def scored_by_name(workspace, name):
    """As `hm3 evaluate` does it: names of members count, too."""
    target, here = target_of(workspace, name, workspace.root)
    return scored(workspace, target, here=here)


def test_a_checkpoint_has_the_scores_that_the_search_gives_it(workspace):
    found = scored(workspace, "runs/p/zoo/a", "selection")
    base = open_checkpoint(workspace.zoo / "base")
    pool = Pool(base.config)
    pool.add("a", open_checkpoint(workspace.zoo / "a"))
    one = Objectives(workspace, "selection", workspace.zoo / "base").item_scores(
        pool, [Candidate.identity("a", 3)], 0, 99
    )[0]
    assert found.scores == {name: np.mean(values) for name, values in one.items.items()} | {"layers": 1.0}
    assert found.items == {"one": 8, "two": 8}
    assert found.tasks == {name: {name: {"acc,none": found.scores[name]}} for name in ("one", "two")}


def test_a_member_scores_the_same_in_memory_and_as_an_exported_checkpoint(workspace, tmp_path):
    for key in (PATH.id, PATH.id[:4], "balanced"):
        in_memory = scored_by_name(workspace, key)
        assert in_memory.layers == 4
        assert in_memory.scores["layers"] == 4 / 3
    balanced = named(workspace, Front.read(workspace.run), "balanced")
    assert balanced.id == PATH.id
    write_member(workspace, balanced, tmp_path / "out", Progress())
    on_disk = scored(workspace, tmp_path / "out")
    assert on_disk.scores == in_memory.scores


def test_a_recipe_scores_the_same_in_memory_and_merged(workspace, tmp_path):
    models = [{"model": f"runs/p/zoo/{name}", "parameters": {"weight": 0.5}} for name in ("a", "b")]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    merge_recipe(recipe, tmp_path / "merged", [tmp_path, workspace.root], "cpu", None, Progress())
    assert scored(workspace, "recipe.yaml", here=tmp_path).scores == scored(workspace, tmp_path / "merged").scores


def test_paths_in_a_recipe_are_tried_from_the_first_place_on(workspace, tmp_path):
    shutil.copytree(workspace.zoo / "b", tmp_path / "near" / "model")
    shutil.copytree(workspace.zoo / "a", tmp_path / "far" / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"merge_method": "passthrough", "models": [{"model": "model"}]}))
    merge_recipe(recipe, tmp_path / "out", [tmp_path / "near", tmp_path / "far"], "cpu", None, Progress())
    written, near = (open_checkpoint(one) for one in (tmp_path / "out", tmp_path / "near" / "model"))
    assert written.digest("layer.0") == near.digest("layer.0")


def test_what_is_no_target_says_what_there_is(workspace, tmp_path):
    with pytest.raises(BadInput, match=r"nobody: neither a folder nor a file here, nor a member .* there are"):
        scored_by_name(workspace, "nobody")
    with pytest.raises(BadInput, match=r"nothing\.yaml: missing"):
        scored(workspace, "nothing.yaml")
    with pytest.raises(BadInput, match=r"recipe\.yaml: .*unknown"):
        (tmp_path / "recipe.yaml").write_text("merge_method: linear\nmodls: []\n")
        scored(workspace, tmp_path / "recipe.yaml")


def test_the_result_reads_well(workspace):
    from rich.console import Console

    with (console := Console(width=60)).capture() as captured:
        console.print(scored(workspace, "runs/p/zoo/a").shown())
    lines = [line.split() for line in captured.get().splitlines()]
    assert lines[0] == ["runs/p/zoo/a:", "3", "layers,", "scores", "on", "test"]
    assert [line[0] for line in lines[2:5]] == ["one", "two", "layers"]
    assert lines[6] == ["as", "lm-eval", "aggregates", "the", "same", "items"]
    assert [line[:3] for line in lines[8:]] == [["one", "acc", "none"], ["two", "acc", "none"]]
