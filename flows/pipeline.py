"""The pipeline as a Prefect flow: it walks dvc.yaml's own graph, a task a stage, and publishes the front.

DVC decides what has to run and keeps the versions; MLflow keeps the record; Prefect shows both, and starts this on a
schedule. The stages themselves know none of the three.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events.worker import EventsWorker
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Completed
from rich.console import Console

from flows import reproduce
from flows.artifacts import Gauge, show_front
from flows.experiments import experiment
from flows.local import prepare_environment
from flows.processes import hold
from flows.push import push as push_outs
from flows.reproduce import Stage
from flows.watch import Relay, Screen, Tail, duration
from tasks.buckets import require_remote
from tasks.front import Front
from tasks.front_table import front_table, summary
from tasks.records import write_text
from tasks.registry import publish
from tasks.report import write_report
from tasks.schema import Params
from tasks.tracking import Outcome, Tracker
from tasks.workspace import Workspace, find_root, open_workspace, state_folder

POLL_SECONDS = 0.2
"""Time between two looks at a stage's progress."""

RESUMED_FROM = ("journal", "checkpoints")
"""Folders of the state, each with a folder a profile, from which an interrupted run goes on."""

DONE = {"ran": "done", "restored": "restored from DVC's cache of runs", "unchanged": "found unchanged"}

_screen: ContextVar[Screen | None] = ContextVar("screen", default=None)


@contextmanager
def shown_on(screen: Screen) -> Iterator[None]:
    """Flows that run in the block use this screen; others, such as those of a worker, have Prefect's log alone."""
    token = _screen.set(screen)
    try:
        yield
    finally:
        _screen.reset(token)


@flow(name="hm3", persist_result=False)
def hm3(profile: str = "tiny", params: Params | None = None, fresh: bool = False, push: bool = False) -> dict[str, Any]:
    """Search the front of merged models of one family, and register it.

    Args:
        profile: the model family, a file in profiles/.
        params: parameters of the algorithm. Where they differ from params.yaml the run becomes a DVC experiment in a
            working tree of its own, and nothing is registered.
        fresh: compute everything again, and reuse no score.
        push: send what was made to DVC's default remote at the end, so that clones can pull it.
    """
    root = find_root()
    state = state_folder(root)
    prepare_environment(state)
    with ExitStack() as stack:
        screen = _screen.get() or stack.enter_context(Screen(Console(quiet=True)))
        screen.log = get_run_logger().info
        stack.enter_context(hold(state / "locks" / "run.lock", f"hm3 run --profile {profile}", screen.line))
        workspace = open_workspace(profile, root)
        name = None
        if params is not None and params != workspace.params:
            screen.spin("preparing a working tree for the experiment")
            workspace, name = stack.enter_context(experiment(workspace, params, screen.line))
        return walk(workspace, screen, fresh=fresh, push=push, experiment_name=name)


def walk(
    workspace: Workspace, screen: Screen, *, fresh: bool, push: bool, experiment_name: str | None
) -> dict[str, Any]:
    """All stages of a profile, the report and the registry.

    Returns:
        What there is to say about the front.
    """
    began = time.monotonic()
    if push:
        require_remote(workspace.root)
    tracker = Tracker(workspace, lambda text: screen.line(text, "yellow"))
    threading.Thread(target=tracker.prepare, name="mlflow", daemon=True).start()
    screen.spin("asking DVC what has changed")
    plan = reproduce.plan(workspace.root, workspace.name)
    if fresh:
        set_aside(workspace)
    screen.spin("connecting to MLflow")
    tracker.start(flow_run.get_name(), {"prefect.flow_run_id": str(flow_run.get_id())})
    outcome: Outcome = "killed"
    kept: list[Path] = []
    renewed = False
    try:
        for number, stage in enumerate(plan.stages):
            screen.clear()
            screen.of_all(number, len(plan.stages), "stages")
            if fresh or stage.name in plan.stale:
                renewed |= renew(workspace, stage, screen, tracker, force=fresh)
            else:
                keep(stage, screen, tracker)
        screen.of_all(len(plan.stages), len(plan.stages), "stages")
        screen.spin("report")
        kept = [as_task("report", lambda: write_report(workspace)), workspace.run / "front.json"]
        if experiment_name is None:
            register(workspace, screen, tracker)
        if push:
            screen.spin("push")
            screen.line(f"push: {push_outs(workspace, [stage.name for stage in plan.stages])}", "green")
        outcome = "finished"
    except Exception:
        outcome = "failed"
        raise
    finally:
        screen.spin("sending the rest to MLflow and Prefect")
        tracker.finish(outcome, time.monotonic() - began, kept)
        if outcome != "finished":
            screen.clear()
    front = Front.read(workspace.run)
    show_front(workspace, front, kept[0], tracker.url, images=renewed)
    screen.clear()
    seconds = time.monotonic() - began
    present(workspace, front, screen, kept[0], tracker.url, seconds, experiment_name)
    return summary(front) | {"seconds": round(seconds, 1), "experiment": experiment_name}


def as_task(title: str, work: Callable[[], Any], name: str | None = None) -> Any:
    """Do a piece of work as a Prefect task, for the sake of its state, log and artifacts."""
    return task(name=title, task_run_name=name or title, cache_policy=NO_CACHE, persist_result=False)(work)()


def keep(stage: Stage, screen: Screen, tracker: Tracker) -> None:
    """A stage of which `dvc status` says that nothing changed. No process is started."""
    as_task(stage.title, lambda: Completed(name="Cached", message="`dvc status` finds nothing changed"), stage.name)
    screen.line(f"{stage.name}: cached")
    tracker.end_stage(stage.title, "cached", 0)


def renew(workspace: Workspace, stage: Stage, screen: Screen, tracker: Tracker, *, force: bool) -> bool:
    """A stage that changed, or may have, through DVC. Whether it gave its outs anew."""
    why = "; ".join(stage.changes[:3]) + ("; …" if len(stage.changes) > 3 else "")
    screen.line(f"{stage.name}: {'computed again' if force else why or 'a stage before it changed'}", "dim")
    tracker.begin_stage(stage.title)
    began = time.monotonic()
    try:
        done: str = as_task(stage.title, lambda: follow(workspace, stage, screen, force=force), stage.name)
    except BaseException:
        screen.line(
            f"{stage.name}: stopped after {duration(time.monotonic() - began)}; its log is {log_of(workspace, stage)}",
            "red",
        )
        tracker.end_stage(stage.title, "failed", time.monotonic() - began)
        raise
    seconds = time.monotonic() - began
    screen.line(f"{stage.name}: {DONE[done]} in {duration(seconds)}", "green")
    if done == "ran":
        remember_time(workspace, stage.title, seconds)
    tracker.end_stage(stage.title, "ran" if done == "ran" else "cached", seconds)
    return done != "unchanged"


def log_of(workspace: Workspace, stage: Stage) -> Path:
    """Where the output of DVC and of the stage goes."""
    return workspace.state / "logs" / f"{stage.name}.log"


def follow(workspace: Workspace, stage: Stage, screen: Screen, *, force: bool) -> str:
    """Let DVC run a stage, and show how it goes; what DVC did, in a word. Runs inside the stage's task.

    Raises:
        BadInput: the stage's command exited with 2.
        Failed: it failed otherwise.
    """
    log = log_of(workspace, stage)
    events = workspace.state / "progress" / workspace.name / f"{stage.title}.jsonl"
    events.unlink(missing_ok=True)
    tail, gauge = Tail(events), Gauge(stage.name)
    screen.spin(stage.name)
    process = reproduce.start_stage(workspace.root, stage.name, log, force=force)
    try:
        ended = False
        while not ended:
            ended = process.poll() is not None
            for event in tail.read():
                screen.event(stage.name, event)
                gauge.show(event)
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        status = process.stop()
        screen.clear()
        get_run_logger().info("%s\n%s", log, log.read_text(encoding="utf-8", errors="replace")[-20_000:])
    done = reproduce.outcome(stage.name, status, log)
    gauge.finish()
    return done


def register(workspace: Workspace, screen: Screen, tracker: Tracker) -> None:
    """Publish the front, as the last task. Experiments are left out: what nobody applied need not be registered."""
    screen.spin("publish")
    published = as_task("publish", lambda: publish(workspace, Relay(screen, "publish"), tracker.run_id))
    screen.clear()
    screen.line(f"publish: {published}", "green")


def set_aside(workspace: Workspace) -> None:
    """Move what a run would resume from to a folder beside it."""
    for kind in RESUMED_FROM:
        folder = workspace.state / kind / workspace.name
        if folder.is_dir():
            aside = workspace.state / f"{kind}-aside"
            aside.mkdir(exist_ok=True)
            taken = len(list(aside.glob(f"{workspace.name}-*")))
            folder.rename(aside / f"{workspace.name}-{taken + 1}")


def remember_time(workspace: Workspace, stage: str, seconds: float) -> None:
    """Keep how long a stage took: `hm3 doctor` expects the same of the next run."""
    path = workspace.state / "times" / f"{workspace.name}.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_text(path, json.dumps(times | {stage: round(seconds, 1)}, indent=1) + "\n")


def present(
    workspace: Workspace,
    front: Front,
    screen: Screen,
    report: Path,
    tracked: str | None,
    seconds: float,
    experiment_name: str | None,
) -> None:
    """The front, what it took, and where to look next."""
    split = front.splits[-1]
    screen.console.print("", front_table(front, split), "")
    spent = json.loads((workspace.run / "metrics.json").read_text(encoding="utf-8"))["item_evaluations"]
    against = front.hypervolume(front.references, split)
    screen.line(
        f"hypervolume on {split} {front.hv[split]:.3f}, of base, experts and plain merges {against:.3f}; "
        f"{spent:,} item evaluations; this run took {duration(seconds)}",
        "bold",
    )
    if experiment_name is not None:
        return
    screen.line(f"report   {report}")
    screen.line(f"choose   hm3 choose --prefer {','.join(f'{name}=1' for name in front.tasks[:2])}")
    screen.line(f"MLflow   {tracked or 'hm3 up shows the runs and the registered models'}")


def drain() -> None:
    """Send what Prefect still holds back, so that the server can go and nothing complains about it later."""
    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)
