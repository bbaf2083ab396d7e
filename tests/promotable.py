"""A small project whose front is true: real members, with the scores that they have on its items."""

from __future__ import annotations

from dataclasses import replace

import yaml

from models.candidate import Candidate
from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes
from tasks.front.found import keep
from tasks.front.front import Member
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.workspace import open_workspace
from tasks.scoring.evaluation import evaluate
from tests import once
from tests.small_front import LAYERS, SPLITS, member, write_front, write_recipe
from tests.small_tasks import make_family_project

MEMBERS = {
    "a": Candidate.identity("a", LAYERS),
    "b": Candidate.identity("b", LAYERS),
    "mixed": Candidate("a", (("a", 0), ("b", 1), ("a", 2))),
    "short": Candidate("b", (("b", 0), ("b", 2))),
}


def make_promotable_project(root, make_family):
    """Members ``a`` (best at ``one``), ``b`` (best at ``two``), ``mixed`` and ``short``, by these names."""
    workspace = make_family_project(root, make_family)
    members = []
    for name, candidate in MEMBERS.items():
        file = write_recipe(workspace, candidate)
        target = str(workspace.run / file)
        scores = {one: evaluate(workspace, target, one, root, Progress()).scores for one in SPLITS}
        members.append(member(candidate, file, scores, {"one": 0.5, "two": 0.5}, name=name))
    write_front(workspace, members)
    write_text(workspace.run / "agent" / "config.json", "{}")
    once.give_databases(workspace.state)
    return workspace


def keep_find(workspace, candidate, **recorded):
    """What a search may have found beside the front, with its true scores unless others are given."""
    recipe = dump_recipes(path_recipe(candidate, {}, "runs/p/zoo/{}".format, LAYERS))
    kept = keep(workspace, Member(**member(candidate, "", {}, {"one": 0.5, "two": 0.5}), name=candidate.id), recipe)
    scores = {
        one: evaluate(workspace, kept.recipe, one, workspace.root, Progress()).scores | recorded
        for one in ("search", "selection")
    }
    return keep(workspace, replace(kept, scores=scores), recipe)


def change_profile(workspace, **blocks):
    """The workspace with other blocks in its profile."""
    path = workspace.root / "profiles" / f"{workspace.name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | blocks))
    return open_workspace(workspace.name, workspace.root)


def ids():
    """Name → id of the members."""
    return {name: one.id for name, one in MEMBERS.items()}
