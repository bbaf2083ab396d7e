"""Work as Prefect tasks: with another try where that helps, and a stage followed from its start to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.processes import retry
from flows.screen.artifacts import Gauge
from flows.screen.watch import Screen, Tail
from flows.servers.gpu import slot
from flows.versions import reproduce
from flows.versions.reproduce import Stage
from models.errors import Failed
from tasks.project.workspace import Workspace

POLL_SECONDS = 0.2
"""Time between two looks at a stage's progress."""


def as_task(title: str, work: Callable[[], Any], name: str | None = None, waits: Sequence[float] | None = None) -> Any:
    """Do a piece of work as a Prefect task, for the sake of its state, log, artifacts, and of further tries.

    Args:
        title: name of the task.
        work: is done.
        name: of this run of it, if it has another.
        waits: seconds before each further try, by default ``retry.WAITS``.
    """
    waits = retry.WAITS if waits is None else waits
    return task(
        name=title,
        task_run_name=name or title,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(waits),
        retry_delay_seconds=list(waits),
        retry_condition_fn=deserves_retry,
    )(work)()


def deserves_retry(_: object, __: object, state: State[Any]) -> bool:
    """Whether what a task failed with may be gone at the next try."""
    error = state.data if isinstance(state.data, BaseException) else state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and retry.may_pass(error)


def log_of(workspace: Workspace, stage: Stage) -> Path:
    """Where the output of DVC and of the stage goes."""
    return workspace.state / "logs" / f"{stage.name}.log"


def follow(workspace: Workspace, stage: Stage, screen: Screen, *, force: bool, hours: float) -> str:
    """Let DVC run a stage, and show how it goes; what DVC did, in a word. Runs inside the stage's task.

    Raises:
        BadInput: the stage's command exited with 2.
        Unavailable: a disk or a network did not answer it.
        Failed: it failed otherwise, or took longer than ``hours``.
    """
    log = log_of(workspace, stage)
    events = workspace.state / "progress" / workspace.name / f"{stage.title}.jsonl"
    events.unlink(missing_ok=True)
    tail, gauge = Tail(events), Gauge(stage.name)
    screen.spin(stage.name)
    with slot(workspace.profile.device):
        deadline = time.monotonic() + hours * 3600
        process = reproduce.start_stage(workspace, stage.name, log, force=force)
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None
                for event in tail.read():
                    screen.event(stage.name, event)
                    gauge.show(event)
                if not ended:
                    if time.monotonic() > deadline:
                        raise Failed(
                            f"{stage.name}: stopped after stage_hours={hours:g}; the next run goes on from there"
                        )
                    time.sleep(POLL_SECONDS)
        finally:
            status = process.stop()
            screen.clear()
            get_run_logger().info("%s\n%s", log, log.read_text(encoding="utf-8", errors="replace")[-20_000:])
    done = reproduce.outcome(stage.name, status, log)
    gauge.finish()
    return done
