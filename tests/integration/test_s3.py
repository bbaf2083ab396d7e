"""S3 from the command line, and MLflow's artifacts in a bucket that only its server has access to."""

import json
import os
import subprocess
import sys
import urllib.request

import mlflow
import pytest

from tests.fixtures_front import make_project
from tests.flows.project import hm3
from tests.s3_server import CREDENTIALS, client_of, s3_server
from tests.servers import mlflow_server
from tests.small_tasks import make_family_project

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        client_of(url).create_bucket(Bucket="team")
        yield url


@pytest.fixture(scope="module", autouse=True)
def environment(s3):
    """That of a user who has set nothing but access to the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HM3_STATE", "AWS_"))]:
            patch.delenv(name)
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3}.items():
            patch.setenv(name, value)
        yield


def keys(s3, prefix):
    found = client_of(s3).list_objects_v2(Bucket="team", Prefix=prefix).get("Contents", [])
    return {one["Key"].removeprefix(prefix) for one in found}


def test_a_member_is_exported_to_a_bucket_once(s3, tmp_path):
    workspace = make_project(tmp_path / "project")
    done = hm3(workspace.root, "export", "balanced", "s3://team/members/balanced")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("s3://team/members/balanced: member ")
    there = keys(s3, "members/balanced/")
    assert {"manifest.json", "model.safetensors", "config.json", "tokenizer.json", "recipe.yaml", "README.md"} <= there
    again = hm3(workspace.root, "export", "balanced", "s3://team/members/balanced")
    assert again.returncode == 2
    assert again.stderr == "hm3: s3://team/members/balanced: exists; give another prefix, or delete it first\n"
    missing = hm3(workspace.root, "export", "balanced", "s3://nobody/balanced")
    assert missing.returncode == 2
    assert missing.stderr.startswith("hm3: s3://nobody/balanced: no such bucket at ")
    assert list((workspace.state / "scratch").iterdir()) == []


def test_what_is_merged_into_a_bucket_scores_as_what_is_merged_into_a_folder(make_family, s3, tmp_path):
    workspace = make_family_project(tmp_path / "project", make_family)
    recipe = "merge_method: linear\nmodels: [{model: runs/p/zoo/a, parameters: {weight: 1}}]\n"
    (workspace.root / "recipe.yaml").write_text(recipe)
    for out in ("merged", "s3://team/merged"):
        done = hm3(workspace.root, "merge", "recipe.yaml", out)
        assert done.returncode == 0, done.stderr
    scores = []
    for target in ("merged", "s3://team/merged"):
        done = hm3(workspace.root, "evaluate", target, "--json")
        assert done.returncode == 0, done.stderr
        scores.append(json.loads(done.stdout))
        assert scores[-1].pop("target") == target
    assert scores[0] == scores[1]


@pytest.fixture
def mlflow_address(s3, tmp_path):
    """A server that passes artifacts on to the bucket."""
    with mlflow_server(tmp_path, "s3://team/mlflow") as (url, _):
        yield url


def test_a_front_is_published_into_a_bucket_by_a_client_without_access_to_it(mlflow_address, s3, tmp_path, monkeypatch):
    workspace = make_project(tmp_path / "project")
    for name in (*CREDENTIALS, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    done = hm3(workspace.root, "publish", "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    versions = json.loads(done.stdout)["versions"]
    weights = [one for one in keys(s3, "mlflow/") if one.endswith("model.safetensors")]
    assert len(weights) == len(versions)
    client = mlflow.MlflowClient(mlflow_address)
    source = client.get_model_version_by_alias("hm3-front-tiny", "balanced").source
    query = f"{mlflow_address}/api/2.0/mlflow/logged-models/{source.removeprefix('models:/')}"
    with urllib.request.urlopen(query, timeout=30) as reply:
        assert json.load(reply)["model"]["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
    download = f"import mlflow; print(mlflow.artifacts.download_artifacts({source!r}, dst_path={str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", download], capture_output=True, text=True)
    assert os.path.isfile(os.path.join(done.stdout.splitlines()[-1], "MLmodel")), done.stderr
    assert "s3" not in hm3(workspace.root, "doctor", "--json", timeout=200).stdout
