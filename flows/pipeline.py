"""The pipeline as a Prefect flow: it walks dvc.yaml's own graph, a task a stage, and publishes the front.

DVC decides what has to run and keeps the versions; MLflow keeps the record; Prefect shows both, and starts this on a
schedule. The stages themselves know none of the three. Prefect imports this file to register a flow, and for the hooks
of a run that was cancelled: torch, MLflow and matplotlib are imported when a run needs them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Completed
from rich.console import Console

from flows.follow import as_task, follow, log_of
from flows.form import Dataset, Pareto, Sample, Search, Train, Zoo, merged, project_params
from flows.processes.settle import claimed, enter
from flows.screen.artifacts import show_front
from flows.screen.watch import Screen, duration
from flows.servers.gpu import slot
from flows.versions import reproduce
from flows.versions.experiments import experiment
from flows.versions.reproduce import Stage
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.workspace import Workspace, open_workspace
from tasks.schema.params import Params
from tasks.scoring.where import EngineName

if TYPE_CHECKING:
    from tasks.front.front import Front
    from tasks.tracking.tracker import Outcome, Tracker

STAGE_HOURS = 72.0
"""Longest time that a stage may take, unless a run says otherwise."""

DONE = {"ran": "done", "restored": "restored from DVC's cache of runs", "unchanged": "found unchanged"}


@flow(name="hm3", persist_result=False)
def hm3(
    profile: str = project_params().profiles[0],
    fresh: bool = False,
    push: bool = False,
    engine: EngineName = "inline",
    stage_hours: float = STAGE_HOURS,
    seed: int = project_params().seed,
    zoo: Zoo = Zoo(),  # noqa: B008 (frozen)
    sample: Sample = Sample(),  # noqa: B008
    dataset: Dataset = Dataset(),  # noqa: B008
    train: Train = Train(),  # noqa: B008
    search: Search = Search(),  # noqa: B008
    pareto: Pareto = Pareto(),  # noqa: B008
) -> dict[str, Any]:
    """Search the front of merged models of one family, and register it.

    Where a parameter differs from params.yaml, the run becomes a DVC experiment in a working tree of its own, and
    nothing is registered.

    Args:
        profile: The model family, a file in profiles/.
        fresh: Compute everything again, and reuse no score.
        push: Send what was made to DVC's default remote at the end, so that clones can pull it.
        engine: Where candidates are scored: `inline`, in the stages, or by the workers of a `ray` cluster.
        stage_hours: Hours after which a stage is stopped; the next run goes on from there.
        seed: Seed of every generator.
        zoo: Stage zoo: how a made family is trained.
        sample: Stage sample: recipe search, and the anchors.
        dataset: Stage dataset: the offline data set of scored paths.
        train: Stage train: actor and critic.
        search: Stage search: the online search over recipes and paths.
        pareto: Stage pareto: which candidates become members of the front.
    """
    with opened(profile, "hm3 run") as (workspace, screen):
        params = merged(workspace.params, seed, zoo, sample, dataset, train, search, pareto)
        workspace = replace(workspace, engine=engine)
        return run_all(workspace, screen, params, fresh=fresh, push=push, hours=stage_hours)


def as_flow(work: Callable[[], dict[str, Any]], **shown: Any) -> dict[str, Any]:
    """Do what a command has prepared as a run of flow ``hm3``; Prefect's pages show it with these parameters."""

    @wraps(hm3.fn)
    def run(**_: Any) -> dict[str, Any]:
        return work()

    result: dict[str, Any] = flow(name=hm3.name, persist_result=False)(run)(**shown)
    return result


@contextmanager
def opened(profile: str, what: str) -> Iterator[tuple[Workspace, Screen]]:
    """For a flow that a worker runs: the project around the working directory, and Prefect's log as a screen.

    ``what`` goes on, for those who have to wait for it.
    """
    enter()
    workspace = open_workspace(profile)
    label = f"{what} --profile {profile}, flow run {flow_run.get_name()}"
    with (
        Screen(Console(quiet=True), get_run_logger().info) as screen,
        claimed(workspace, label, screen.line, lock="run", computes=False),
    ):
        yield workspace, screen


def run_all(
    workspace: Workspace,
    screen: Screen,
    params: Params,
    *,
    fresh: bool,
    push: bool,
    hours: float = STAGE_HOURS,
    asked: Popen[str] | None = None,
) -> dict[str, Any]:
    """The whole pipeline, inside a flow; as an experiment where the parameters are others than the project's.

    Args:
        workspace: project and profile, which this process has claimed, and where candidates are scored.
        fresh: run every stage, and resume nothing.
        push: send the outs to DVC's default remote at the end.
        hours: after which a stage is stopped.
        asked: what DVC was asked about the workspace, if it was already.

    Returns:
        What there is to say about the front, and what the run took.
    """
    screen.log = get_run_logger().info
    if params == workspace.params:
        return walk(workspace, screen, fresh=fresh, push=push, hours=hours, asked=asked)
    screen.spin("preparing a working tree for the experiment")
    with experiment(workspace, params, screen.line) as (tree, name):
        return walk(tree, screen, fresh=fresh, push=push, hours=hours, experiment_name=name)


def walk(
    workspace: Workspace,
    screen: Screen,
    *,
    fresh: bool,
    push: bool,
    hours: float,
    asked: Popen[str] | None = None,
    experiment_name: str | None = None,
) -> dict[str, Any]:
    """All stages of a profile, the report and the registry; gives and takes what :func:`run_all` does.

    Raises:
        BadInput: a stage finds something that the user can mend.
        Failed: a stage failed or took too long.
    """
    from tasks.front.front import Front
    from tasks.front.running_costs import known_costs
    from tasks.front.table import summary
    from tasks.tracking.tracker import Tracker

    began = time.monotonic()
    if push:
        from tasks.doctor.buckets import require_remote

        require_remote(workspace.root)
    tracker = Tracker(workspace, lambda text: screen.line(text, "yellow"))
    threading.Thread(target=tracker.prepare, name="mlflow", daemon=True).start()
    screen.spin("asking DVC what has changed")
    plan = reproduce.plan(asked or reproduce.ask(workspace), workspace.name)
    if fresh:
        from tasks.scoring.journal import set_aside

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
                renewed |= renew(workspace, stage, screen, tracker, force=fresh, hours=hours)
            else:
                keep(stage, screen, tracker)
        screen.of_all(len(plan.stages), len(plan.stages), "stages")
        screen.spin("report")
        kept = [as_task("report", lambda: report_of(workspace, screen)), workspace.run / "front.json"]
        if experiment_name is None:
            register(workspace, screen, tracker)
        if push:
            send(workspace, [stage.name for stage in plan.stages], screen)
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
    return summary(front, costs=known_costs(workspace)) | {"seconds": round(seconds, 1), "experiment": experiment_name}


def keep(stage: Stage, screen: Screen, tracker: Tracker) -> None:
    """A stage of which `dvc status` says that nothing changed. No process is started."""
    as_task(stage.title, lambda: Completed(name="Cached", message="`dvc status` finds nothing changed"), stage.name)
    screen.line(f"{stage.name}: cached")
    tracker.end_stage(stage.title, "cached", 0)


def renew(workspace: Workspace, stage: Stage, screen: Screen, tracker: Tracker, *, force: bool, hours: float) -> bool:
    """A stage that changed, or may have, through DVC. Whether it gave its outs anew."""
    why = "; ".join(stage.changes[:3]) + ("; …" if len(stage.changes) > 3 else "")
    screen.line(f"{stage.name}: {'computed again' if force else why or 'a stage before it changed'}", "dim")
    tracker.begin_stage(stage.title)
    began = time.monotonic()
    try:
        done: str = as_task(stage.title, lambda: follow(workspace, stage, screen, force=force, hours=hours), stage.name)
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


def report_of(workspace: Workspace, screen: Screen) -> Path:
    """Write the report; what the members take to run is measured while no other run computes on the GPU."""
    from tasks.front.front import Front
    from tasks.front.running_costs import depths, known_costs
    from tasks.report.report import write_report

    known = depths(Front.read(workspace.run)) <= known_costs(workspace).of.keys()
    with nullcontext() if known else slot(workspace.profile.device):
        return write_report(workspace, Progress(tell=partial(screen.event, "report")))


def register(workspace: Workspace, screen: Screen, tracker: Tracker) -> None:
    """Publish the front, as the last task. Experiments are left out: what nobody applied need not be registered."""
    from tasks.registry.publish import publish

    screen.spin("publish")
    tracker.deliver()
    published = as_task(
        "publish", lambda: publish(workspace, Progress(tell=partial(screen.event, "publish")), tracker.run_id)
    )
    screen.clear()
    screen.line(f"publish: {published}", "green")


def send(workspace: Workspace, stages: Sequence[str], screen: Screen) -> None:
    """Push the outs of stages to DVC's default remote."""
    from flows.versions.push import WAITS, push

    screen.spin("push")
    screen.line(f"push: {as_task('push', lambda: push(workspace, stages), waits=WAITS)}", "green")


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
    from tasks.front.running_costs import known_costs
    from tasks.front.table import front_table

    split = front.splits[-1]
    screen.console.print("", front_table(front, split, costs=known_costs(workspace)), "")
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
