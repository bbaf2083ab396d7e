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
from moto.iam.access_control import IAMPolicy, PermissionResult

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
        self.variables = {name: secrets.token_hex(12) for name in infra_files.required()} | {
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
        """JSON answer of Prefect's or MLflow's API to the worker, unless `Authorization` is given."""
        password = {
            "prefect": self.variables["PREFECT_AUTH"],
            "mlflow": f"hm3-worker:{self.variables['MLFLOW_WORKER_PASSWORD']}",
        }[service]
        port = PORTS[{"prefect": "4200", "mlflow": "5000"}[service]]
        basic = {"Authorization": "Basic " + base64.b64encode(password.encode()).decode()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"} | basic | headers
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def psql(self, database, *words, user="hm3", password="POSTGRES_PASSWORD"):
        """psql as the image's entry point calls it, with the variables of the service."""
        environment = self.service("postgres")["environment"] | {"PGPASSWORD": self.variables[password]}
        address = ["--host=127.0.0.1", f"--port={PORTS['5432']}", f"--username={user}", f"--dbname={database}"]
        options = ["--no-password", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--no-align", "--tuples-only"]
        command = [str(infra_files.postgres_program("psql")), *address, *options, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def rows(self, database, query):
        done = self.psql(database, "--command", query)
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
    stack.rows("postgres", f"CREATE DATABASE {stack.service('postgres')['environment']['POSTGRES_DB']}")
    done = stack.psql("hm3", f"--file={infra_files.INFRA}/postgres/databases.sql")
    assert done.returncode == 0, done.stderr


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
        stack.once("mlflow-user")
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


@pytest.mark.parametrize(("bucket", "owner"), [("hm3-mlflow", "mlflow"), ("hm3-dvc", "worker")])
def test_a_bucket_is_open_to_one_user_who_cannot_change_its_policy(stack, bucket, owner):
    """moto keeps policies but knows no users of ours, so its reading of the policy is asked."""
    policy = IAMPolicy(stack.s3.get_bucket_policy(Bucket=bucket)["Policy"])
    for service in ("mlflow", "worker"):
        user = stack.service(service)["environment"]["AWS_ACCESS_KEY_ID"]
        for action, key in (("ListBucket", ""), ("GetObject", "/a/b"), ("PutObject", "/a/b"), ("DeleteObject", "/a")):
            answer = policy.is_action_permitted(f"s3:{action}", f"arn:aws:s3:::{bucket}{key}", user)
            assert (answer is PermissionResult.PERMITTED) == (service == owner), (user, action)
        for action in ("PutBucketPolicy", "DeleteBucket", "PutObjectAcl", "BypassGovernanceRetention"):
            answer = policy.is_action_permitted(f"s3:{action}", f"arn:aws:s3:::{bucket}", user)
            assert answer is not PermissionResult.PERMITTED, (user, action)


@pytest.mark.parametrize(
    ("user", "password", "own"),
    [
        ("prefect", "PREFECT_DB_PASSWORD", {"prefect"}),
        ("mlflow", "MLFLOW_DB_PASSWORD", {"mlflow", "mlflow_auth"}),
    ],
)
def test_a_user_of_postgres_enters_its_own_databases_alone(stack, user, password, own):
    databases = set(stack.rows("hm3", "SELECT datname FROM pg_database WHERE datallowconn"))
    assert {"hm3", "postgres", "template1", "prefect", "mlflow", "mlflow_auth"} <= databases
    entered = set()
    for database in databases:
        done = stack.psql(database, "--command", "SELECT 1", user=user, password=password)
        entered |= {database} if done.returncode == 0 else set()
        assert done.returncode == 0 or "permission denied for database" in done.stderr
    assert entered == own
    may = f"SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname = '{user}'"
    assert stack.rows("hm3", may) == ["f"]
    owned = f"SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = '{user}'"
    assert set(stack.rows("hm3", owned)) == own


def test_the_worker_is_no_administrator_of_mlflow(stack):
    api, name = "/api/2.0/mlflow", secrets.token_hex(4)
    assert refused(lambda: stack.call("mlflow", f"{api}/users/create", {"username": name, "password": "x" * 12})) == 403
    assert refused(lambda: stack.call("mlflow", f"{api}/users/get?username=hm3-admin")) == 403
    admin = base64.b64encode(f"hm3-admin:{stack.variables['MLFLOW_ADMIN_PASSWORD']}".encode()).decode()
    theirs = stack.call("mlflow", f"{api}/experiments/create", {"name": name}, Authorization=f"Basic {admin}")
    assert stack.call("mlflow", f"{api}/experiments/get?experiment_id={theirs['experiment_id']}")
    assert refused(lambda: stack.call("mlflow", f"{api}/experiments/delete", theirs)) == 403
    grant = {"username": "hm3-worker", "resource_type": "experiment", "resource_id": theirs["experiment_id"]}
    path = "/api/3.0/mlflow/users/permissions/grant"
    assert refused(lambda: stack.call("mlflow", path, grant | {"permission": "MANAGE"})) == 403
    stack.call("mlflow", path, grant | {"permission": "MANAGE"}, Authorization=f"Basic {admin}")
    assert stack.call("mlflow", f"{api}/experiments/delete", theirs) == {}
    mine = stack.call("mlflow", f"{api}/experiments/create", {"name": f"{name}-mine"})
    assert stack.call("mlflow", f"{api}/experiments/delete", mine) == {}


def test_a_user_of_mlflow_can_be_made_and_given_a_new_password_but_an_administrator_cannot(stack):
    service = stack.service("mlflow-user")

    def make(name, password):
        environment = service["environment"] | {"MLFLOW_USER_PASSWORD": password}
        command = [*service["command"][:-1], name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr

    def enter(password):
        basic = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
        path = "/api/2.0/mlflow/users/get?username=me"
        return stack.call("mlflow", path, Authorization=basic)["user"]["is_admin"]

    old, new = secrets.token_hex(12), secrets.token_hex(12)
    for password in (old, new):
        assert make("me", password) == (0, "")
        assert enter(password) is False
    assert refused(lambda: enter(old)) == 401
    assert make("hm3-admin", new) == (1, "hm3-admin is an administrator of MLflow: choose another name\n")
    assert make("you", "short")[1].startswith("MLflow answered 400: ")


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


@pytest.mark.parametrize("values", [{"image": "evil.example.org/hm3:1"}, {"env": {"LD_PRELOAD": "evil.so"}}])
def test_prefect_refuses_to_change_what_the_template_fixes(stack, values):
    deployment = stack.call("prefect", "/api/deployments/name/promote/promote-gpu")
    path = f"/api/deployments/{deployment['id']}/create_flow_run"
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    assert refused(lambda: stack.call("prefect", path, {"state": later, "job_variables": values})) == 422
    changed = {key: deployment[key] for key in ("name", "flow_id", "work_pool_name", "entrypoint")}
    assert refused(lambda: stack.call("prefect", "/api/deployments/", changed | {"job_variables": values})) == 422
    run = stack.call("prefect", path, {"state": later, "job_variables": {"cpu": "2"}, "parameters": {"member": "x"}})
    assert run["job_variables"] == {"cpu": "2"}


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
    begun = "SELECT state_name FROM flow_run WHERE start_time IS NOT NULL"
    assert stack.rows("prefect", begun) == ["Completed"]
    assert int(stack.rows("mlflow", "SELECT count(*) FROM runs")[0]) >= 7
    assert {"hm3-admin", "hm3-worker"} <= set(stack.rows("mlflow_auth", "SELECT username FROM users"))


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
