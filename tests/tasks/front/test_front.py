"""``front.json`` of anyone: what is read is whole, and leads out of no folder."""

import json
import shutil

import pytest

from models.errors import BadInput
from tasks.front.checkpoint import write_member
from tasks.front.composition import recipe_text
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tests.fixtures_front import make_project


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("front"))


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made.run, tmp_path / "tiny")


def member(name, value):
    return lambda data: data["members"][0].update({name: value})


DAMAGED = {
    "no members": lambda data: data.update(members=[]),
    "members that are none": lambda data: data.update(members=[1]),
    "two of a name": lambda data: data["members"].append(data["members"][0]),
    "a recipe above": member("recipe", "../../recipe.yaml"),
    "a recipe at a path": member("recipe", "/etc/passwd"),
    "an id that is none": member("id", "../x"),
    "a path that is none": member("path", [["base"]]),
    "no path": member("path", []),
    "no layers": member("layers", 0),
    "scores that are text": lambda data: data["members"][0]["scores"]["test"].update(math="0.5x"),
    "a score that is missing": lambda data: data["members"][0]["scores"]["test"].pop("math"),
    "a split that is missing": lambda data: data["references"][0]["scores"].pop("selection"),
    "a kind of reference that there isn't": lambda data: data["references"][0].update(kind="friend"),
    "an ideal that is missing": lambda data: data["ideal"].pop("math"),
    "no selection": lambda data: data["hv"].pop("selection"),
    "objectives that are no list": lambda data: data.update(objectives="math"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_front_that_is_not_whole_is_refused_in_one_line(run, what):
    path = run / "front.json"
    data = json.loads(path.read_text())
    DAMAGED[what](data)
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=r"^runs/tiny/front\.json: [^\n]+; no front of this version[^\n]*$"):
        Front.read(run)


def test_a_recipe_behind_a_link_is_not_read(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "project")
    workspace = open_workspace("tiny", tmp_path / "project")
    (tmp_path / "recipe.yaml").write_text("what is mine")
    one = Front.read(workspace.run).members[0]
    folder = (workspace.run / one.recipe).parent
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(BadInput, match="is a link out of the folder"):
        recipe_text(workspace.run, one)
    with pytest.raises(BadInput, match="is a link out of the folder"), Progress(None) as progress:
        write_member(workspace, one, tmp_path / "out", progress)
