"""Twenty processes at once on the databases of a single machine, which are SQLite files: nothing is lost."""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from flows.servers.api import TemporaryPrefect
from tasks.project.workspace import open_workspace
from tasks.tracking.mlflow import settle_environment
from tasks.tracking.tracker import Tracker
from tests.fixtures_front import make_project
from tests.integration.api import call, within

ROOT = Path(__file__).parents[2]
CLIENTS = 20
STAGES = ("sample", "dataset", "train", "search", "pareto")


@pytest.fixture(scope="module")
def clients():
    """A pool of that many processes, which have imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "prefect", "tasks.tracking.tracker"])
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(CLIENTS, context) as pool:
        patch.syspath_prepend(ROOT)  # they find this module by its name
        yield pool


def tracked(root, name, address):
    """A pipeline run as MLflow is told of it; what was said, and how many messages are still kept."""
    os.environ["MLFLOW_TRACKING_URI"] = address
    said = []
    tracker = Tracker(open_workspace("tiny", root), said.append)
    tracker.start(name, {"prefect.flow_run_id": name})
    for stage in STAGES:
        tracker.begin_stage(stage)
        tracker.end_stage(stage, "ran", 2.0)
    tracker.finish("finished", 12.0, [])
    return said, len(tracker.spool)


@pytest.mark.slow
def test_twenty_runs_are_tracked_in_one_database(clients, tmp_path_factory, tmp_path):
    settle_environment()
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(address)
    experiment = client.create_experiment("hm3-tiny", artifact_location=(tmp_path / "artifacts").as_uri())
    done = make_project(tmp_path_factory.mktemp("done")).root
    roots = [shutil.copytree(done, tmp_path / f"project-{number}") for number in range(CLIENTS)]
    names = [f"run-{number}" for number in range(CLIENTS)]
    told = list(clients.map(tracked, roots, names, [address] * CLIENTS))
    assert not any(kept for _, kept in told), told
    runs = client.search_runs([experiment], max_results=1000)
    whole = {run.info.run_id: run.info.run_name for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert sorted(whole.values()) == sorted(names)
    below = [run for run in runs if run.info.run_id not in whole]
    stages = sorted((whole[run.data.tags["mlflow.parentRunId"]], run.info.run_name) for run in below)
    assert stages == sorted((name, stage) for name in names for stage in STAGES), told
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({str(sorted(run.data.metrics.items())) for run in runs if run.info.run_id in whole}) == 1
    assert all(run.data.metrics for run in runs if run.info.run_id in whole)


def flowed(client, name):
    """A flow run of five tasks."""
    from prefect import flow
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows.follow import as_task

    def work():
        return sum(as_task(stage, lambda: 1) for stage in STAGES)

    known = {PREFECT_API_URL: client["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: client["PREFECT_API_AUTH_STRING"]}
    with temporary_settings(known):
        return flow(name="client", flow_run_name=name)(work)()


@pytest.mark.slow
def test_twenty_flows_are_kept_by_one_temporary_server(clients, tmp_path):
    server = TemporaryPrefect(tmp_path)
    try:
        server.wait()
        names = [f"run-{number}" for number in range(CLIENTS)]
        assert list(clients.map(flowed, [server.client] * CLIENTS, names)) == [len(STAGES)] * CLIENTS
        login = server.client["PREFECT_API_AUTH_STRING"]
        flows = call(f"{server.url}/flow_runs/filter", {}, login)
        counts = {"state": {"type": {"any_": ["COMPLETED"]}}}
        wanted = len(STAGES) * CLIENTS  # task runs are recorded through events, a moment later
        within(60, lambda: call(f"{server.url}/task_runs/count", {"task_runs": counts}, login) == wanted, "lost")
        tasks = call(f"{server.url}/task_runs/filter", {}, login)
    finally:
        server.stop()
    assert sorted((one["name"], one["state_type"]) for one in flows) == sorted((name, "COMPLETED") for name in names)
    assert sorted(one["name"] for one in tasks) == sorted(STAGES * CLIENTS)
