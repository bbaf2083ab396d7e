"""`hm3 up` and `hm3 down`: real servers, a deployment that the worker runs, and nothing left afterwards."""

import json
import os
import shutil
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows.processes import is_alive
from flows.servers import in_use, read_record
from tests.fixtures_front import make_project as make_done
from tests.flows.project import hm3, make_project, started

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    done = make_done(tmp_path_factory.mktemp("done")).run
    root = make_project(tmp_path_factory.mktemp("servers") / "project", done, ["pareto"])
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "flows").symlink_to(ROOT / "flows")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "HM3_STATE"):
            patch.delenv(name, raising=False)
        patch.setenv("HM3_TEST_DONE", str(done))
        yield root
        hm3(root, "down")


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def addresses(project):
    up = hm3(project, "up", "--json", timeout=240)
    assert up.returncode == 0, up.stderr
    return json.loads(up.stdout)


def test_the_deployment_shows_every_parameter_with_its_description(addresses):
    deployment = call(f"{addresses['prefect']}/api/deployments/name/hm3/hm3")
    schema = deployment["parameter_openapi_schema"]
    assert set(schema["properties"]) == {"profile", "params", "fresh", "push"}
    blocks = schema["definitions"]
    assert blocks["SearchParams"]["properties"]["budget"]["description"].startswith("Item evaluations")
    for block in blocks.values():
        assert all("description" in field or "$ref" in field for field in block["properties"].values())
    assert deployment["work_pool_name"] == "hm3-local"
    assert "/" not in (ROOT / "prefect.yaml").read_text().replace("flows/pipeline.py", "")


def test_a_deployment_that_is_triggered_over_the_api_runs_the_pipeline(project, addresses):
    api = f"{addresses['prefect']}/api"
    deployment = call(f"{api}/deployments/name/hm3/hm3")
    run = call(f"{api}/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    deadline = time.monotonic() + 200
    while (state := call(f"{api}/flow_runs/{run['id']}")["state"])["type"] in ("SCHEDULED", "PENDING", "RUNNING"):
        assert time.monotonic() < deadline, (project / ".hm3" / "logs" / "worker.log").read_text()
        time.sleep(0.5)
    assert state["name"] == "Completed", (project / ".hm3" / "logs" / "worker.log").read_text()
    assert started(project) == ["pareto@tiny"]
    assert call(f"{addresses['mlflow']}/api/2.0/mlflow/registered-models/get?name=hm3-front-tiny")


def test_up_again_leaves_the_servers_as_they_are_and_later_commands_use_them(project, addresses):
    before = read_record(project / ".hm3")
    again = hm3(project, "up", "--json")
    assert json.loads(again.stdout) == addresses
    assert read_record(project / ".hm3") == before
    used = in_use(project, project / ".hm3")
    assert used == {"Prefect": (f"{addresses['prefect']}/api", True), "MLflow": (addresses["mlflow"], True)}


def test_down_ends_them_with_everything_under_them(project, addresses):
    servers = read_record(project / ".hm3")
    assert set(servers) == {"prefect", "worker", "mlflow"}
    family = [one.pid for server in servers.values() for one in psutil.Process(server.pid).children(recursive=True)]
    down = hm3(project, "down")
    assert down.returncode == 0, down.stderr
    assert not any(is_alive(pid) for pid in [*family, *(server.pid for server in servers.values())])
    assert not (project / ".hm3" / "servers.json").exists()


def test_records_of_processes_that_are_gone_do_not_count(tmp_path):
    process = psutil.Process()
    entry = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "started": process.create_time(), "log": ""}
    stale = entry | {"started": process.create_time() - 1000}
    (tmp_path / "servers.json").write_text(json.dumps({"prefect": entry, "mlflow": stale}))
    assert set(read_record(tmp_path)) == {"prefect"}
