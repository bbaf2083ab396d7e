"""The buckets that are configured are found and tried out, against moto's S3 server and a real MLflow database."""

import os

import mlflow
import pytest

from tasks.doctor.doctor import buckets
from tasks.project.workspace import open_workspace
from tests.s3_server import CREDENTIALS, client_of, proxy, s3_server

SERVERS = {"MLflow": ("as the environment says", True)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        client_of(url).create_bucket(Bucket="team")
        yield url


@pytest.fixture
def root(server, tmp_path, monkeypatch):
    """A project, and the environment of a user of this server."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "HM3_STATE"))]:
        monkeypatch.delenv(name)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("profiles: [p]\n")
    (tmp_path / "profiles" / "p.yaml").write_text("{made: tiny, experts: {a: }, objectives: [{name: x, task: y}]}\n")
    return tmp_path


def remote(root, url, **settings):
    (root / ".dvc").mkdir(exist_ok=True)
    lines = [f"url = {url}", *(f"{name} = {value}" for name, value in settings.items())]
    (root / ".dvc" / "config").write_text("[core]\nremote = it\n['remote \"it\"']\n" + "\n".join(lines) + "\n")


def look(root):
    return [(one.what, one.status, one.text) for one in buckets(open_workspace("p", root), SERVERS)]


def the_fault(root):
    ((what, status, text),) = look(root)
    assert (what, status) == ("bucket", "bad")
    return text


def left(server, prefix):
    return client_of(server).list_objects_v2(Bucket="team", Prefix=prefix).get("KeyCount")


def test_nothing_is_said_where_no_bucket_is_configured(root):
    assert look(root) == []
    remote(root, "/some/folder")
    assert look(root) == []


def test_the_bucket_of_the_dvc_remote_is_written_read_and_deleted_from(root, server):
    remote(root, "s3://team/clean")
    good = "DVC remote it: s3://team/clean can be written, read and deleted from"
    assert look(root) == [("bucket", "good", good)]
    assert left(server, "clean/") == 0


def test_the_bucket_of_the_state_is_tried(root, server, monkeypatch):
    monkeypatch.setenv("HM3_STATE", "s3://team/state")
    assert look(root) == [("bucket", "good", "HM3_STATE: s3://team/state can be written, read and deleted from")]
    monkeypatch.setenv("HM3_STATE", "s3://nowhere/state")
    assert "no such bucket" in the_fault(root)


def test_settings_of_the_remote_go_before_the_environment(root, server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    remote(root, "s3://team/hm3", endpointurl=server, access_key_id="a", secret_access_key="b", region="eu-west-1")
    assert [status for _, status, _ in look(root)] == ["good"]


def test_missing_credentials_are_found(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where no ~/.aws is
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    remote(root, "s3://team/hm3")
    assert the_fault(root).endswith("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")


def test_a_missing_bucket_is_found(root):
    remote(root, "s3://nobody/hm3")
    assert the_fault(root).startswith("DVC remote it: s3://nobody/hm3: no such bucket at http://127.0.0.1:")


@pytest.mark.parametrize(("method", "action"), [("PUT", "PutObject"), ("GET", "GetObject"), ("DELETE", "DeleteObject")])
def test_each_right_that_is_missing_is_named(root, server, method, action):
    with proxy(server) as (url, faults):
        faults.fault = lambda how, path: 403 if how == method else None
        remote(root, "s3://team/hm3", endpointurl=url)
        assert f"denies {action} with these credentials" in the_fault(root)


def test_credentials_that_the_server_does_not_know_are_found(root, tmp_path):
    with s3_server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="0") as strict:
        remote(root, "s3://team/hm3", endpointurl=strict)
        assert "does not take the credentials (InvalidAccessKeyId); set AWS_ACCESS_KEY_ID" in the_fault(root)


def test_a_server_that_is_away_is_found(root):
    remote(root, "s3://team/hm3", endpointurl="http://me:hidden@127.0.0.1:9")
    assert "hidden" not in the_fault(root)
    assert "http://127.0.0.1:9 does not answer as it should" in the_fault(root)


def test_a_login_is_no_part_of_the_address_of_a_bucket(root):
    remote(root, "s3://me:hidden@team/hm3")
    assert the_fault(root).startswith("DVC remote it: s3://team/hm3: no folder in a bucket; write it as s3://")


def test_a_broken_configuration_is_found(root):
    remote(root, "s3://team/hm3", no_such_setting="1")
    assert the_fault(root).startswith(".dvc/config: ")


def test_artifacts_that_clients_put_into_a_bucket_are_tried_and_others_not(root, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    client.create_experiment("hm3-other", "s3://nobody/mlflow")
    assert look(root) == []
    client.create_experiment("hm3-p", "s3://team/mlflow/1")
    good = "MLflow artifacts: s3://team/mlflow/1 can be written, read and deleted from"
    assert look(root) == [("bucket", "good", good)]
    assert left(server, "mlflow/") == 0
