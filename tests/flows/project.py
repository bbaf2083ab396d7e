"""A project whose stages only copy what a finished pipeline left behind, so that a whole run takes seconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from tests import once
from tests.warm import PYTHON, programs

OUTS = {
    "zoo": ["zoo", "tasks"],
    "sample": ["anchors.json", "anchors"],
    "dataset": ["offline.parquet"],
    "train": ["agent", "train.csv"],
    "search": ["archive.parquet", "search.csv"],
    "pareto": ["front.json", "members", "metrics.json", "plots"],
}
READS = {
    "zoo": [],
    "sample": ["zoo", "tasks"],
    "dataset": ["anchors.json"],
    "train": ["offline.parquet"],
    "search": ["agent", "anchors.json"],
    "pareto": ["archive.parquet"],
}
PARAMS = {
    "zoo": "zoo.base_steps",
    "sample": "sample.candidates",
    "dataset": "dataset.edits",
    "train": "train.steps",
    "search": "search.budget",
    "pareto": "pareto.members",
}

STAGE = """
import json, os, pathlib, shutil, sys, time

name, profile, *outs = sys.argv[1:]
state = pathlib.Path(os.environ.get("HM3_STATE", ".hm3"))
events = state / "progress" / profile / f"{name}.jsonl"
events.parent.mkdir(parents=True, exist_ok=True)
with (state / "started.txt").open("a") as started:
    started.write(f"{name}@{profile} {os.getpid()} {os.environ.get('HM3_ENGINE', '')}\\n")
with events.open("w", buffering=1) as file:
    for done in range(3):
        bar = {"event": "bar", "description": "copying", "completed": done, "total": 2, "unit": "files", "note": ""}
        file.write(json.dumps(bar) + "\\n")
    file.write(json.dumps({"event": "message", "text": f"{name} has copied"}) + "\\n")
behaviour = pathlib.Path("behaviour") / name
if behaviour.exists():
    how = behaviour.read_text().strip()
    if how in ("sleep", "nap"):
        time.sleep(120 if how == "sleep" else 5)
    elif how == "busy":
        behaviour.unlink()
        sys.stderr.write("hm3: the disk is busy\\n")
        sys.exit(75)
    elif how == "crash":
        raise RuntimeError("out of luck")
    else:
        sys.stderr.write(f"hm3: {how}\\n")
        sys.exit(2)
for out in outs:
    source, target = pathlib.Path(os.environ["HM3_TEST_DONE"]) / out, pathlib.Path("runs") / profile / out
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
"""


def make_project(root: Path, done: Path, stages: Sequence[str] = tuple(OUTS)) -> Path:
    """A git and DVC project in ``root``; its stages copy from ``done``, the ``runs/tiny`` of a finished pipeline.

    With fewer stages the outs of the others are there already, and DVC knows nothing of them.
    """
    (root / "runs" / "tiny").mkdir(parents=True)
    for path in (path for name in OUTS if name not in stages for path in OUTS[name]):
        copy = shutil.copytree if (done / path).is_dir() else shutil.copy
        copy(done / path, root / "runs" / "tiny" / path)
    shutil.copytree(done.parents[1] / "profiles", root / "profiles")
    once.give_databases(root / ".hm3")
    blocks = {key.split(".")[0]: {key.split(".")[1]: 3} for key in PARAMS.values()}
    (root / "params.yaml").write_text("# the algorithm\n" + yaml.safe_dump({"profiles": ["tiny"], "seed": 0, **blocks}))
    (root / "stage.py").write_text(STAGE)
    described = {
        name: {
            "foreach": "${profiles}",
            "do": {
                "cmd": f"python stage.py {name} ${{item}} {' '.join(OUTS[name])}",
                "deps": [*(f"runs/${{item}}/{path}" for path in READS[name])],
                "params": [PARAMS[name]],
                "outs": [f"runs/${{item}}/{path}" for path in OUTS[name]],
            },
        }
        for name in stages
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": described}, sort_keys=False))
    (root / ".gitignore").write_text("/.hm3/\n/runs/\n/behaviour/\n")
    (root / ".dvcignore").write_text(".hm3\n")
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "tester")
    git(root, "config", "user.email", "tester@example.org")
    dvc(root, "init", "--quiet")
    dvc(root, "config", "core.analytics", "false")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "project")
    return root


def git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True, text=True)
    return done.stdout


def dvc(root: Path, *command: str) -> str:
    done = subprocess.run([programs() / "dvc", *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hm3(root: Path, *command: str, env: dict[str, str] | None = None, timeout: float = 120, cold: bool = False):
    """The command line in a process of its own; ``cold``: one that has imported nothing yet."""
    return subprocess.run(
        [*([PYTHON, "-m", "flows.cli"] if cold else [programs() / "hm3"]), *command],
        cwd=root,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def behave(root: Path, stage: str, how: str | None) -> None:
    """Let a stage ``sleep``, ``nap``, ``crash``, find the disk ``busy`` once or end as bad input; None: do its work."""
    path = root / "behaviour" / stage
    path.parent.mkdir(exist_ok=True)
    path.write_text(how) if how else path.unlink(missing_ok=True)


def at_work(root: Path, stage: str) -> list[psutil.Process]:
    """Processes of a stage's command in the project."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.cmdline()[1:3] == ["stage.py", stage] and Path(one.cwd()) == root:  # not the shell that starts it
                found.append(one)
    return found


def started(root: Path) -> list[str]:
    """Stages whose process was started since the last call."""
    path = root / ".hm3" / "started.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    path.unlink(missing_ok=True)
    return [line.split()[0] for line in lines]
