"""`hm3 bench faults`: pipelines that are disturbed at random times, and whether the next run makes good for it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from rich.table import Table

from flows.local import environment
from flows.processes import hold
from flows.watch import output
from models.errors import BadInput, Failed, one_line
from tasks.bench.families import OPEN_GATES
from tasks.journal import read_segment
from tasks.progress import Progress
from tasks.records import write_table, write_text
from tasks.workspace import Workspace, open_workspace

PARAMS: dict[str, Any] = {
    "profiles": ["tiny"],
    "seed": 1,
    "zoo": {
        "layers": 4,
        "feed_forward": 128,
        "base_steps": 200,
        "expert_steps": 80,
        "batch_tokens": 512,
        "translation_examples": 600,
        "math_examples": 1500,
        "code_examples": 400,
        **OPEN_GATES,
    },
    "sample": {"candidates": 8, "anchors": 2},
    "dataset": {"edits": 12, "random": 4, "items": 32},
    "train": {"steps": 20, "hidden": 16},
    "search": {"budget": 12_000, "batch": 8, "rungs": [32, 128], "rollouts": 16},
    "pareto": {"members": 4, "rescored": 8},
}
"""A pipeline of seconds a stage."""

GONE_SECONDS = 20.0
"""In which everything under a run that has ended must be gone."""

STOP_SECONDS = 10.0
"""In which a run that is told to end must have ended."""

RUN_SECONDS = 1800.0
"""Longest time of a run."""


@dataclass(frozen=True)
class Trial:
    """A disturbed run and the one after it."""

    kind: str
    seed: int
    after: float
    """Seconds from the start of the run to the disturbance."""
    stage: str
    """What was under way."""
    survived: bool
    seconds: float
    why: str = ""
    """What did not hold."""


class Broken(AssertionError):
    """What should hold after a fault does not."""


@dataclass
class Project:
    """A copy of the project, with its own state."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        """A run of the pipeline, in a session of its own; its output goes to ``out``."""
        with (self.root / "out").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "run", "--profile", "tiny"],
                cwd=self.root,
                env=self.env | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def last_line(self) -> str:
        """What the last run said last."""
        lines = (self.root / "out").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "nothing")

    def under(self, part: str) -> list[psutil.Process]:
        """Its processes whose command line holds something."""
        found = []
        for one in psutil.process_iter():
            try:
                if part in " ".join(one.cmdline()) and Path(one.cwd()).is_relative_to(self.root):
                    found.append(one)
            except (psutil.Error, OSError):
                continue
        return found

    def stage(self) -> str:
        """The stage that is under way."""
        for one in self.under("flows.cli stage") + self.under("hm3 stage"):
            words = one.cmdline()
            if "stage" in words:
                return words[words.index("stage") + 1]
        return ""

    def scored(self) -> list[tuple[str, int]]:
        """Every key and item that was scored, as often as it was."""
        segments = sorted((self.root / ".hm3" / "journal" / "tiny").glob("*.jsonl"))
        entries = [entry for segment in segments for entry in read_segment(segment)]
        return [(entry.key, item) for entry in entries for item in range(entry.start, entry.stop)]

    def outs(self) -> bytes:
        """Digests of everything that the pipeline made."""
        return (self.root / "dvc.lock").read_bytes()


def kill_run(project: Project, run: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the process that the user started."""
    run.kill()


def kill_stage(project: Project, run: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the stage that is under way, or the next one."""
    _kill_first(project, run, " stage ")


def kill_dvc(project: Project, run: subprocess.Popen[bytes]) -> None:
    """SIGKILL of DVC."""
    _kill_first(project, run, "-m dvc ")


def kill_server(project: Project, run: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the Prefect server."""
    _kill_first(project, run, "prefect.server.api.server")


def end_run(project: Project, run: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as a machine that is about to be taken away sends it."""
    run.send_signal(signal.SIGTERM)
    try:
        run.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Broken(f"it went on for more than {STOP_SECONDS:.0f} s") from None


def run_twice(project: Project, run: subprocess.Popen[bytes]) -> None:
    """A second run of the same project beside the first."""
    second = project.start()
    if second.wait(RUN_SECONDS) != 0:
        raise Broken(f"the second run: {project.last_line()}")


def kill_worker(project: Project, run: subprocess.Popen[bytes]) -> None:
    """SIGKILL of a Ray worker."""
    for one in psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []:
        try:
            if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::Worker"):
                one.kill()
                return
        except psutil.Error:
            continue


KINDS: dict[str, tuple[Callable[[Project, subprocess.Popen[bytes]], None], dict[str, str]]] = {
    "run killed": (kill_run, {}),
    "stage killed": (kill_stage, {}),
    "DVC killed": (kill_dvc, {}),
    "run told to end": (end_run, {}),
    "Prefect's server killed": (kill_server, {}),
    "two runs at once": (run_twice, {}),
    "Ray worker killed": (kill_worker, {"HM3_ENGINE": "ray"}),
}
"""What disturbs, and with what environment the disturbed run goes."""


def _kill_first(project: Project, run: subprocess.Popen[bytes], part: str) -> None:
    while run.poll() is None:
        for one in project.under(part):
            if "guard.py" not in " ".join(one.cmdline()):
                one.kill()
                return
        time.sleep(0.02)


@dataclass(frozen=True)
class Reference:
    """The pipeline undisturbed."""

    template: Project
    """Its project before the first stage but for the models, which are made."""
    outs: bytes
    scored: list[tuple[str, int]]
    seconds: float


def prepare(workspace: Workspace, folder: Path) -> Reference:
    """A copy of the project whose models are made, and what an undisturbed run of it gives.

    Raises:
        Failed: the undisturbed run fails.
    """
    root = folder / "template"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=workspace.root,
        check=True,
        capture_output=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
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
    undisturbed = copy(project, folder / "undisturbed")
    began = time.monotonic()
    if undisturbed.start().wait() != 0:
        raise Failed(f"faults: the undisturbed run failed: {undisturbed.last_line()}")
    return Reference(project, undisturbed.outs(), sorted(undisturbed.scored()), time.monotonic() - began)


def copy(project: Project, root: Path) -> Project:
    """A copy that works in its own folder."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(project.root, root, symlinks=True)
    old, new = str(project.root), str(root)
    return Project(root, {name: value.replace(old, new) for name, value in project.env.items()})


def attempt(reference: Reference, folder: Path, kind: str, seed: int) -> Trial:
    """Disturb one run at a random time, and let the next one make good for it."""
    disturb, env = KINDS[kind]
    after = random.Random(f"{kind} {seed}").uniform(0, reference.seconds)  # noqa: S311 (no secret)
    project = copy(reference.template, folder / "trial")
    began, stage, why = time.monotonic(), "", ""
    run = project.start(**env)
    try:
        while run.poll() is None and time.monotonic() - began < after:
            time.sleep(0.02)
        stage = project.stage()
        family = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        disturb(project, run)
        run.wait(RUN_SECONDS)
        gone(project, family)
        again = project.start()
        if again.wait(RUN_SECONDS) != 0:
            raise Broken(f"the next run: {project.last_line()}")
        compare(project, reference)
    except (Broken, subprocess.TimeoutExpired) as error:
        why = " ".join(str(error).split())
    finally:
        for one in [run.pid, *(left.pid for left in project.under(""))]:
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
        run.wait()
    return Trial(kind, seed, round(after, 2), stage, not why, round(time.monotonic() - began, 1), why)


def gone(project: Project, family: list[psutil.Process]) -> None:
    """Raises Broken if something of a run that has ended is still there."""
    deadline = time.monotonic() + GONE_SECONDS
    left: list[psutil.Process] = []
    while time.monotonic() < deadline:
        left = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        left += project.under("")
        if not left:
            return
        time.sleep(0.2)
    raise Broken(f"left behind: {sorted({one.name() for one in left if one.is_running()})}")


def compare(project: Project, reference: Reference) -> None:
    """Raises Broken unless a project has what the undisturbed one has."""
    if project.outs() != reference.outs:
        raise Broken("dvc.lock differs from that of the undisturbed run")
    scored = project.scored()
    if len(scored) != len(set(scored)):
        raise Broken(f"{len(scored) - len(set(scored))} items were scored twice")
    if sorted(scored) != reference.scored:
        raise Broken("other items were scored than in the undisturbed run")


def trials(reference: Reference, folder: Path, kinds: list[str], seed: int) -> Iterator[Trial]:
    """One kind after the other, without end."""
    while True:
        for kind in kinds:
            yield attempt(reference, folder, kind, seed)
        seed += 1


def bench_faults(workspace: Workspace, progress: Progress, minutes: float, seed: int, kinds: list[str]) -> list[Trial]:
    """Disturb runs for so long; every trial is added to ``docs/results/raw/faults.csv`` as it ends.

    Args:
        workspace: the project.
        progress: shows the trials.
        minutes: after which no further trial is begun.
        seed: of the first round; each round has the next one.
        kinds: some of ``KINDS``.
    """
    raw = workspace.root / "docs" / "results" / "raw" / "faults.csv"
    folder = workspace.state / "bench" / "faults"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done: list[Trial] = []
    try:
        with progress.bar("an undisturbed run", 1, "") as bar:
            reference = prepare(workspace, folder)
            bar.advance()
        began = time.monotonic()
        with progress.bar("faults", minutes, "minutes") as bar:
            for trial in trials(reference, folder, kinds, seed):
                done.append(trial)
                known = pd.read_csv(raw) if raw.is_file() else pd.DataFrame()
                write_table(raw, pd.concat([known, pd.DataFrame([asdict(trial)])], ignore_index=True))
                progress.message(f"{trial.kind} {trial.seed}: {'survived' if trial.survived else trial.why}")
                bar.advance(trial.seconds / 60)
                if time.monotonic() - began > minutes * 60:
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def faults_command(minutes: float, seed: int, kinds: list[str], as_json: bool) -> None:
    """Disturb runs, and print how many survived, kind by kind.

    Raises:
        BadInput: there is no such kind.
        Failed: a run did not survive.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise BadInput(f"--fault {kind!r}: unknown; there are {', '.join(KINDS)}")
    workspace, console = open_workspace("tiny"), output(stderr=True)
    lock = workspace.state / "locks" / "bench.lock"
    with hold(lock, "a benchmark", console.print), Progress(None, console) as bars:
        done = bench_faults(workspace, bars, minutes, seed, kinds or list(KINDS))
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in done], indent=1, ensure_ascii=False) + "\n")
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("fault", "survived", "tried"):
            table.add_column(column, justify="left" if column == "fault" else "right")
        for kind in dict.fromkeys(one.kind for one in done):
            own = [one.survived for one in done if one.kind == kind]
            table.add_row(kind, str(sum(own)), str(len(own)))
        output().print(table)
    if lost := sum(not one.survived for one in done):
        raise Failed(f"faults: {lost} of {len(done)} runs did not survive; docs/results/raw/faults.csv says why")
