"""The project as it is committed, in a git repository of its own; and one whose real stages have run."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests import once
from tests.flows.project import dvc, git
from tests.small_tasks import COUNTS, TASK, answered, prompts, write_items
from tests.warm import programs

ROOT = Path(__file__).parents[1]
SMALLEST = {
    "seed": 0,
    "zoo": {"layers": 3},
    "sample": {"candidates": 5, "anchors": 1},
    "dataset": {"edits": 6, "random": 4, "items": 8},
    "train": {"steps": 6},
    "search": {"budget": 1000, "batch": 4, "rungs": [8, 14]},
    "pareto": {"members": 3, "rescored": 4},
}
"""Parameters with which the real stages take seconds each, on a family and items as in small_tasks."""
NAMES = ("translation", "math", "code")
PARAMS = SMALLEST | {
    "profiles": ["tiny", "mine"],
    "search": SMALLEST["search"] | {"budget": 1800},  # three objectives, and repairs
    "pareto": {"members": 4, "rescored": 6},
}
NOT_SET = ("MLFLOW_", "PREFECT_API", "HM3_STATE", "AWS_")
"""What variables begin with that a user hasn't set who has just made the project."""


def make_clone(root, params, **profiles):
    """The project with these parameters; ``profiles``: contents of profiles that are added or replaced, by name."""
    for name in ("flows", "tasks", "models", "profiles"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "prefect.yaml", ".dvcignore", ".gitignore", "pyproject.toml", ".dvc/config"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / ".dvc" / "plots", root / ".dvc" / "plots")
    once.give_databases(root / ".hm3")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for name, content in profiles.items():
        (root / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "tester")
    git(root, "config", "user.email", "tester@example.org")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "project")
    return root


TRAINING = 160
"""Rows of each task on which repairs are calibrated."""


def make_pipeline(root, make_family):
    """A project after `dvc repro` of the profile ``tiny``, with what it made committed.

    The models of ``tiny`` are random ones below ``runs/``, as if they had been trained there. ``mine`` is given the
    same, and has not run.
    """
    made = {
        "made": "tiny",
        "experts": dict.fromkeys(NAMES),
        "objectives": [{"name": name, "task": f"small_{name}", "items": COUNTS} for name in NAMES],
        "promotion": {"tolerance": 1.0},
        "threads": 1,
    }
    zoo = {name: f"runs/tiny/zoo/{name}" for name in ("base", *NAMES)}
    family = {"base": zoo["base"], "experts": {name: zoo[name] for name in NAMES}}
    make_clone(root, PARAMS, tiny=made, mine=made | {"made": None} | family)
    models = make_family(root.parent / "made", experts=len(NAMES), noise=0.2)
    for folder, model in zip(zoo.values(), models.values(), strict=True):
        shutil.copytree(model, root / folder)
    (root / "runs/tiny/zoo/family.json").write_text(json.dumps(family))
    (root / "profiles" / "mine").mkdir()
    for seed, name in enumerate(NAMES):
        rows = COUNTS | {"train": TRAINING}
        files = {split: f"runs/tiny/tasks/{name}.{split}.jsonl" for split in rows}
        for number, (split, count) in enumerate(rows.items()):
            write_items(root / files[split], answered(root / zoo[name], prompts(count, 10 * seed + number)))
        task = {"task": f"small_{name}", **TASK, "dataset_kwargs": {"data_files": files}, "training_split": "train"}
        for profile in ("tiny", "mine"):
            (root / "profiles" / profile / f"small_{name}.yaml").write_text(json.dumps(task))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(NOT_SET)]:
            patch.delenv(name)
        patch.setenv("PATH", os.pathsep.join([str(programs()), os.environ["PATH"]]))
        dvc(root, "commit", "--force", "--quiet", "zoo@tiny")
        dvc(root, "repro", "--glob", "*@tiny")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "the front of tiny")
