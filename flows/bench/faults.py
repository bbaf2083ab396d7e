"""`hm3 bench faults`: pipelines that are disturbed at random times, and whether the next run makes good for it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

from flows.bench.fault_kinds import KINDS, RUN_SECONDS, STAGES, START, Broken, Project, killed
from flows.bench.fault_page import rows_path, sheet, texts
from flows.bench.fault_servers import Servers, has_moto
from flows.commands.options import emit
from flows.processes.children import command_line, hold
from flows.screen.watch import output, shown
from flows.servers.local import environment
from models.errors import BadInput, Failed, one_line
from tasks.bench.engine.families import OPEN_GATES
from tasks.bench.markdown import write_pages
from tasks.bench.setup import describe_setup
from tasks.project.git import demand
from tasks.project.processes import is_alive
from tasks.project.progress import Progress
from tasks.project.records import write_table, write_text
from tasks.project.workspace import Workspace, open_workspace

PARAMS: dict[str, Any] = {
    "profiles": ["tiny"],
    "seed": 1,
    "zoo": {
        "layers": 4,
        "feed_forward": 128,
        "base_steps": 140,
        "expert_steps": 60,
        "batch_tokens": 512,
        "translation_examples": 600,
        "math_examples": 1500,
        "code_examples": 400,
        **OPEN_GATES,
    },
    "sample": {"anchors": 2},
    "dataset": {"edits": 12, "random": 4, "items": 32},
    "train": {"steps": 20},
    "search": {"budget": 12_000, "batch": 8, "rungs": [32, 128]},
    "pareto": {"members": 4, "rescored": 8},
}
"""A pipeline of seconds a stage."""

FAULTS = 6
"""Runs of one project that are disturbed at most, one after the other, before one is let through."""

SHARE = 0.6
"""Of the time that a stage took undisturbed: faults come within it, so that few find that it has ended."""

LOOK_SECONDS = 0.1
"""Between two looks at which stage is under way."""

GONE_SECONDS = 20.0
"""In which everything under a run that has ended must be gone."""


@dataclass(frozen=True)
class Fault:
    """One disturbed run."""

    kind: str
    seed: int
    """Of the trial to which it belongs: one project that is disturbed several times and then let through."""
    stage: str
    """In which it came, or ``start``."""
    after: float
    """Seconds from the beginning of that to the disturbance."""


@dataclass(frozen=True)
class Trial:
    """Disturbed runs and the one that had to make good for them."""

    faults: tuple[Fault, ...]
    """Those that came while a run was under way; the others count for nothing."""
    seconds: float
    why: str
    """What did not hold; empty if everything did."""

    def rows(self) -> list[dict[str, Any]]:
        """A row for each fault."""
        about = {"survived": not self.why, "seconds": self.seconds, "why": self.why}
        return [asdict(one) | about for one in self.faults]


@dataclass(frozen=True)
class Reference:
    """The pipeline undisturbed."""

    template: Project
    """Its project before the first stage but for the models, which are made."""
    outs: bytes
    scored: list[tuple[str, int]]
    seconds: dict[str, float]
    """That the start and each stage took."""


def prepare(workspace: Workspace, folder: Path) -> Reference:
    """A copy of the project whose models are made, and what an undisturbed run of it gives.

    Raises:
        Failed: the undisturbed run fails.
    """
    root = folder / "template"
    listed = demand(workspace.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("docs/", "tests/", "infra/")) and (workspace.root / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(workspace.root / name, root / name)
    write_text(root / "params.yaml", yaml.safe_dump(PARAMS))
    (root / "dvc.lock").unlink(missing_ok=True)
    unset = ("HM3_STATE", "HM3_ENGINE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    env = environment(root / ".hm3") | {"HM3_STATE": str(root / ".hm3"), "PYTHONPATH": str(root)}
    project = Project(root, {name: value for name, value in env.items() if name not in unset})
    for command in (
        ["git", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=hm3", "-c", "user.email=hm3@localhost", "commit", "--quiet", "--message", "project"],
        [sys.executable, "-m", "dvc", "repro", "--single-item", "zoo@tiny"],
    ):
        done = subprocess.run(command, cwd=root, env=project.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"faults: {' '.join(command[:3])}: {one_line(done.stderr[-300:])}")
    undisturbed = project.copy(folder / "undisturbed")
    run, seconds, under_way = undisturbed.start(), dict.fromkeys((START, *STAGES), 0.0), START
    while run.poll() is None:
        time.sleep(LOOK_SECONDS)
        under_way = undisturbed.stage() or under_way
        seconds[under_way] += LOOK_SECONDS
    if run.wait() != 0:
        raise Failed(f"faults: the undisturbed run failed: {undisturbed.last_line()}")
    return Reference(project, undisturbed.outs(), sorted(undisturbed.scored()), seconds)


def attempt(reference: Reference, folder: Path, kinds: Sequence[str], seed: int) -> Trial:
    """Disturb runs of one project at random times until one ends well, and let the next one make good for them.

    Args:
        reference: the undisturbed pipeline.
        folder: where to work.
        kinds: of ``KINDS``, one a run.
        seed: of the times.
    """
    rng = random.Random(seed)  # noqa: S311 (no secret)
    project, faults, why, began = reference.template.copy(folder / "trial"), [], "", time.monotonic()
    needed = {KINDS[kind].server for kind in kinds} - {""}
    shutil.rmtree(folder / "servers", ignore_errors=True)
    try:
        with Servers(needed, folder / "servers") as servers:
            project.env, project.servers = project.env | servers.env, servers.running
            for kind in kinds:
                servers.mend()
                stage = rng.choice([START, *project.left()])
                after = rng.uniform(0, SHARE * reference.seconds[stage])
                hit, ended = disturbed(project, kind, stage, after)
                if hit:
                    faults.append(Fault(kind, seed, stage, round(after, 2)))
                if ended:
                    break
            servers.mend()
            complete(project)
            compare(project, reference)
    except (Broken, subprocess.TimeoutExpired) as error:
        why = one_line(error)
        for one in project.under(""):
            killed(one)
    return Trial(tuple(faults), round(time.monotonic() - began, 1), why)


def disturbed(project: Project, kind: str, stage: str, after: float) -> tuple[bool, bool]:
    """Start a run, disturb it so many seconds after the beginning of a stage, and wait for its end.

    Returns:
        Whether it was still under way then, and whether it has ended well.

    Raises:
        Broken: it goes on for too long, or something of it is left behind.
    """
    run, family, hit = project.start(**KINDS[kind].env), [], False
    try:
        while run.poll() is None and stage not in (START, project.stage()):
            time.sleep(LOOK_SECONDS)
        began = time.monotonic()
        while run.poll() is None and time.monotonic() - began < after:
            time.sleep(0.02)
        if run.poll() is None:
            family = psutil.Process(run.pid).children(recursive=True)
            hit = KINDS[kind].disturb(project, run)
        ended = run.wait(RUN_SECONDS) == 0
    finally:
        run.kill()
        run.wait()
    gone(project, family)
    return hit, ended


def complete(project: Project) -> None:
    """Raises Broken unless the next run ends well, and takes every finished stage as it is."""
    finished, before = set(STAGES) - set(project.left()), len(project.said())
    if project.start().wait(RUN_SECONDS) != 0:
        raise Broken(f"the next run: {project.last_line()}")
    said = project.said()[before:]
    if again := sorted(stage for stage in finished if f"{stage}@tiny: cached" not in said):
        raise Broken(f"finished stages were run again: {', '.join(again)}")


def gone(project: Project, family: list[psutil.Process]) -> None:
    """Raises Broken if something of a run that has ended is still there."""
    deadline = time.monotonic() + GONE_SECONDS
    left: list[psutil.Process] = []
    while time.monotonic() < deadline:
        left = [one for one in (*family, *project.under("")) if one.is_running() and is_alive(one.pid)]
        if not left:
            return
        time.sleep(0.2)
    raise Broken(f"left behind: {'; '.join(sorted({' '.join(command_line(one)) for one in left}))}")


def compare(project: Project, reference: Reference) -> None:
    """Raises Broken unless a project has what the undisturbed one has."""
    if project.outs() != reference.outs:
        raise Broken("dvc.lock differs from that of the undisturbed run")
    scored = project.scored()
    if len(scored) != len(set(scored)):
        raise Broken(f"{len(scored) - len(set(scored))} items were scored twice")
    if sorted(scored) != reference.scored:
        raise Broken("other items were scored than in the undisturbed run")


def trials(reference: Reference, folder: Path, kinds: Sequence[str], seed: int) -> Iterator[Trial]:
    """Trials without end, each of random kinds."""
    while True:
        drawn = random.Random(f"kinds {seed}").choices(kinds, k=FAULTS)  # noqa: S311 (no secret)
        yield attempt(reference, folder, drawn, seed)
        seed += 1


def disturb(workspace: Workspace, progress: Progress, minutes: float, seed: int, kinds: Sequence[str]) -> list[Trial]:
    """Disturb runs for so long; rows and page of ``docs/results`` have every trial as it ends.

    Args:
        workspace: the project.
        progress: shows the trials.
        minutes: after which no further trial is begun.
        seed: of the first trial; each has the next one.
        kinds: some of ``KINDS``.
    """
    results = workspace.root / "docs" / "results"
    raw = rows_path(results)
    folder = workspace.state / "bench" / "faults"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done: list[Trial] = []
    setup = describe_setup(workspace.root, seed).about()
    try:
        with progress.bar("an undisturbed run", 1, "") as bar:
            reference = prepare(workspace, folder)
            bar.advance()
        began = time.monotonic()
        with progress.bar("faults", minutes, "minutes") as bar:
            for trial in trials(reference, folder, kinds, seed):
                if not (trial.faults or trial.why):  # every run had ended before it was disturbed
                    continue
                done.append(trial)
                known = pd.read_csv(raw) if raw.is_file() else pd.DataFrame()
                rows = pd.DataFrame([one | setup for one in trial.rows()])
                write_table(raw, pd.concat([known, rows], ignore_index=True))
                write_pages(results, texts(results))
                named = ", ".join(f"{one.kind} in {one.stage}" for one in trial.faults)
                progress.message(f"{named}: {trial.why or 'survived'}")
                bar.advance(trial.seconds / 60)
                if time.monotonic() - began > minutes * 60:
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def bench_faults(minutes: float, seed: int, kinds: list[str], as_json: bool) -> None:
    """Disturb runs, and print how many faults were survived, kind by kind.

    Raises:
        BadInput: there is no such kind.
        Failed: a run did not survive.
    """
    without = [] if has_moto() else [name for name, one in KINDS.items() if one.server == "bucket"]
    for kind in kinds:
        if kind not in KINDS:
            raise BadInput(f"--fault {kind!r}: unknown; there are {', '.join(KINDS)}")
        if kind in without:
            raise BadInput(f"--fault {kind!r}: needs a bucket on this machine; run: pip install 'moto[s3,server]'")
    workspace, console = open_workspace("tiny"), output(stderr=True)
    if without and not kinds:
        console.print(f"not tried, for want of the package moto[s3,server]: {', '.join(without)}")
    lock = workspace.state / "locks" / "bench.lock"
    with hold(lock, "a benchmark", console.print), shown(console) as bars:
        done = disturb(workspace, bars, minutes, seed, kinds or [name for name in KINDS if name not in without])
    rows = [row for one in done for row in one.rows()]
    if as_json:
        emit(rows)
    else:
        output().print(sheet(rows).rich())
    if lost := sum(bool(one.why) for one in done):
        raise Failed(f"faults: {lost} of {len(done)} trials were not survived; docs/results/faults.md says why")
