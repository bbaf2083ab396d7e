"""A small project whose front is true: real members, with the scores that they have on its items."""

from __future__ import annotations

import json

import yaml

from models.candidate import Candidate
from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes
from tasks.evaluation import evaluate
from tasks.progress import Progress
from tasks.records import write_text
from tasks.workspace import open_workspace
from tests.small_tasks import make_family_project

LAYERS = 3
MEMBERS = {
    "a": Candidate.identity("a", LAYERS),
    "b": Candidate.identity("b", LAYERS),
    "mixed": Candidate("a", (("a", 0), ("b", 1), ("a", 2))),
    "short": Candidate("b", (("b", 0), ("b", 2))),
}
SPLITS = ("search", "selection", "test")


def make_promotable_project(root, make_family):
    """Members ``a`` (best at ``one``), ``b`` (best at ``two``), ``mixed`` and ``short``, by these names."""
    workspace = make_family_project(root, make_family)
    members = []
    for name, candidate in MEMBERS.items():
        file = f"members/{candidate.id}/recipe.yaml"
        recipe = dump_recipes(path_recipe(candidate, {}, "runs/p/zoo/{}".format, LAYERS))
        write_text(workspace.run / file, recipe)
        target = str(workspace.run / file)
        members.append(
            {
                "id": candidate.id,
                "name": name,
                "layers": candidate.depth,
                "path": candidate.path,
                "host": candidate.host,
                "recipe": file,
                "serves": {"one": 0.5, "two": 0.5},
                "mergekit": "exact",
                "scores": {one: evaluate(workspace, target, one, root, Progress()).scores for one in SPLITS},
                "reported": {},
            }
        )
    front = {
        "profile": "p",
        "objectives": ["one", "two", "layers"],
        "ideal": {"one": 1.0, "two": 1.0, "layers": 0.5},
        "nadir": {"one": 0.0, "two": 0.0, "layers": 1.5},
        "hv": dict.fromkeys(SPLITS, 0.1),
        "members": members,
        "references": [],
    }
    write_text(workspace.run / "front.json", json.dumps(front))
    write_text(workspace.run / "agent" / "config.json", "{}")
    return workspace


def change_profile(workspace, **blocks):
    """The workspace with other blocks in its profile."""
    path = workspace.root / "profiles" / f"{workspace.name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | blocks))
    return open_workspace(workspace.name, workspace.root)


def ids():
    """Name → id of the members."""
    return {name: one.id for name, one in MEMBERS.items()}
