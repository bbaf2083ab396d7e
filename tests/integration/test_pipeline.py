"""The Prefect flow over a real DVC project: what runs, what does not, and what is left when it is killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import httpx
import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from rich.console import Console

from flows.form import Search, merged
from flows.pipeline import as_flow, run_all
from flows.processes import retry
from flows.processes.children import command_line
from flows.screen.watch import Screen
from flows.servers.gpu import LIMIT, ensure_limit, slot
from models.errors import BadInput, Failed
from tasks.project.processes import is_alive
from tasks.project.workspace import open_workspace
from tasks.tracking.mlflow import connect
from tests.fixtures_front import make_project as make_done
from tests.flows.project import OUTS, at_work, behave, dvc, git, hm3, make_project, started
from tests.servers import prefect_server

STAGES = [f"{name}@tiny" for name in OUTS]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return make_done(tmp_path_factory.mktemp("done")).run


@pytest.fixture(scope="module")
def prefect(tmp_path_factory, warm):
    with prefect_server(tmp_path_factory.mktemp("server")) as client:
        known = {PREFECT_API_URL: client["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: client["PREFECT_API_AUTH_STRING"]}
        with temporary_settings(known):
            yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory, done):
    """One project for the tests of this module, which leave it with a finished run."""
    return make_project(tmp_path_factory.mktemp("pipeline") / "project", done)


@pytest.fixture
def project(shared, done, prefect, warm, monkeypatch):
    """The shared project as the working folder of this process, whose environment comes back afterwards."""
    before = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "HM3_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HM3_TEST_DONE", str(done))
    monkeypatch.chdir(shared)
    yield shared
    os.environ.clear()
    os.environ.update(before)


def test_the_server_of_a_run_answers_only_who_has_the_secret(prefect):
    health = f"{prefect['PREFECT_API_URL']}/health"
    right = tuple(prefect["PREFECT_API_AUTH_STRING"].split(":"))
    assert httpx.get(health, auth=right).status_code == 200
    for auth, headers in ((None, {}), (("hm3", "x"), {}), (right, {"Host": "x:1"}), (right, {"Origin": "http://x"})):
        assert httpx.get(health, auth=auth, headers=headers).status_code == 403


def run(*blocks, engine="inline", fresh=False, **how):
    """The flow in this process, as `hm3 run` does it: what it returns, and the lines that it shows."""
    screen = Screen(Console(file=io.StringIO(), width=160))
    workspace = replace(open_workspace("tiny"), engine=engine)
    params = merged(workspace.params, workspace.params.seed, *blocks)
    try:
        with screen:
            work = partial(run_all, workspace, screen, params, fresh=fresh, push=False, **how)
            return as_flow(work, profile="tiny", engine=engine), screen.console.file.getvalue()
    except (BadInput, Failed) as error:
        return error, screen.console.file.getvalue()


def set_parameter(project, block, key, value):
    path = project / "params.yaml"
    data = yaml.safe_load(path.read_text())
    data[block][key] = value
    path.write_text(yaml.safe_dump(data))


def last_flow_run(wanted=8):
    """State names of the last flow run's tasks, by name of the task run."""
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_runs(sort="START_TIME_DESC", limit=1)[0]
        filters = {"flow_run_filter": FlowRunFilter(id={"any_": [flow_run.id]})}
        for _ in range(50):  # task runs are recorded through events, a moment later
            found = client.read_task_runs(**filters)
            if len(found) >= wanted and all(one.state.is_final() for one in found):
                break
            time.sleep(0.2)
        return flow_run, {one.name: one.state.name for one in found}


def test_a_run_walks_all_stages_publishes_the_front_and_leaves_dvc_clean(project):
    said, shown = run()
    assert started(project) == STAGES
    assert [line.split(":")[0] for line in shown.splitlines() if ": done in" in line] == STAGES
    assert json.loads(dvc(project, "status", "--json")) == {}
    assert len(said["members"]) == 6
    assert "hypervolume on test" in shown
    flow_run, states = last_flow_run()
    assert states == dict.fromkeys([*STAGES, "report", "publish"], "Completed")
    assert flow_run.state.name == "Completed"
    with get_client(sync_client=True) as client:
        keys = {one.key: one.type for one in client.read_latest_artifacts()}
    assert keys["front-tiny"] == "markdown"
    assert keys["plot-front-tiny"] == keys["plot-search-tiny"] == "image"
    assert {f"progress-{name}-tiny" for name in OUTS} <= set(keys)
    registry = connect(project / ".hm3")
    assert len(registry.search_model_versions("name = 'hm3-front-tiny'")) == 6
    experiment = registry.get_experiment_by_name("hm3-tiny").experiment_id
    parent = registry.search_runs([experiment], "tags.`prefect.flow_run_id` != ''")[0]
    assert parent.info.run_name == flow_run.name
    assert set(json.loads((project / ".hm3" / "times" / "tiny.json").read_text())) == set(OUTS)


def test_a_run_with_nothing_changed_starts_no_stage(project):
    _, shown = run()
    assert started(project) == []
    assert [line for line in shown.splitlines() if line.endswith(": cached")] == [f"{one}: cached" for one in STAGES]
    _, states = last_flow_run()
    assert states == dict.fromkeys(STAGES, "Cached") | {"report": "Completed", "publish": "Completed"}
    assert "publish: hm3-front-tiny is already" in shown


def test_what_a_stage_refuses_is_said_in_its_words(project):
    set_parameter(project, "search", "budget", 7)
    behave(project, "search", "profiles/tiny.yaml: experts.math: no such folder; mend it")
    error, shown = run()
    behave(project, "search", None)
    assert isinstance(error, BadInput)
    assert str(error) == "profiles/tiny.yaml: experts.math: no such folder; mend it"
    assert f"its log is {project}/.hm3/logs/search@tiny.log" in shown
    flow_run, states = last_flow_run(len(STAGES) - 1)
    assert flow_run.state.name == states["search@tiny"] == "Failed"
    assert started(project) == ["search@tiny"]


def test_a_changed_stage_runs_again_if_the_disk_was_busy_and_dvc_is_asked_for_those_below(project, monkeypatch):
    monkeypatch.setattr(retry, "WAITS", (0.0, 0.0))
    behave(project, "search", "busy")
    _, shown = run(engine="ray")
    assert (project / ".hm3" / "started.txt").read_text().split()[2::3] == ["ray"] * 2  # the stage is told, and
    assert not {"HM3_ENGINE", "HM3_STATE"} & os.environ.keys()  # nobody else
    assert started(project) == ["search@tiny"] * 2
    assert "search@tiny: done in" in shown
    _, states = last_flow_run()
    assert states["search@tiny"] == "Completed"
    assert "pareto@tiny: found unchanged" in shown  # the outs of search are the same as before
    assert shown.count(": cached") == 4


def pipeline_runs(project):
    """How many runs of the pipeline MLflow has."""
    registry = connect(project / ".hm3")
    experiment = registry.get_experiment_by_name("hm3-tiny").experiment_id
    return len(registry.search_runs([experiment], "tags.`prefect.flow_run_id` != ''"))


def test_other_parameters_become_an_experiment_and_the_project_stays_as_it_is(project):
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "done")
    before = {path: (project / path).read_bytes() for path in ("params.yaml", "dvc.lock")}
    versions = len(connect(project / ".hm3").search_model_versions("name = 'hm3-front-tiny'"))
    tracked = pipeline_runs(project)
    said, shown = run(Search(budget=99))
    assert pipeline_runs(project) == tracked + 1  # in the project's record, not in one of the tree
    assert started(project) == ["search@tiny"]
    name = said["experiment"]
    assert f"dvc exp apply {name}" in shown
    assert git(project, "status", "--porcelain") == ""
    assert {path: (project / path).read_bytes() for path in before} == before
    assert name in dvc(project, "exp", "list", "--name-only").split()
    shown_parameters = json.loads(dvc(project, "params", "diff", "--json", "HEAD", name))
    assert shown_parameters == {"params.yaml": {"search.budget": {"old": 7, "new": 99, "diff": 92}}}
    assert len(connect(project / ".hm3").search_model_versions("name = 'hm3-front-tiny'")) == versions
    assert git(project, "worktree", "list").count("\n") == 1


def test_a_stage_that_crashes_is_not_tried_again(project):
    set_parameter(project, "search", "budget", 9)
    behave(project, "search", "crash")
    error, _ = run()
    behave(project, "search", None)
    assert type(error) is Failed
    assert started(project) == ["search@tiny"]


def test_a_stage_that_takes_too_long_is_stopped_with_all_its_processes(project, cold):
    behave(project, "search", "sleep")
    error, shown = run(hours=8 / 3600)
    behave(project, "search", None)
    assert isinstance(error, Failed)
    assert str(error).startswith("search@tiny: stopped after stage_hours=")
    assert started(project) == ["search@tiny"], shown
    assert not at_work(project, "search")


def test_a_stage_on_a_gpu_holds_one_of_the_servers_slots(prefect):
    def taken():
        with get_client(sync_client=True) as client:
            return client.read_global_concurrency_limit_by_name(LIMIT).active_slots

    ensure_limit()
    with slot("cuda:1"):
        assert taken() == 1
    assert taken() == 0
    with slot("cpu"):
        assert taken() == 0


def test_fresh_runs_what_did_not_change_and_leaves_the_journal_aside(project):
    journal = project / ".hm3" / "journal" / "tiny"
    journal.mkdir(parents=True)
    (journal / "00000001.jsonl").write_text("{}")
    behave(project, "zoo", "stop here")
    error, shown = run(fresh=True)
    behave(project, "zoo", None)
    assert isinstance(error, BadInput)
    assert started(project) == ["zoo@tiny"], (error, shown)
    assert "zoo@tiny: computed again" in shown
    assert not journal.exists()
    assert (project / ".hm3" / "journal-aside" / "tiny-1" / "00000001.jsonl").is_file()


@pytest.fixture
def own(tmp_path, done, cold):
    """A project of its own, and the environment of a user who has set nothing."""
    unset = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "HM3_STATE")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    project = make_project(tmp_path / "project", done, ["sample", "search", "pareto"])
    return project, env | {"HM3_TEST_DONE": str(done)}


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


@pytest.mark.slow  # test_real_pipeline.py kills a run, too, and test_faults.py ends one
def test_a_killed_run_leaves_no_process_behind_and_the_next_one_goes_on(own):
    project, env = own
    behave(project, "search", "sleep")
    command = [sys.executable, "-m", "flows.cli", "run"]
    with (project / "out").open("w") as out:
        run = subprocess.Popen(command, cwd=project, env=env, stdout=out, stderr=out, start_new_session=True)
    wait_until(lambda: run.poll() is not None or "search has copied" in (project / "out").read_text(), 180)
    family = psutil.Process(run.pid).children(recursive=True)
    names = [" ".join(command_line(one)) for one in family]
    for part in ("uvicorn", "dvc --wait-for-lock repro --single-item search@tiny", "stage.py search"):
        assert any(part in name for name in names), names
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not any(is_alive(one.pid, one.create_time()) for one in family if one.is_running()), 15)
    assert started(project) == ["sample@tiny", "search@tiny"]

    behave(project, "search", None)
    again = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert started(project) == ["search@tiny", "pareto@tiny"]
    assert again.stdout.count(": cached") == 1
    assert "hypervolume on test" in again.stdout
    left = [one for one in psutil.process_iter(["cmdline"]) if str(project) in " ".join(one.info["cmdline"] or [])]
    assert not left


def test_a_server_that_does_not_answer_is_said_in_one_line(own):
    project, env = own
    failed = hm3(project, "run", env=env | {"PREFECT_API_URL": "http://me:hidden@127.0.0.1:9/api"})
    assert failed.returncode == 1
    assert failed.stderr.startswith("hm3: PREFECT_API_URL: http://127.0.0.1:9/api does not answer; ")
    assert "hidden" not in failed.stdout + failed.stderr
    assert started(project) == []
