"""A front of chosen paths in a project of small_tasks: their recipes, and ``front.json``."""

import json

from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes
from tasks.project.records import write_text

LAYERS = 3
SPLITS = ("search", "selection", "test")


def write_recipe(workspace, candidate):
    """The recipe of a path over the family's models; its file in the run's folder."""
    file = f"members/{candidate.id}/recipe.yaml"
    recipe = dump_recipes(path_recipe(candidate, {}, "runs/p/zoo/{}".format, LAYERS))
    write_text(workspace.run / file, recipe)
    return file


def member(candidate, file, scores, serves, **more):
    """An entry of ``front.json``; ``scores``: by split and objective."""
    return {
        "id": candidate.id,
        "layers": candidate.depth,
        "path": candidate.path,
        "host": candidate.host,
        "recipe": file,
        "serves": serves,
        "mergekit": "exact",
        "scores": scores,
        "reported": {},
        **more,
    }


def write_front(workspace, members):
    """``front.json`` over the objectives ``one``, ``two`` and ``layers``."""
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
