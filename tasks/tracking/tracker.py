"""Experiment tracking in MLflow: a parent run a pipeline run, nested in it a run a stage.

Stages are processes of their own that DVC starts; they know nothing of MLflow. Whoever walks the pipeline tells the
:class:`Tracker` when a stage begins and ends, and it reads the rest from what the stage wrote. Runs are always named by
id: an active run, or ``MLFLOW_RUN_ID`` handed to a child process, would nest them wrongly.
"""

from __future__ import annotations

import getpass
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.errors import BadInput, without_secrets
from tasks.front.front import Front
from tasks.front.table import markdown
from tasks.project.git import git_tags
from tasks.project.records import read_json, write_text
from tasks.project.workspace import Workspace
from tasks.report.figures import of_front, of_stage
from tasks.report.style import save_png
from tasks.tracking.messages import Message, described, send
from tasks.tracking.mlflow import (
    connect,
    is_away,
    mlflow_errors,
    open_experiment,
    said_of,
    settle_environment,
    tracking_uri,
)
from tasks.tracking.record import Out, Point, StageLock, data_versions, parameters, read_lock, stage_points
from tasks.tracking.spool import PREFIX, spool_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

Status = Literal["ran", "cached", "failed"]
Outcome = Literal["finished", "failed", "killed"]

SYSTEM_METRICS_SECONDS = 5.0
"""Time between two samples of processor, memory, disk and network while a stage runs."""

PARENT_METRICS = ("search", "pareto")
"""Stages whose metrics the pipeline's run carries as well, so that pipeline runs can be compared with each other."""


class Tracker:
    """The MLflow side of one pipeline run.

    When MLflow does not answer, it says so once and keeps everything in the state folder; what is kept is sent when a
    stage or a run ends, or the next run begins, while MLflow answers. Where MLflow refuses, tracking stops: computing
    goes on.

    Args:
        workspace: project and profile.
        warn: gets the lines that say why MLflow has not got everything, and that it has got it later.
    """

    def __init__(self, workspace: Workspace, warn: Callable[[str], None]):
        settle_environment()
        self.workspace = workspace
        self.stopped = False
        """Whether MLflow refused what it was told."""
        self.away = False
        """Whether MLflow did not answer, so that all is kept."""
        self.spool = spool_of(workspace)
        self._warn = warn
        self._lock = threading.Lock()
        self._connection: MlflowClient | None = None
        self._experiment = ""
        self._run = ""
        self._open: dict[str, str] = {}
        self._monitors: dict[str, Any] = {}

    @property
    def run_id(self) -> str | None:
        """Id of the pipeline's run in MLflow, once that knows it."""
        run = self.spool.id_of(self._run)
        return None if not run or run.startswith(PREFIX) else run

    @property
    def url(self) -> str | None:
        """Page of the pipeline's run, where a server shows it; without what the user logs in with."""
        if self.run_id is None or self._connection is None or not self._connection.tracking_uri.startswith("http"):
            return None
        server = without_secrets(self._connection.tracking_uri).rstrip("/")
        return f"{server}/#/experiments/{self._experiment}/runs/{self.run_id}"

    def prepare(self) -> None:
        """Import, connect, open the experiment: about ten seconds the first time. May be called in a thread, early."""
        with self._lock:
            if self._connection is None and not self.stopped and not self.away:
                self._connect()

    def start(self, name: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Open the pipeline's run, for which MLflow may invent a name; those that a killed process left are closed."""
        self.prepare()
        if not self.away:
            self.deliver()
        source = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "hm3 run", "mlflow.source.type": "LOCAL"}
        every = {**source, **git_tags(self.workspace.root), "profile": self.workspace.name, **(tags or {})}
        if left := self._close_interrupted():
            every["resumes"] = self.spool.id_of(left)
        self._run = self._create(name, every, "pipeline")
        self._values(self._run, parameters(self.workspace))

    def begin_stage(self, stage: str) -> None:
        """Open a stage's run before it starts, so that system metrics are sampled while it runs."""
        run = self._create_stage(stage, time.time())
        if run and not self.away and self._connection is not None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            uri = self._connection.tracking_uri
            monitor = SystemMetricsMonitor(run, SYSTEM_METRICS_SECONDS, tracking_uri=uri)
            monitor.start()
            self._monitors[stage] = monitor

    def end_stage(self, stage: str, status: Status, seconds: float) -> None:
        """Record a stage that is done, was cached or failed; opens its run if :meth:`begin_stage` did not."""
        if monitor := self._monitors.pop(stage, None):
            monitor.finish()
        opened = next((run for run, name in self._open.items() if name == stage), None)
        run = opened or self._create_stage(stage, time.time() - seconds)
        lock = read_lock(self.workspace).get(stage, StageLock())
        tags: dict[str, str] = {"stage.status": status}
        points: list[Point] = []
        if status != "failed":
            points = stage_points(self.workspace, stage)
            tags |= {f"dvc.{out.path}": out.md5 for out in lock.outs}
            self._data(run, lock.deps)
        if status == "ran":
            self._figures(run, of_stage(self.workspace, stage))
        self._values(run, parameters(self.workspace, stage), [*points, ("seconds", seconds, 0)], tags)
        if self._run and stage in PARENT_METRICS:
            self._values(self._run, points=points)
        self._close(run, "FAILED" if status == "failed" else "FINISHED")
        if self.away:
            self.deliver()

    def finish(self, outcome: Outcome, seconds: float, artifacts: Sequence[Path] = ()) -> None:
        """Close the pipeline's run, and keep files with it, such as the report and ``front.json``."""
        if not self._run:
            return
        outs = tuple(out for lock in read_lock(self.workspace).values() for out in lock.outs)
        self._values(self._run, points=[("seconds", seconds, 0)], tags={f"dvc.{out.path}": out.md5 for out in outs})
        if outcome == "finished":
            self._data(self._run, outs)
            self._figures(self._run, of_front(self.workspace), beside_each_other=True)
            front = Front.read(self.workspace.run)
            self._values(self._run, tags={"mlflow.note.content": markdown(front, front.splits[-1])})
            self._files(self._run, self.workspace.run / "plots", "plots")
            for path in artifacts:
                self._files(self._run, path)
        for run in [one for one in self._open if one != self._run]:
            self._close(run, "KILLED")
        self._close(self._run, {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}[outcome])
        self.deliver()

    def deliver(self) -> None:
        """Send what was kept while MLflow did not answer, if it answers now; else everything is kept."""
        with self._lock:
            if self.stopped:
                return
            if self._connection is None or self.away:
                self._connect()
            if self._connection is None or self.away:
                return
            try:
                sent, refused = self.spool.deliver(self._connection, self._experiment)
            except foreign() as error:
                self._lose(error)
                return
        if sent or refused:
            lost = f"; it refused {len(refused)}: {refused[0]}" if refused else ""
            self._warn(f"MLflow has got the {sent} messages that were kept while it did not answer{lost}")

    def _connect(self) -> None:
        try:
            client = self._connection or connect(self.workspace.state)
            self._experiment = open_experiment(client, self.workspace)
            self._connection, self.away = client, False
        except foreign() as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """MLflow did not answer, or refused: say so once."""
        at = without_secrets(f"MLflow at {tracking_uri(self.workspace.state)}: {said_of(error)}")
        if isinstance(error, BadInput) or not is_away(error):
            if not self.stopped:
                self._warn(f"{at}; this run is not tracked any further, `hm3 publish` sends its front later")
            self.stopped = True
            return
        if not self.away:
            self._warn(f"{at}; what it should know is kept, and sent when a run begins or ends while it answers")
        self.away = True

    def _say(self, message: Message, files: Path | None = None) -> str:
        """Tell MLflow, or keep it; the id of the run, empty where tracking has stopped."""
        self.prepare()
        if self.stopped:
            return ""
        if not self.away and self._connection is not None:
            try:
                known = replace(message, run=self.spool.id_of(message.run))
                return send(self._connection, self._experiment, known, files)
            except foreign() as error:
                self._lose(error)
        return "" if self.stopped else self.spool.keep(message, files)

    def _create(self, name: str | None, tags: Mapping[str, str], what: str, started: float | None = None) -> str:
        when = int((time.time() if started is None else started) * 1000)
        run = self._say(Message("create", "", {"name": name, "tags": dict(tags)}, when))
        if run:
            self._open[run] = what
            write_text(self._open_runs, json.dumps(self._open))
        return run

    def _create_stage(self, stage: str, started: float) -> str:
        tags = {"stage": stage, "profile": self.workspace.name}
        if self._run:
            tags["mlflow.parentRunId"] = self.spool.id_of(self._run)
        return self._create(stage, tags, stage, started)

    def _values(
        self, run: str, params: Mapping[str, str] | None = None, points: Sequence[Point] = (), tags: Any = None
    ) -> None:
        if run:
            self._say(Message("values", run, {"params": params or {}, "points": list(points), "tags": tags or {}}))

    def _data(self, run: str, outs: tuple[Out, ...]) -> None:
        versions = data_versions(self.workspace, outs)
        if run and versions:
            self._say(Message("data", run, {"versions": described(versions)}))

    def _figures(self, run: str, figures: Mapping[str, Figure], *, beside_each_other: bool = False) -> None:
        """Figures as PNG under ``plots/``, and if wanted as images that MLflow shows for several runs at once."""
        if not (run and figures):
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, figure in figures.items():
                file = Path(folder) / f"{name}.png"
                save_png(figure, file)
                if beside_each_other:
                    self._say(Message("image", run, {"key": name}), file)
            self._files(run, Path(folder), "plots")

    def _files(self, run: str, files: Path, to: str | None = None) -> None:
        if run:
            self._say(Message("files", run, {"to": to}), files)

    def _close(self, run: str, status: str) -> None:
        if not run:
            return
        self._say(Message("end", run, {"status": status}))
        self._open.pop(run, None)
        write_text(self._open_runs, json.dumps(self._open))

    @property
    def _open_runs(self) -> Path:
        return self.workspace.state / "mlflow" / f"open-{self.workspace.name}.json"

    def _close_interrupted(self) -> str | None:
        """Close what a killed process left open; returns the id of its pipeline run."""
        left: dict[str, str] = read_json(self._open_runs)
        for run in left:
            if self._knows(run):
                self._say(Message("end", run, {"status": "KILLED"}))
        return next((run for run, what in left.items() if what == "pipeline"), None)

    def _knows(self, run: str) -> bool:
        """Whether a run was opened at this address, as far as can be seen."""
        from mlflow.exceptions import MlflowException

        if self.away or self.stopped or self._connection is None:
            return True
        try:
            self._connection.get_run(self.spool.id_of(run))
        except MlflowException as error:
            return bool(error.error_code != "RESOURCE_DOES_NOT_EXIST")
        return True


def foreign() -> tuple[type[Exception], ...]:
    """What goes wrong with MLflow, on its way there, and in opening the experiment."""
    return *mlflow_errors(), OSError, BadInput
