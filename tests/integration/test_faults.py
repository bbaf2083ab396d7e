"""What kills, signals and lost servers leave of a run: nothing that stays behind, and everything that was finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from flows.processes.children import command_line
from flows.servers.local import free_port
from tasks.project.processes import birth, is_alive
from tests.fixtures_front import make_project as make_done
from tests.flows.project import at_work, behave, dvc, hm3, make_project, started
from tests.servers import missing, mlflow_server

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "flows.cli", "run"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return make_done(tmp_path_factory.mktemp("done")).run


@pytest.fixture
def own(tmp_path, done):
    """A project with three stages, of which `search` sleeps."""
    unset = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "HM3_STATE")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    project = make_project(tmp_path / "project", done, ["sample", "search", "pareto"])
    behave(project, "search", "sleep")
    return project, env | {"HM3_TEST_DONE": str(done)}


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def heed_interrupts():
    """As in a terminal: tests that run in the background have inherited that they are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(own):
    """A run that is in the middle of `search`, and all its processes."""
    project, env = own
    with (project / "out").open("w") as out:
        run = subprocess.Popen(
            RUN, cwd=project, env=env, stdout=out, stderr=out, start_new_session=True, preexec_fn=heed_interrupts
        )
    wait_until(lambda: run.poll() is not None or "search has copied" in (project / "out").read_text(), 240)
    assert run.poll() is None, (project / "out").read_text()
    assert started(project) == ["sample@tiny", "search@tiny"]
    return run, {one: birth(one.pid) for one in psutil.Process(run.pid).children(recursive=True)}


def named(family, part):
    (found,) = [one for one in family if part in " ".join(command_line(one))][-1:]
    return found


def all_gone(project, family, seconds=15):
    wait_until(lambda: not any(is_alive(one.pid, born) for one, born in family.items()), seconds)
    left = [one for one in psutil.process_iter(["cmdline"]) if str(project) in " ".join(one.info["cmdline"] or [])]
    assert not left, left


def goes_on(own):
    """The next run takes what is finished and completes."""
    project, env = own
    behave(project, "search", None)
    again = hm3(project, "run", env=env, timeout=300)
    assert again.returncode == 0, again.stderr
    assert started(project) == ["search@tiny", "pareto@tiny"]
    assert again.stdout.count(": cached") == 1
    assert "hypervolume on test" in again.stdout
    assert json.loads(dvc(project, "status", "--json")) == {}


@pytest.mark.slow  # test_real_pipeline.py kills in the same ways
@pytest.mark.parametrize(
    "victim",
    ["stage.py search", "dvc --wait-for-lock repro --single-item search@tiny"],
)
def test_a_process_under_the_run_is_killed(own, victim):
    project, _ = own
    run, family = start(own)
    named(family, victim).kill()
    assert run.wait(90) == 1
    said = (project / "out").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("hm3: ")
    all_gone(project, family)
    assert not at_work(project, "search")
    goes_on(own)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_end_does_so_at_once(own, number):
    project, _ = own
    run, family = start(own)
    began = time.monotonic()
    run.send_signal(number)
    assert run.wait(60) != 0
    took = time.monotonic() - began
    said = (project / "out").read_text()
    assert "Traceback" not in said
    assert "goes on from here" in said
    assert took < 10
    all_gone(project, family)
    goes_on(own)


@pytest.mark.slow  # flows/bench/faults.py kills it too
def test_the_prefect_server_is_killed(own):
    """It is started again, and has the whole run in its books."""
    project, _ = own
    behave(project, "search", "nap")
    run, family = start(own)
    named(family, "uvicorn").kill()
    assert run.wait(300) == 0, (project / "out").read_text()
    said = (project / "out").read_text()
    assert "Traceback" not in said
    assert "hypervolume on test" in said
    assert started(project) == ["pareto@tiny"]
    all_gone(project, family)
    assert json.loads(dvc(project, "status", "--json")) == {}


def registered(address):
    """The versions of the front, and the stages of the last pipeline run, in a server's books."""
    client = MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string="name = 'hm3-tiny'")
    runs = client.search_runs([experiment.experiment_id])
    return len(client.search_model_versions("name = 'hm3-front-tiny'")), {run.info.run_name for run in runs}


@pytest.mark.slow
def test_mlflow_is_away_from_the_start_until_the_front_is_registered(own, tmp_path):
    project, env = own
    behave(project, "search", None)
    port = free_port()
    there = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    first = subprocess.run(RUN, cwd=project, env=env | there, capture_output=True, text=True, timeout=300)
    assert first.returncode == 1
    away = f"MLflow at {there['MLFLOW_TRACKING_URI']}: does not answer"
    assert first.stderr == f"hm3: {away}; `hm3 publish` goes on from there\n"
    assert started(project) == ["sample@tiny", "search@tiny", "pareto@tiny"]
    lock = (project / "dvc.lock").read_bytes()
    with mlflow_server(tmp_path, tmp_path / "kept", port):
        again = subprocess.run(RUN, cwd=project, env=env | there, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stderr
        assert started(project) == []
        versions, runs = registered(there["MLFLOW_TRACKING_URI"])
    assert versions == 6
    assert {"sample", "search", "pareto"} <= runs
    assert (project / "dvc.lock").read_bytes() == lock
    assert json.loads(dvc(project, "status", "--json")) == {}


@pytest.mark.slow  # tests/tasks/tracking/test_tracking.py kills a server in the middle of a stage
def test_mlflow_is_killed_in_the_middle_and_comes_back(own, tmp_path):
    project, env = own
    behave(project, "search", "nap")
    port = free_port()
    there = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    with mlflow_server(tmp_path, tmp_path / "kept", port) as (_, server):
        run, _ = start((project, env | there))
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    with mlflow_server(tmp_path, tmp_path / "kept", port):
        assert run.wait(300) == 0, (project / "out").read_text()
        versions, runs = registered(there["MLFLOW_TRACKING_URI"])
    assert versions == 6
    assert {"sample", "search", "pareto"} <= runs


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-2, 72])
def test_the_clock_is_set_in_the_middle(own, tmp_path, hours):
    """All that the run started sees the step; MLflow gets, in order, what was kept for it before and after."""
    if shutil.which("cc") is None:
        missing("a C compiler")
    project, env = own
    behave(project, "search", "nap")
    clock, library, port = tmp_path / "clock", tmp_path / "clock.so", free_port()
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, ROOT / "tests" / "clock.c"], check=True)
    clock.write_text("0")
    env |= {"LD_PRELOAD": str(library), "HM3_TEST_CLOCK": str(clock)}
    env |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    run, family = start((project, env))
    clock.write_text(f"{hours * 3600}")
    with mlflow_server(tmp_path, tmp_path / "kept", port):
        assert run.wait(300) == 0, (project / "out").read_text()
        versions, runs = registered(env["MLFLOW_TRACKING_URI"])
    assert versions == 6
    assert {"sample", "search", "pareto"} <= runs
    all_gone(project, family)
    assert started(project) == ["pareto@tiny"]
    assert json.loads(dvc(project, "status", "--json")) == {}
