"""The stages as DVC sees them: their graph, what changed, and running one of them.

DVC runs in processes of its own: it starts threads and changes the working directory, and two of its commands can
then never disturb each other. ``python -m flows.versions.reproduce ROOT PROFILE`` prints the stages as JSON. With -P:
folders of the user's project, such as ``models/``, must not hide ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from flows.processes.children import Guarded
from flows.processes.retry import TRY_AGAIN
from flows.servers.local import environment
from flows.versions.mend import keep_lock, mend
from models.errors import BadInput, Failed, Unavailable, one_line
from tasks.project.processes import OWNER
from tasks.project.workspace import Workspace
from tasks.scoring.where import ENGINE, engine_name


@dataclass(frozen=True)
class Stage:
    """A stage of one profile."""

    name: str
    """DVC's name, such as ``search@tiny``."""
    parents: tuple[str, ...]
    """Stages whose outs it reads."""
    changes: tuple[str, ...]
    """What `dvc status` says has changed, in words; empty where nothing has."""

    @property
    def title(self) -> str:
        """The name without the profile."""
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Plan:
    """The stages of a profile in the order in which they can run."""

    stages: tuple[Stage, ...]

    @property
    def stale(self) -> frozenset[str]:
        """Stages that changed, and all below them, whose inputs may change."""
        found: set[str] = set()
        for stage in self.stages:
            if stage.changes or found.intersection(stage.parents):
                found.add(stage.name)
        return frozenset(found)


def ask(workspace: Workspace) -> subprocess.Popen[str]:
    """Ask DVC for the graph and status of a profile, in a process that :func:`plan` waits for."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.versions.reproduce", str(workspace.root), workspace.name],
        cwd=workspace.root,
        env=environment(workspace.state),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def plan(asked: subprocess.Popen[str], profile: str) -> Plan:
    """The stages of a profile and what changed: the answer to :func:`ask`.

    Raises:
        BadInput: DVC refuses dvc.yaml or the folder, or knows no stage of the profile.
    """
    output, errors = asked.communicate()
    if asked.returncode != 0:
        reason = next((line for line in reversed(errors.splitlines()) if line.strip()), "no reason given")
        raise BadInput(f"dvc.yaml: {reason.strip()}")
    stages = [Stage(one["name"], tuple(one["parents"]), tuple(one["changes"])) for one in json.loads(output)]
    if not stages:
        raise BadInput(f"params.yaml: profiles: {profile!r} is not listed, so dvc.yaml has no stages for it; add it")
    return Plan(tuple(stages))


def inspect(root: str, profile: str) -> list[Stage]:
    """Stages of a profile from DVC's own graph, in topological order, each with its status."""
    from dvc.repo import Repo

    with Repo(root, _wait_for_lock=True) as repo:
        mend(repo)
        graph = repo.index.graph  # an edge leads from a stage to one that it depends on
        parents = {
            one.addressing: tuple(sorted(parent.addressing for parent in graph.successors(one)))
            for one in graph
            if one.addressing.endswith(f"@{profile}")
        }
        order = [name for name in TopologicalSorter(parents).static_order() if name in parents]
        status = repo.status(targets=order) if order else {}
        return [Stage(name, parents[name], tuple(describe(status.get(name, [])))) for name in order]


def describe(status: Sequence[Any]) -> list[str]:
    """`dvc status` of a stage in words, such as ``params.yaml: search.budget modified``."""
    changed: list[str] = []
    lost: list[str] = []
    for entry in status:
        if isinstance(entry, str):  # "changed command", "always changed"
            changed.append(entry)
            continue
        for kind, paths in entry.items():
            for path, how in paths.items():
                if kind == "changed outs" and how in ("deleted", "not in cache"):
                    lost.append(path)
                elif isinstance(how, dict):
                    changed += [f"{path}: {key} {what}" for key, what in how.items()]
                else:
                    changed.append(f"{path} {how}")
    return [f"no {path} yet" for path in lost] or changed


def start_stage(workspace: Workspace, stage: str, log: Path, *, force: bool) -> Guarded:
    """Let DVC reproduce one stage, without those before it; its output goes to ``log``, its end comes with ours."""
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    env = environment(workspace.state) | {OWNER: str(os.getpid()), ENGINE: engine_name(workspace.engine)}
    keep_lock(workspace.root)
    return Guarded([*command, *(["--force"] if force else [])], cwd=workspace.root, env=env, log=log)


def outcome(stage: str, status: int, log: Path) -> str:
    """What DVC did: ``ran``, ``restored`` from its cache of runs, or ``unchanged``.

    Raises:
        BadInput: the stage's command exited with 2; the message is its own.
        Unavailable: a disk or a network did not answer; another try may help.
        Failed: it failed otherwise.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if status == 0:
        if any(f"'{stage}' is cached - skipping run" in line for line in lines):
            return "restored"
        return "unchanged" if any(f"'{stage}' didn't change" in line for line in lines) else "ran"
    said = [line.removeprefix("hm3: ") for line in lines if line.startswith("hm3: ")]
    if absent := re.search(r"Parameters '(.+)' are missing from 'params.yaml'", "\n".join(lines[-5:])):
        block = absent[1].split("', '")[0].split(", ")[0]
        raise BadInput(f"params.yaml: {block}: missing; add it, `{block}: {{}}` takes every default")
    exited = re.search(r"exited with (-?\d+)\s*$", "\n".join(lines[-5:]), re.MULTILINE)
    if not said:
        reasons = [line.strip() for line in lines if line.strip() and not line.startswith("ERROR: failed to reproduce")]
        said = [reasons[-1] if reasons else f"dvc exited with {status}"]
    if exited and int(exited[1]) == 2:
        raise BadInput(said[-1])
    if exited and int(exited[1]) == TRY_AGAIN:
        raise Unavailable(f"{stage}: {said[-1]}; see {log}")
    raise Failed(f"{stage}: {said[-1].removeprefix('ERROR: ')}; see {log}")


def main() -> None:
    """Print the plan for ``ROOT PROFILE``, or on stderr one line that says why there is none."""
    from dvc.exceptions import DvcException

    try:
        stages = inspect(*sys.argv[1:3])
    except DvcException as error:
        sys.exit(one_line(error))
    sys.stdout.write(json.dumps([asdict(stage) for stage in stages]))


if __name__ == "__main__":
    main()
