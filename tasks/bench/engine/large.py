"""A project whose pipeline is done and has found very much: many members, a long archive, a journal of many segments.

Every file is written by the code that writes it in the pipeline, or in its columns; models and scores are made up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from models.candidate import Candidate
from models.front import Scale, hypervolume
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe, dump_recipes, mergekit_level, recipe_name
from tasks.project.records import write_table, write_text
from tasks.project.workspace import Workspace, open_workspace
from tasks.scoring.journal import Entry, Journal, key_of

TASKS = ("translation", "math", "code")
OBJECTIVES = (*TASKS, "layers")
SPLITS = ("search", "selection", "test")
PROFILE = "large"
LAYERS = 12
MERGED = 40
"""Recipes whose layers the paths pass."""
ITEMS = 128
"""Of each task."""


def make_project(root: Path, members: int, candidates: int, seed: int) -> Workspace:
    """A project with a front of so many ``members`` and an archive of so many ``candidates`` in a new folder."""
    profile = {
        "made": "tiny",
        "experts": dict.fromkeys(TASKS),
        "objectives": [{"name": name, "task": f"tiny_{name}"} for name in TASKS],
    }
    write_text(root / "params.yaml", yaml.safe_dump({"profiles": [PROFILE]}))
    write_text(root / "profiles" / f"{PROFILE}.yaml", yaml.safe_dump(profile))
    workspace, rng = open_workspace(PROFILE, root), np.random.default_rng(seed)
    folders = {name: f"runs/{PROFILE}/zoo/{name}" for name in ("base", *TASKS)}
    base = folders.pop("base")
    write_text(workspace.zoo / "family.json", json.dumps({"base": base, "experts": folders}))
    merged = recipes(base, folders, rng)
    pool = [*TASKS, *merged]
    found: dict[Candidate, None] = {}
    while len(found) < members:  # no member is there twice
        found[random_path(pool, rng)] = None
    paths = list(found)
    front = front_of(workspace, paths, merged, rng)
    write_text(workspace.run / "front.json", json.dumps(front, indent=1) + "\n")
    write_text(workspace.run / "metrics.json", json.dumps({"item_evaluations": candidates * ITEMS}) + "\n")
    write_table(workspace.run / "archive.parquet", archive(pool, candidates, rng))
    return workspace


def recipes(base: str, experts: dict[str, str], rng: np.random.Generator) -> dict[str, Recipe]:
    """Merges of the experts, by their names in the pool."""
    found = {}
    for _ in range(MERGED):
        models = [{"model": one, "parameters": {"weight": float(rng.random())}} for one in experts.values()]
        given = {"merge_method": "ties", "base_model": base, "models": models, "parameters": {"density": 0.5}}
        recipe = Recipe.model_validate(given)
        found[recipe_name(recipe)] = recipe
    return found


def random_path(pool: list[str], rng: np.random.Generator) -> Candidate:
    """A path of some layers in their order, in runs over several models."""
    layers = np.sort(rng.choice(LAYERS, size=int(rng.integers(LAYERS // 2, LAYERS + 1)), replace=False))
    models = np.sort(rng.choice(pool, size=3))
    path = tuple((str(models[3 * place // len(layers)]), int(layer)) for place, layer in enumerate(layers))
    return Candidate(path[0][0], path)


def front_of(
    workspace: Workspace, paths: list[Candidate], merged: dict[str, Recipe], rng: np.random.Generator
) -> dict[str, Any]:
    """What ``front.json`` says; the recipes of the members are written."""
    scale = Scale(OBJECTIVES, (0.9, 0.9, 0.9, 0.5), (0.3, 0.3, 0.3, 1.0))
    rows, members = dict.fromkeys(SPLITS, np.empty(0)), []
    for split in SPLITS:
        directions = rng.dirichlet(np.ones(len(TASKS)), len(paths)) ** 0.5
        depths = np.array([one.depth / LAYERS for one in paths])[:, None]
        rows[split] = np.hstack([0.3 + 0.6 * directions * (0.5 + 0.5 * depths), depths])
    for number, one in enumerate(paths):
        documents = path_recipe(one, merged, lambda name: f"runs/{PROFILE}/zoo/{name}", LAYERS)
        recipe = f"members/{one.id}/recipe.yaml"
        write_text(workspace.run / recipe, dump_recipes(documents))
        members.append(
            {
                "id": one.id,
                "name": one.id,
                "kind": "edit",
                "layers": one.depth,
                "path": [list(step) for step in one.path],
                "host": one.host,
                "recipe": recipe,
                "mergekit": mergekit_level(documents),
                "scores": {split: named(rows[split][number]) for split in SPLITS},
                "serves": named(np.round(rng.dirichlet(np.ones(len(OBJECTIVES))), 4)),
                "reported": {},
            }
        )
    kinds = {"base": "base", **dict.fromkeys(TASKS, "expert"), "uniform average": "baseline"}
    against = {split: rng.uniform(0.3, 0.6, (len(kinds), len(TASKS))) for split in SPLITS}
    return {
        "profile": PROFILE,
        "objectives": list(OBJECTIVES),
        "ideal": named(np.array(scale.ideal)),
        "nadir": named(np.array(scale.nadir)),
        "hv": {split: hypervolume(scale.costs(rows[split])) for split in SPLITS},
        "standard_errors": dict.fromkeys(TASKS, 0.03),
        "members": members,
        "references": [
            {
                "name": name,
                "kind": kind,
                "scores": {split: named(np.append(against[split][number], 1.0)) for split in SPLITS},
            }
            for number, (name, kind) in enumerate(kinds.items())
        ],
    }


def named(values: np.ndarray) -> dict[str, float]:
    """Values by objective."""
    return {name: float(value) for name, value in zip(OBJECTIVES, values, strict=True)}


def archive(pool: list[str], count: int, rng: np.random.Generator) -> pd.DataFrame:
    """A table in the columns of :func:`tasks.search.archive_table`."""
    steps = [[f'["{model}",{layer}]' for layer in range(LAYERS)] for model in pool]
    hosts = rng.integers(len(pool), size=count)
    passed = rng.random((count, LAYERS)) < 0.8
    passed[:, 0] = True
    others = rng.integers(len(pool), size=(count, LAYERS))
    texts = [
        f'{{"host":"{pool[host]}","path":[{",".join([steps[own[layer]][layer] for layer in np.flatnonzero(some)])}]}}'
        for host, own, some in zip(hosts, others, passed, strict=True)
    ]
    return pd.DataFrame(
        {
            "candidate": texts,
            "id": [key_of(text=one)[:10] for one in texts],
            "kind": rng.choice(["edit", "recipe", "layered", "random"], count),
            "round": np.arange(count) // 32,
            "items": np.where(rng.random(count) < 0.6, ITEMS, 32),
            "charged": ITEMS * len(TASKS),
            "at": np.arange(count) * ITEMS * len(TASKS),
            "failed": pd.array([None] * count, dtype="string"),
            "recipes": pd.array([None] * count, dtype="string"),
            **{name: rng.beta(4, 4, count) for name in TASKS},
            "layers": passed.mean(axis=1),
        }
    )


def make_journal(folder: Path, segments: int, entries: int, seed: int) -> int:
    """A journal of so many ``segments`` with so many ``entries`` each, a candidate an entry; returns their number."""
    rng, journal = np.random.default_rng(seed), Journal(folder)
    for segment in range(segments):
        right = rng.random((entries, len(TASKS), ITEMS // 4)) < 0.5
        journal.append(
            Entry(
                key_of(segment=segment, entry=number),
                0,
                ITEMS // 4,
                {name: tuple(right[number, task].astype(float).tolist()) for task, name in enumerate(TASKS)},
            )
            for number in range(entries)
        )
    return segments * entries
