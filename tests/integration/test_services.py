"""infra/compose.yaml without containers: its commands, environments and health checks, on this machine's PostgreSQL.

moto stands for the S3 server. Then what a team does with it: a deployment, triggered over the API, runs the pipeline,
of which one stage is not up to date; the front is registered, its artifacts are in S3, its data is pushed, and a clone
pulls it.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import pytest
import yaml

from flows.servers.local import free_port
from tests import infra_files
from tests.flows.project import dvc, git
from tests.infra_files import ROOT, compose, interpolate
from tests.servers import missing

START_SECONDS, RUN_SECONDS = 240, 480
PORTS = {name: str(free_port()) for name in ("5432", "7070", "4200", "5000", "8080")}

pytestmark = pytest.mark.usefixtures("warm")


class Stack:
    """Services of compose.yaml as processes of this machine."""

    def __init__(self, folder, workspace):
        self.folder, self.workspace = folder, workspace
        self.processes = {}
        names = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY")
        self.variables = {name: secrets.token_hex(12) for name in names} | {
            "PREFECT_AUTH": f"hm3:{secrets.token_hex(12)}",
            "MLFLOW_ADMIN": "hm3-admin",
            "MLFLOW_HOSTS": f"127.0.0.1:{PORTS['5000']}",
            "HM3_PROJECT": str(workspace),
        }

    def here(self, text):
        """A word of compose.yaml with the addresses and folders of this machine."""
        text = re.sub(r"(?<![\w.])(5432|7070|4200|5000|8080)(?!\w)", lambda found: PORTS[found[0]], str(text))
        text = re.sub(r"\b(prefect|mlflow|s3|postgres)(?=:\d)|^postgres$|\b0\.0\.0\.0\b", "127.0.0.1", text)
        text = re.sub(r"^/tmp$", str(self.folder), text)
        text = re.sub(r"^/workspace\b", str(self.workspace), text)
        return re.sub(r"^/(?:opt|etc)/hm3/\S+", lambda found: str(infra_files.in_repository(found[0])), text)

    def service(self, name):
        """Command, environment and health check: nothing of our own environment but the search path."""
        raw = compose()["services"][name]
        placed = {
            "command": [self.here(one) for one in raw.get("command", [])],
            "environment": {key: self.here(one) for key, one in raw["environment"].items()},
            "health": [self.here(one) for one in raw.get("healthcheck", {"test": []})["test"][1:]],
        }
        service = interpolate(placed, self.variables)
        home = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.workspace), "OMP_WAIT_POLICY": "passive"}
        return service | {"environment": home | service["environment"]}

    def start(self, name, command=None, environment=None, **options):
        service = self.service(name)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command or service["command"],
                cwd=self.workspace if name == "worker" else self.folder,
                env=environment or service["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")[-6000:]

    def wait(self, name, check=None):
        """Until the service's own health check succeeds."""
        service = self.service(name)
        check = check or service["health"]
        assert check, f"{name} has no health check"
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(check, env=service["environment"], capture_output=True).returncode != 0:
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.3)

    def once(self, name):
        """A service that does its work and ends."""
        service = self.service(name)
        done = subprocess.run(
            service["command"],
            cwd=self.workspace,
            env=service["environment"],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self):
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in reversed(self.processes.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)

    def call(self, service, path, body=None, **headers):
        """JSON answer of Prefect's or MLflow's API, with its password unless `Authorization` is given."""
        password = {
            "prefect": self.variables["PREFECT_AUTH"],
            "mlflow": f"{self.variables['MLFLOW_ADMIN']}:{self.variables['MLFLOW_ADMIN_PASSWORD']}",
        }[service]
        port = PORTS[{"prefect": "4200", "mlflow": "5000"}[service]]
        basic = {"Authorization": "Basic " + base64.b64encode(password.encode()).decode()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"} | basic | headers
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def rows(self, database, query):
        environment = {"PGPASSWORD": self.variables["POSTGRES_PASSWORD"]}
        address = ["--host=127.0.0.1", f"--port={PORTS['5432']}", "--username=hm3", f"--dbname={database}"]
        command = [str(infra_files.postgres_program("psql")), *address, "--no-align", "--tuples-only"]
        done = subprocess.run([*command, "--command", query], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    @property
    def s3(self):
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{PORTS['7070']}",
            region_name="us-east-1",
            aws_access_key_id=self.variables["S3_ACCESS_KEY"],
            aws_secret_access_key=self.variables["S3_SECRET_KEY"],
        )

    def objects(self, bucket):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]


def start_postgres(stack, folder):
    """A cluster in a folder of the user `postgres`: it refuses to run as root."""
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres", "postgres")
    password = folder / "password"
    password.write_text(stack.variables["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    initdb = [str(infra_files.postgres_program("initdb")), f"--pgdata={folder}/data", "--username=hm3", "--no-sync"]
    initdb += ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8"]
    subprocess.run(initdb, cwd=folder, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, **user)
    command = [str(infra_files.postgres_program("postgres")), "-D", f"{folder}/data", "-p", PORTS["5432"]]
    command += ["-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    stack.start("postgres", command, {"PATH": os.environ["PATH"]}, **user)
    health = stack.service("postgres")["health"]
    first = [str(infra_files.postgres_program(health[0])), *health[1:], f"--port={PORTS['5432']}"]
    stack.wait("postgres", first)
    for statement in (infra_files.INFRA / "postgres" / "databases.sql").read_text().splitlines():
        if not statement.startswith("--"):
            stack.rows("postgres", statement)


@pytest.fixture(scope="module")
def project(tmp_path_factory, pipeline):
    """The finished project with one stage that is to be run again; its data is to be pushed to the bucket."""
    root = shutil.copytree(pipeline, tmp_path_factory.mktemp("services") / "project", symlinks=True)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params |= {"profiles": ["tiny"], "pareto": params["pareto"] | {"members": 3}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    dvc(root, "remote", "add", "--default", "bucket", "s3://hm3-dvc/team")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "fewer members, pushed to S3")
    return root


@pytest.fixture(scope="module")
def stack(project, tmp_path_factory):
    if infra_files.postgres_program("initdb") is None:
        missing("PostgreSQL (Debian's package postgresql)")
    stack = Stack(tmp_path_factory.mktemp("stack"), project)
    database = Path(tempfile.mkdtemp(prefix="hm3-postgres-"))  # other users can't enter pytest's folders
    try:
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", PORTS["7070"]]
        stack.start("s3", moto, dict(os.environ))
        start_postgres(stack, database)
        stack.start("prefect")
        url = f"http://127.0.0.1:{PORTS['7070']}/moto-api/"
        stack.wait("s3", [sys.executable, "-c", f"import urllib.request as r; r.urlopen('{url}', timeout=4)"])
        stack.once("buckets")
        stack.start("mlflow")
        stack.wait("prefect")
        stack.start("worker")
        stack.once("gpu-pool")
        stack.wait("worker")
        stack.once("deployments")
        stack.wait("mlflow")
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(database, ignore_errors=True)


def refused(call):
    with pytest.raises(urllib.error.HTTPError) as error:
        call()
    return error.value.code


def test_buckets_are_made_once(stack):
    stack.once("buckets")
    assert {one["Name"] for one in stack.s3.list_buckets()["Buckets"]} == {"hm3-mlflow", "hm3-dvc"}


def test_nobody_gets_in_without_a_password_or_under_another_name(stack):
    assert refused(lambda: stack.call("prefect", "/api/flows/filter", {}, Authorization="")) == 401
    path = "/api/2.0/mlflow/experiments/search"
    assert refused(lambda: stack.call("mlflow", path, {"max_results": 1}, Authorization="")) == 401
    assert refused(lambda: stack.call("mlflow", path, {"max_results": 1}, Host="evil.example.org")) == 403
    assert stack.call("mlflow", path, {"max_results": 1})["experiments"]


def test_deployments_and_the_pool_for_gpus_are_registered(stack):
    pool = stack.call("prefect", "/api/work_pools/hm3-gpu")
    assert pool["type"] == "kubernetes"
    assert pool["base_job_template"] == infra_files.job_template()
    names = {one["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert {one["name"] for one in stack.call("prefect", "/api/deployments/filter", {})} == names


@pytest.fixture(scope="module")
def finished(stack, project):
    """The deployment, triggered over the API as a schedule or a button would, has run."""
    deployment = stack.call("prefect", "/api/deployments/name/hm3/hm3")
    path = f"/api/deployments/{deployment['id']}/create_flow_run"
    run = stack.call("prefect", path, {"state": {"type": "SCHEDULED"}, "parameters": {"profile": "tiny"}})
    deadline = time.monotonic() + RUN_SECONDS
    while (state := stack.call("prefect", f"/api/flow_runs/{run['id']}")["state"])["type"] not in (
        "COMPLETED",
        "FAILED",
        "CRASHED",
        "CANCELLED",
    ):
        assert time.monotonic() < deadline, stack.log("worker")
        time.sleep(0.5)
    assert state["name"] == "Completed", f"{state}\n{stack.log('worker')}"
    assert json.loads(dvc(project, "status", "--json")) == {}, "the stage was not run"
    return json.loads((project / "runs" / "tiny" / "front.json").read_text())


@pytest.mark.slow  # tests/integration/test_s3.py publishes into a bucket
def test_the_front_is_registered_and_its_artifacts_are_in_s3(stack, finished):
    search = "/api/2.0/mlflow/model-versions/search?filter=name%3D%27hm3-front-tiny%27"
    versions = stack.call("mlflow", search)["model_versions"]
    assert len(versions) == len(finished["members"]) >= 2
    keys = stack.objects("hm3-mlflow")
    assert any(key.endswith("/front.json") for key in keys)
    assert sum(key.endswith("/MLmodel") for key in keys) >= len(versions)
    (front,) = [key for key in keys if key.endswith("/front.json") and "/models/" not in key][:1]
    assert json.loads(stack.s3.get_object(Bucket="hm3-mlflow", Key=front)["Body"].read()) == finished


@pytest.mark.slow  # it wants the run of the one above
def test_prefect_and_mlflow_keep_their_books_in_postgres(stack, finished):
    assert stack.rows("prefect", "SELECT state_name FROM flow_run") == ["Completed"]
    assert int(stack.rows("mlflow", "SELECT count(*) FROM runs")[0]) >= 7
    assert stack.rows("mlflow_auth", "SELECT username FROM users") == ["hm3-admin"]


@pytest.mark.slow  # tests/integration/test_dvc.py has a clone pull from a bucket
def test_the_data_is_pushed_and_a_clone_pulls_it_without_computing(stack, project, finished, tmp_path):
    environment = stack.service("worker")["environment"]

    def run(root, *words):
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(project, "push")
    assert "up to date" in run(project, "push")
    assert all(key.startswith("team/files/md5/") for key in stack.objects("hm3-dvc"))
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "a front")
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    run(tmp_path / "clone", "pull")
    assert json.loads((tmp_path / "clone" / "runs" / "tiny" / "front.json").read_text()) == finished
    assert run(tmp_path / "clone", "status", "--json").strip() == "{}"
