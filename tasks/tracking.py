"""Experiment tracking in MLflow: a parent run a pipeline run, nested in it a run a stage.

Stages are processes of their own that DVC starts; they know nothing of MLflow. Whoever walks the pipeline tells the
:class:`Tracker` when a stage begins and ends, and it reads the rest from what the stage wrote. Runs are always named by
id: an active run, or ``MLFLOW_RUN_ID`` handed to a child process, would nest them wrongly.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec
from urllib.parse import urlsplit

import psutil

from models.errors import BadInput
from tasks.figures import of_front, of_stage
from tasks.front import Front
from tasks.front_table import markdown
from tasks.mlflow_log import log, log_data, log_figures
from tasks.records import write_text
from tasks.run_record import Point, StageLock, data_versions, parameters, read_lock, stage_points
from tasks.workspace import Workspace, state_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["ran", "cached", "failed"]
Outcome = Literal["finished", "failed", "killed"]
Given = ParamSpec("Given")

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that is away costs about ten seconds once, not MLflow's minutes at every call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's environment, where the user has not set it otherwise. It is read when mlflow is imported."""

SYSTEM_METRICS_SECONDS = 5.0
"""Time between two samples of processor, memory, disk and network while a stage runs."""

PARENT_METRICS = ("search", "pareto")
"""Stages whose metrics the pipeline's run carries as well, so that pipeline runs can be compared with each other."""


def local_store(root: Path) -> tuple[str, str]:
    """Database and artifact location in the state folder, as absolute URIs; a local server serves the same."""
    folder = state_folder(root) / "mlflow"
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def local_server(root: Path) -> str | None:
    """Address of the MLflow server that `hm3 up` recorded, if it is alive."""
    path = state_folder(root) / "servers.json"
    if not path.is_file():
        return None
    server = json.loads(path.read_text(encoding="utf-8")).get("mlflow")
    if not server or not psutil.pid_exists(int(server["pid"])):
        return None
    address = urlsplit(server["url"])
    try:
        with socket.create_connection((address.hostname, address.port), timeout=1):
            return str(server["url"])
    except OSError:
        return None


def tracking_uri(root: Path) -> str:
    """Where runs and models go: ``MLFLOW_TRACKING_URI``, else the server of `hm3 up`, else a database file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_server(root) or local_store(root)[0]


def settle_environment() -> None:
    """Apply ``SETTINGS``; to be called before anything imports mlflow."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def connect(root: Path) -> MlflowClient:
    """A client for :func:`tracking_uri`; imports mlflow, and makes a new database (seconds each)."""
    settle_environment()
    import mlflow

    uri = tracking_uri(root)
    if uri == local_store(root)[0]:
        (state_folder(root) / "mlflow").mkdir(parents=True, exist_ok=True)
    # The registry's database store asks for the global address where it resolves a model's folder.
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def open_experiment(client: MlflowClient, workspace: Workspace) -> str:
    """Id of the experiment ``hm3-PROFILE``, made if missing.

    Raises:
        BadInput: it was deleted in MLflow and not yet purged.
    """
    from mlflow.exceptions import MlflowException

    name = f"hm3-{workspace.name}"
    found = client.get_experiment_by_name(name)
    if found is None:
        # Files of the local store are named absolutely, so that database and server find the same ones.
        local = client.tracking_uri in (local_store(workspace.root)[0], local_server(workspace.root))
        tags = {
            "mlflow.note.content": f"Merges of profile `{workspace.name}`: a run a pipeline run, nested a run a stage.",
            "mlflow.experimentKind": "custom_model_development",
        }
        location = local_store(workspace.root)[1] if local else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise BadInput(f"MLflow experiment {name}: deleted; `mlflow experiments restore -x {found.experiment_id}`")
    return str(found.experiment_id)


def git_tags(root: Path) -> dict[str, str]:
    """The commit that is checked out, and whether files differ from it; nothing outside a repository."""

    def git(*command: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(git("status", "--porcelain"))).lower()}


def bounded(
    method: Callable[Concatenate[Tracker, Given], None],
) -> Callable[Concatenate[Tracker, Given], None]:
    """Connects before the first call, and lets the work go on when MLflow does not answer."""

    @wraps(method)
    def call(tracker: Tracker, /, *args: Given.args, **kwargs: Given.kwargs) -> None:
        tracker.prepare()
        if not tracker.stopped:
            with tracker.stopping():
                method(tracker, *args, **kwargs)

    return call


class Tracker:
    """The MLflow side of one pipeline run.

    When MLflow does not answer, it says so once and does nothing from then on: computing goes on without it.

    Args:
        workspace: project and profile.
        warn: gets the one line that says why tracking stopped.
    """

    def __init__(self, workspace: Workspace, warn: Callable[[str], None]):
        settle_environment()
        self.workspace = workspace
        self.run_id: str | None = None
        """Id of the pipeline's run, once it is open."""
        self.stopped = False
        self._warn = warn
        self._lock = threading.Lock()
        self._connection: MlflowClient | None = None
        self._experiment = ""
        self._open: dict[str, str] = {}
        self._monitors: dict[str, Any] = {}

    @property
    def url(self) -> str | None:
        """Page of the pipeline's run, where a server shows it."""
        if self.run_id is None or not self._client.tracking_uri.startswith("http"):
            return None
        return f"{self._client.tracking_uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.run_id}"

    def prepare(self) -> None:
        """Import, connect, open the experiment: about ten seconds the first time. May be called in a thread, early."""
        with self._lock:
            if self._connection is None and not self.stopped:
                with self.stopping():
                    client = connect(self.workspace.root)
                    self._experiment = open_experiment(client, self.workspace)
                    self._connection = client

    @bounded
    def start(self, name: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Open the pipeline's run; runs that a killed process left open are closed.

        Args:
            name: of the run; MLflow invents one if left out.
            tags: further tags, such as the id of the flow run.
        """
        source = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "hm3 run", "mlflow.source.type": "LOCAL"}
        every = {**source, **git_tags(self.workspace.root), "profile": self.workspace.name, **(tags or {})}
        if left := self._close_interrupted():
            every["resumes"] = left
        self.run_id = self._client.create_run(self._experiment, tags=every, run_name=name).info.run_id
        self._remember(self.run_id, "pipeline")
        log(self._client, self.run_id, parameters(self.workspace))

    @bounded
    def begin_stage(self, stage: str) -> None:
        """Open a stage's run before it starts, so that system metrics are sampled while it runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        run_id = self._create_stage(stage, time.time())
        monitor = SystemMetricsMonitor(run_id, SYSTEM_METRICS_SECONDS, tracking_uri=self._client.tracking_uri)
        monitor.start()
        self._monitors[stage] = monitor

    @bounded
    def end_stage(self, stage: str, status: Status, seconds: float) -> None:
        """Record a stage that is done, was cached or failed; opens its run if :meth:`begin_stage` did not.

        Args:
            stage: its name.
            status: what became of it.
            seconds: how long it took, 0 if cached.
        """
        if monitor := self._monitors.pop(stage, None):
            monitor.finish()
        opened = next((run_id for run_id, name in self._open.items() if name == stage), None)
        run_id = opened or self._create_stage(stage, time.time() - seconds)
        lock = read_lock(self.workspace).get(stage, StageLock())
        tags: dict[str, str] = {"stage.status": status}
        points: list[Point] = []
        if status != "failed":
            points = stage_points(self.workspace, stage)
            tags |= {f"dvc.{out.path}": out.md5 for out in lock.outs}
            log_data(self._client, run_id, data_versions(self.workspace, lock.deps))
        if status == "ran":
            log_figures(self._client, run_id, of_stage(self.workspace, stage))
        log(self._client, run_id, parameters(self.workspace, stage), [*points, ("seconds", seconds, 0)], tags)
        if self.run_id and stage in PARENT_METRICS:
            log(self._client, self.run_id, points=points)
        self._close(run_id, "FAILED" if status == "failed" else "FINISHED")

    @bounded
    def finish(self, outcome: Outcome, seconds: float, artifacts: Sequence[Path] = ()) -> None:
        """Close the pipeline's run.

        Args:
            outcome: how it ended.
            seconds: how long it took.
            artifacts: files to keep with it, such as the report and ``front.json``.
        """
        if self.run_id is None:
            return
        outs = tuple(out for lock in read_lock(self.workspace).values() for out in lock.outs)
        tags = {f"dvc.{out.path}": out.md5 for out in outs}
        log(self._client, self.run_id, points=[("seconds", seconds, 0)], tags=tags)
        if outcome == "finished":
            log_data(self._client, self.run_id, data_versions(self.workspace, outs))
            log_figures(self._client, self.run_id, of_front(self.workspace))
            front = Front.read(self.workspace.run)
            log(self._client, self.run_id, tags={"mlflow.note.content": markdown(front, front.splits[-1])})
            self._client.log_artifacts(self.run_id, str(self.workspace.run / "plots"), "plots")
            for path in artifacts:
                self._client.log_artifact(self.run_id, str(path))
        for run_id in [one for one in self._open if one != self.run_id]:
            self._close(run_id, "KILLED")
        self._close(self.run_id, {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}[outcome])

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Turns what goes wrong with MLflow into one warning, and stops tracking."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, BadInput) as error:
            self.stopped = True
            reason = " ".join(str(error).split())[:300]
            self._warn(
                f"MLflow at {tracking_uri(self.workspace.root)}: {reason}; this run is not tracked any further, "
                "`hm3 publish` sends its front later"
            )

    @property
    def _client(self) -> MlflowClient:
        if self._connection is None:
            raise RuntimeError("the tracker was not prepared")
        return self._connection

    @property
    def _open_runs(self) -> Path:
        return self.workspace.state / "mlflow" / f"open-{self.workspace.name}.json"

    def _create_stage(self, stage: str, started: float) -> str:
        tags = {"stage": stage, "profile": self.workspace.name}
        if self.run_id:
            tags["mlflow.parentRunId"] = self.run_id
        run = self._client.create_run(self._experiment, int(started * 1000), tags, run_name=stage)
        self._remember(run.info.run_id, stage)
        return str(run.info.run_id)

    def _remember(self, run_id: str, what: str) -> None:
        self._open[run_id] = what
        write_text(self._open_runs, json.dumps(self._open))

    def _close(self, run_id: str, status: str) -> None:
        self._client.set_terminated(run_id, status)
        self._open.pop(run_id, None)
        write_text(self._open_runs, json.dumps(self._open))

    def _close_interrupted(self) -> str | None:
        """Close what a killed process left open; returns the id of its pipeline run."""
        from mlflow.exceptions import MlflowException

        if not self._open_runs.is_file():
            return None
        left: dict[str, str] = json.loads(self._open_runs.read_text(encoding="utf-8"))
        for run_id in left:
            try:
                self._client.set_terminated(run_id, "KILLED")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it was opened at another address
                    raise
        return next((run_id for run_id, what in left.items() if what == "pipeline"), None)
