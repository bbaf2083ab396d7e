"""The project as it is committed, in a git repository of its own."""

import shutil
from pathlib import Path

import yaml

from tests import once
from tests.flows.project import git

ROOT = Path(__file__).parents[1]
SMALLEST = {
    "seed": 0,
    "zoo": {"layers": 3},
    "sample": {"candidates": 5, "anchors": 1},
    "dataset": {"edits": 6, "random": 4, "items": 8},
    "train": {"steps": 6, "hidden": 16},
    "search": {"budget": 1000, "batch": 4, "rungs": [8, 14], "rollouts": 8},
    "pareto": {"members": 3, "rescored": 4},
}
"""Parameters with which the real stages take seconds each, on a family and items as in small_tasks."""


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
