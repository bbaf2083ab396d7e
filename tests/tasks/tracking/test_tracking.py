"""Pipeline runs and stage runs in MLflow, against a real database file and real sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from flows.servers.local import free_port
from tasks.project.processes import birth
from tasks.project.secret import secret
from tasks.schema.services import RayWorkers
from tasks.tracking.messages import log_data
from tasks.tracking.mlflow import connect, local_store, log_in, tracking_uri
from tasks.tracking.record import flatten, parameters, stage_points
from tasks.tracking.tracker import Tracker
from tests.servers import mlflow_server

STAGES = ("zoo", "sample", "dataset", "train", "search", "pareto")


def refuse(text):
    raise AssertionError(text)


def walk(tracker):
    tracker.start("morning", {"prefect.flow_run_id": "f-1"})
    for stage in STAGES:
        tracker.end_stage(stage, "ran", 2.0)
    tracker.finish("finished", 12.0, [tracker.workspace.run / "front.json"])


@pytest.fixture
def client(project):
    return connect(project.state)


@pytest.fixture(scope="module")
def walked(shared_project):
    """Parent run and stage runs of one pipeline run, and the client that sees them."""
    client = connect(shared_project.state)
    tracker = Tracker(shared_project, refuse)
    walk(tracker)
    experiment = client.get_experiment_by_name("hm3-tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return runs.pop("morning"), runs, client


def test_stage_runs_are_nested_in_the_pipeline_run(walked):
    parent, stages, _ = walked
    assert set(stages) == set(STAGES)
    assert {run.data.tags["mlflow.parentRunId"] for run in stages.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *stages.values())} == {"FINISHED"}
    assert parent.data.tags["prefect.flow_run_id"] == "f-1"


def test_a_child_process_variable_does_not_change_the_nesting(project, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    tracker = Tracker(project, refuse)
    tracker.start()
    tracker.end_stage("zoo", "ran", 2.0)
    stage = client.search_runs([tracker._experiment], "tags.stage = 'zoo'")[0]
    assert stage.data.tags["mlflow.parentRunId"] == tracker.run_id != "0" * 32


def test_parameters_go_by_the_names_that_dvc_takes(shared_project, walked):
    parent, stages, _ = walked
    assert parent.data.params["search.budget"] == str(shared_project.params.search.budget)
    assert parent.data.params["profile.objectives.math.task"] == "tiny_math"
    assert parent.data.params["search.rungs"] == str(list(shared_project.params.search.rungs))
    assert stages["train"].data.params["train.steps"] == str(shared_project.params.train.steps)
    assert "search.budget" not in stages["train"].data.params


def test_no_login_is_in_a_parameter(shared_project):
    ray = RayWorkers(address="ray://me:hidden@head:10001")
    profile = shared_project.profile.model_copy(update={"ray": ray})
    assert parameters(replace(shared_project, profile=profile))["profile.ray.address"] == "ray://head:10001"


def test_curves_are_kept_by_step(shared_project, walked):
    parent, stages, client = walked
    table = pd.read_csv(shared_project.run / "search.csv")
    for run in (parent, stages["search"]):
        history = client.get_metric_history(run.info.run_id, "search/hv")
        assert [one.step for one in history] == table["evaluations"].tolist()
        assert [one.value for one in history] == pytest.approx(table["hv"].tolist())
    losses = client.get_metric_history(stages["train"].info.run_id, "train/surrogate/loss")
    assert [one.step for one in losses] == list(range(8, 88, 8))


def test_the_pipeline_run_carries_the_final_metrics_and_what_it_made(shared_project, walked):
    parent, _, client = walked
    metrics = json.loads((shared_project.run / "metrics.json").read_text())
    assert parent.data.metrics["hv/test"] == pytest.approx(metrics["hv"]["test"])
    assert parent.data.metrics["item_evaluations"] == metrics["item_evaluations"]
    assert "DARE-TIES" in parent.data.tags["mlflow.note.content"]
    kept = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert kept == {"front.json", "images", "plots"}
    plots = {one.path for one in client.list_artifacts(parent.info.run_id, "plots")}
    assert plots == {"plots/front.csv", "plots/front.png", "plots/paths.png", "plots/depth.png"}


def test_data_sets_are_inputs_by_the_hash_that_dvc_gave_them(shared_project, walked):
    parent, stages, _ = walked
    lock = yaml.safe_load((shared_project.root / "dvc.lock").read_text())["stages"]
    outs = {one["path"]: one["md5"] for stage in lock.values() for one in stage["outs"]}
    inputs = {one.dataset.name: one.dataset for one in stages["train"].inputs.dataset_inputs}
    assert inputs["offline.parquet"].digest == outs["runs/tiny/offline.parquet"]
    assert json.loads(inputs["offline.parquet"].profile) == {"num_rows": 60}
    assert {one["name"] for one in json.loads(inputs["offline.parquet"].schema)["mlflow_colspec"]} >= {
        "candidate",
        "math",
    }
    assert {one.dataset.name for one in parent.inputs.dataset_inputs} == {"tasks", "offline.parquet", "archive.parquet"}
    assert parent.data.tags["dvc.runs/tiny/front.json"] == outs["runs/tiny/front.json"]
    assert stages["pareto"].data.tags["dvc.runs/tiny/front.json"] == outs["runs/tiny/front.json"]


def test_a_run_is_tagged_with_the_commit_that_is_checked_out(project, client):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *identity, *command], cwd=project.root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init")
    git("add", "params.yaml")
    git("commit", "-m", "first")
    tracker = Tracker(project, refuse)
    tracker.start()
    tags = client.get_run(tracker.run_id).data.tags
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["git.dirty"] == "true"


def test_a_cached_stage_keeps_its_metrics_so_that_runs_can_be_compared(project, client):
    tracker = Tracker(project, refuse)
    tracker.start()
    for stage in STAGES:
        tracker.end_stage(stage, "cached", 0)
    parent = client.get_run(tracker.run_id)
    stage = client.search_runs([tracker._experiment], "tags.stage = 'pareto'")[0]
    assert stage.data.tags["stage.status"] == "cached"
    assert {"hv/test", "search/hv"} <= set(parent.data.metrics)


def test_a_failed_stage_is_shown_as_failed_though_it_wrote_nothing(project, client):
    (project.run / "search.csv").unlink()
    tracker = Tracker(project, refuse)
    tracker.start()
    tracker.begin_stage("search")
    tracker.end_stage("search", "failed", 3.0)
    tracker.finish("failed", 4.0)
    stage = client.search_runs([tracker._experiment], "tags.stage = 'search'")[0]
    assert stage.info.status == client.get_run(tracker.run_id).info.status == "FAILED"


def test_system_metrics_are_sampled_while_a_stage_runs(project, client, monkeypatch):
    monkeypatch.setattr("tasks.tracking.tracker.SYSTEM_METRICS_SECONDS", 0.1)
    tracker = Tracker(project, refuse)
    tracker.start()
    tracker.begin_stage("zoo")
    time.sleep(1.0)
    tracker.end_stage("zoo", "ran", 1.0)
    stage = client.search_runs([tracker._experiment], "tags.stage = 'zoo'")[0]
    assert "system/cpu_utilization_percentage" in stage.data.metrics


def test_what_a_killed_process_left_open_is_closed_by_the_next(project, client):
    killed = Tracker(project, refuse)
    killed.start()
    killed.end_stage("zoo", "ran", 1.0)
    killed._create_stage("sample", time.time())
    following = Tracker(project, refuse)
    following.start()
    experiment = client.get_experiment_by_name("hm3-tiny").experiment_id
    status = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert sorted(status.values()) == ["FINISHED", "KILLED", "KILLED", "RUNNING"]
    assert status[killed.run_id] == "KILLED"
    assert client.get_run(following.run_id).data.tags["resumes"] == killed.run_id


def shown(client):
    """What MLflow shows of each run, by name: its status, parent, values and files."""
    experiment = client.get_experiment_by_name("hm3-tiny").experiment_id
    runs = client.search_runs([experiment])
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names), "a run is there twice"
    return {
        run.info.run_name: (
            run.info.status,
            names.get(run.data.tags.get("mlflow.parentRunId")),
            run.data.params,
            {key: one for key, one in run.data.metrics.items() if not key.startswith("system/")},
            sorted(one.path for one in client.list_artifacts(run.info.run_id)),
            sorted((one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs),
        )
        for run in runs
    }


def test_what_a_server_misses_while_it_is_away_is_kept_and_sent_by_the_next_run(project, walked, monkeypatch):
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//me:hidden@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    warnings = []
    tracker = Tracker(project, warnings.append)
    walk(tracker)
    assert len(warnings) == 1
    assert f"MLflow at {address}: " in warnings[0]
    assert "hidden" not in warnings[0]
    assert "what it should know is kept" in warnings[0]
    assert tracker.run_id is None
    assert tracker.url is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    following = Tracker(project, warnings.append)
    following.deliver()
    assert "MLflow has got the" in warnings[1]
    client = connect(project.state)
    assert shown(client) == shown(walked[2])
    assert client.get_run(tracker.run_id).info.run_name == "morning"
    assert not following.spool


def test_a_server_that_is_killed_in_the_middle_of_a_run_has_everything_once_when_it_is_back(
    project, walked, tmp_path, monkeypatch
):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    warnings = []
    tracker = Tracker(project, warnings.append)
    with mlflow_server(tmp_path, tmp_path / "kept", port) as (_, process):
        tracker.start("morning", {"prefect.flow_run_id": "f-1"})
        tracker.begin_stage("zoo")
        assert tracker.url == f"http://127.0.0.1:{port}/#/experiments/{tracker._experiment}/runs/{tracker.run_id}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stage in STAGES[:4]:
        tracker.end_stage(stage, "ran", 2.0)
    assert len(warnings) == 1
    with mlflow_server(tmp_path, tmp_path / "kept", port):
        for stage in STAGES[4:]:
            tracker.end_stage(stage, "ran", 2.0)
        tracker.finish("finished", 12.0, [project.run / "front.json"])
        assert len(warnings) == 2
        assert shown(connect(project.state)) == shown(walked[2])


def test_a_deleted_experiment_stops_tracking_with_the_remedy(project, client):
    Tracker(project, refuse).prepare()
    client.delete_experiment(client.get_experiment_by_name("hm3-tiny").experiment_id)
    warnings = []
    Tracker(project, warnings.append).prepare()
    assert "mlflow experiments restore" in warnings[0]


def test_the_address_is_the_users_else_a_live_server_else_a_file(project, monkeypatch):
    database, artifacts = local_store(project.state)
    assert tracking_uri(project.state) == database == f"sqlite:///{project.root}/.hm3/mlflow/mlflow.db"
    assert artifacts.startswith("file:///")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        record = {"mlflow": {"url": url, "pid": os.getpid(), "born": birth(os.getpid())}}
        (project.state / "servers.json").write_text(json.dumps(record))
        assert tracking_uri(project.state) == url
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        log_in(project.state, url)
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == secret(project.state)
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
        log_in(project.state, "http://elsewhere:5000")
        assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        for other in ({"pid": gone.pid}, {"born": 0}):  # or a later process of the same number
            (project.state / "servers.json").write_text(json.dumps({"mlflow": record["mlflow"] | other}))
            assert tracking_uri(project.state) == database
        (project.state / "servers.json").write_text(json.dumps(record))
    assert tracking_uri(project.state) == database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert tracking_uri(project.state) == "http://elsewhere:5000"


def test_nested_values_get_joined_names():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": [{"name": "x", "e": 2}]}, ".") == {
        "a.b": 1,
        "a.c": [1, 2],
        "d.x.e": 2,
    }


def test_every_stage_with_parameters_has_them_under_its_name(project):
    for stage in STAGES:
        assert any(key.startswith(f"{stage}.") for key in parameters(project, stage))


def test_metrics_that_are_no_numbers_are_left_out(project):
    (project.run / "metrics.json").write_text('{"hv": {"test": NaN}, "members": 3, "note": "x"}')
    assert stage_points(project, "pareto") == [("members", 3.0, 0)]


def test_a_data_set_that_another_run_logs_at_the_same_moment_is_no_refusal(project):
    """MLflow looks for it, then writes it; in between another process may."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    one, other = connect(project.state), connect(project.state)
    experiment = one.create_experiment("at-once")
    runs = [one.create_run(experiment).info.run_id for _ in range(2)]
    data = {"name": "offline", "digest": "1", "source_type": "local", "source": "{}", "schema": None, "profile": None}
    versions = [{"dataset": data, "context": "train"}]
    at_once = []

    def meanwhile(session, *_):
        if not at_once and any(type(row).__name__ == "SqlDataset" for row in session.new):
            at_once.append(True)
            log_data(other, runs[1], versions)

    event.listen(Session, "before_flush", meanwhile)
    try:
        log_data(one, runs[0], versions)
    finally:
        event.remove(Session, "before_flush", meanwhile)
    assert at_once
    assert [one.get_run(run).inputs.dataset_inputs[0].dataset.name for run in runs] == ["offline"] * 2
