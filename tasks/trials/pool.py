"""The pool of a search: experts and anchors, and the paths that may be walked over them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from models.candidate import Candidate
from models.front import Scale
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe, dump_recipes, mergekit_level, parse_recipes
from models.search.environment import PathRules, PathSpace
from models.search.reward import LAYERS
from models.sources.architecture import keeps_lists
from tasks.project.progress import Progress
from tasks.project.records import Anchors
from tasks.project.workspace import Workspace
from tasks.schema.profile import Profile
from tasks.scoring.engine import Engine
from tasks.trials.repair import open_repairs, recipe_block


def open_pool(workspace: Workspace, progress: Progress) -> tuple[Engine, Anchors]:
    """An engine in which the anchors, and every other recipe that was scored, take part under their names.

    It repairs seams as stage `sample` has decided; calibrations that the state folder lacks are shown by ``progress``.
    """
    engine, anchors = Engine(workspace), Anchors.read(workspace.run)
    for one in anchors.scored:
        if one.recipe is not None:
            engine.add(parse_recipes(one.recipe, f"anchors.json: {one.name}")[-1])
    open_repairs(workspace, engine, anchors, progress)
    return engine, anchors


def add_recipes(engine: Engine, archive: pd.DataFrame) -> None:
    """Let the recipes take part that the search has added to an archive."""
    for row, text in archive["recipes"].dropna().items():
        for recipe in parse_recipes(str(text), f"archive.parquet: row {row}"):
            engine.add(recipe)


def path_space(engine: Engine, anchors: Anchors) -> PathSpace:
    """Paths over experts and anchors, under the rules of the profile."""
    rules = path_rules(engine.workspace.profile, engine.layers)
    return PathSpace((*engine.family.experts, *anchors.anchors), engine.layers, rules)


def path_rules(profile: Profile, layers: int) -> PathRules:
    """The rules of a profile for a base of so many layers.

    The bound on jumps grows with the model: blocks of layers that can be left out together do, too.
    """
    given = profile.paths.model_dump(exclude={"repair"})
    return PathRules(**given | {"forward": profile.paths.forward or max(4, layers // 4)})


def full_scale(workspace: Workspace, anchors: Anchors) -> Scale:
    """Ideal and nadir of the task objectives, as they were fixed before the search, and of depth where it is one."""
    names, ideal, nadir = tuple(anchors.objectives), anchors.ideal, anchors.nadir
    if (layers := workspace.profile.layers) is not None:
        names, ideal, nadir = (*names, LAYERS), ideal | {LAYERS: layers.ideal}, nadir | {LAYERS: layers.nadir}
    return Scale(names, tuple(ideal[name] for name in names), tuple(nadir[name] for name in names))


def rebuilt_by_mergekit(engine: Engine, candidate: Candidate, recipes: Sequence[Recipe]) -> str:
    """How well mergekit rebuilds a path from its recipes: ``exact``, ``in-distribution`` or ``no``."""
    config = engine.pool.skeleton.config.to_dict()
    return mergekit_level(recipes) if keeps_lists(config, [layer for _, layer in candidate.path]) else "no"


def recipe_of(workspace: Workspace, engine: Engine, candidate: Candidate) -> tuple[str, str]:
    """The recipe that makes a member, in YAML, and how well mergekit rebuilds it; the engine repairs as of members."""
    block = recipe_block(workspace, engine, candidate)
    recipes = path_recipe(candidate, engine.recipes, engine.locate, engine.layers, block)
    return dump_recipes(recipes), rebuilt_by_mergekit(engine, candidate, recipes)
