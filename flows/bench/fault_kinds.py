"""What can happen to a run: processes that are killed or told to end, and a copy of the project to which it happens."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from flows.bench.fault_servers import Server
from flows.processes.children import command_line
from flows.versions.mend import is_whole
from tasks.scoring.journal import read_segment

STOP_SECONDS = 10.0
"""In which a run that is told to end must have ended."""

STAGES = ("sample", "dataset", "train", "search", "pareto")
"""Behind `zoo`, which makes the models and is done before."""

START = "start"
"""What is under way before the first stage: servers and the look at the project."""

RUN_SECONDS = 1800.0
"""Longest time of a run."""


STALL_SECONDS = 20.0
"""For which a bucket does not answer."""


class Broken(AssertionError):
    """What should hold after a fault does not."""


@dataclass
class Project:
    """A copy of the project, with its own state."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    origin: Path | None = None
    """The folder that it is a copy of."""
    servers: dict[str, Server] = field(default_factory=dict)
    """That its runs use, by their names in :mod:`flows.bench.fault_servers`."""

    def copy(self, root: Path) -> Project:
        """A copy that works in its own folder."""
        old, new = str(self.root), str(root)
        made = Project(root, {name: value.replace(old, new) for name, value in self.env.items()}, self.root)
        made.renew()
        return made

    def renew(self) -> None:
        """What it was copied from again, and nothing that it has done since."""
        if self.origin is None:
            raise ValueError(f"{self.root}: not a copy")
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.origin, self.root, symlinks=True)

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

    def said(self) -> str:
        """What its runs have said."""
        out = self.root / "out"
        return out.read_text(encoding="utf-8", errors="replace") if out.is_file() else ""

    def last_line(self) -> str:
        """What the last run said last."""
        return next((line for line in reversed(self.said().splitlines()) if line.strip()), "nothing")

    def under(self, part: str) -> list[psutil.Process]:
        """Its processes whose command line holds something."""
        found = []
        for one in psutil.process_iter():
            try:
                if part in " ".join(command_line(one)) and Path(one.cwd()).is_relative_to(self.root):
                    found.append(one)
            except (psutil.Error, OSError):
                continue
        return found

    def stage(self) -> str:
        """The stage that is under way."""
        for one in self.under("flows.cli stage") + self.under("hm3 stage"):
            words = command_line(one)
            if "stage" in words:
                return words[words.index("stage") + 1]
        return ""

    def left(self) -> list[str]:
        """The stages that are not done; all, where a killed DVC has left half a ``dvc.lock``."""
        if not is_whole(self.root / "dvc.lock"):
            return list(STAGES)
        done = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        return [stage for stage in STAGES if f"{stage}@tiny" not in done]

    def scored(self) -> list[tuple[str, int]]:
        """Every key and item that was scored, as often as it was."""
        segments = sorted((self.root / ".hm3" / "journal" / "tiny").glob("*.jsonl"))
        entries = [entry for segment in segments for entry in read_segment(segment)]
        return [(entry.key, item) for entry in entries for item in range(entry.start, entry.stop)]

    def outs(self) -> bytes:
        """Digests of everything that the pipeline made."""
        return (self.root / "dvc.lock").read_bytes()


def killed(process: psutil.Process) -> bool:
    """SIGKILL of a process; False if it has ended of itself."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def kill_run(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGKILL of the process that the user started."""
    run.kill()
    return True


def kill_stage(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGKILL of the stage that is under way, or the next one."""
    return _kill_first(project, run, " stage ")


def kill_dvc(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGKILL of DVC."""
    return _kill_first(project, run, "-m dvc ")


def kill_server(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGKILL of the Prefect server."""
    return _kill_first(project, run, "flows.servers.gate:prefect")


def end_run(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGTERM, as a machine that is about to be taken away sends it."""
    run.send_signal(signal.SIGTERM)
    try:
        run.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Broken(f"it went on for more than {STOP_SECONDS:.0f} s") from None
    return True


def run_twice(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """A second run of the same project beside the first."""
    second = project.start()
    if second.wait(RUN_SECONDS) != 0:
        raise Broken(f"the second run: {project.last_line()}")
    return True


def kill_worker(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGKILL of a Ray worker, or of the next one."""
    while run.poll() is None:
        for one in psutil.Process(run.pid).children(recursive=True):
            if "".join(command_line(one)[:1]).startswith("ray::Worker") and killed(one):
                return True
        time.sleep(0.02)
    return False


def kill_tracking(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """SIGKILL of MLflow's server, which is back for the next run."""
    project.servers["tracking"].kill()
    return True


def stall_bucket(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """The bucket of the state does not answer for a while."""
    project.servers["bucket"].send(signal.SIGSTOP)
    time.sleep(STALL_SECONDS)
    project.servers["bucket"].send(signal.SIGCONT)
    return True


def take_machine(project: Project, run: subprocess.Popen[bytes]) -> bool:
    """Every process and the whole folder are gone; another clone has nothing but the models and the state's bucket."""
    under = [*psutil.Process(run.pid).children(recursive=True), *project.under("")]
    for one in under:
        killed(one)
    run.wait()
    psutil.wait_procs([one for one in under if one.pid != run.pid])
    project.renew()
    return True


@dataclass(frozen=True)
class Kind:
    """Something that happens to a run."""

    disturb: Callable[[Project, subprocess.Popen[bytes]], bool]
    """False if the run has ended before it could happen."""
    env: dict[str, str] = field(default_factory=dict)
    """Of the run."""
    server: str = ""
    """Of :mod:`flows.bench.fault_servers`, that the trial's runs use."""


KINDS = {
    "run killed": Kind(kill_run),
    "stage killed": Kind(kill_stage),
    "DVC killed": Kind(kill_dvc),
    "run told to end": Kind(end_run),
    "Prefect's server killed": Kind(kill_server),
    "two runs at once": Kind(run_twice),
    "Ray worker killed": Kind(kill_worker, {"HM3_ENGINE": "ray"}),
    "MLflow's server killed": Kind(kill_tracking, server="tracking"),
    "bucket stalls": Kind(stall_bucket, server="bucket"),
    "machine taken away": Kind(take_machine, server="bucket"),
}
"""What disturbs, by name."""


def _kill_first(project: Project, run: subprocess.Popen[bytes], part: str) -> bool:
    while run.poll() is None:
        for one in project.under(part):
            if "guard.py" not in " ".join(command_line(one)) and killed(one):
                return True
        time.sleep(0.02)
    return False
