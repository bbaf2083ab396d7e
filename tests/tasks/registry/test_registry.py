"""The front in the MLflow registry: what is registered, how it loads, and what happens when publishing is cut off."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.agent.agent import load_agent
from models.errors import BadInput, Failed
from models.merge.recipe import parse_recipes, read_recipes, recipe_name
from tasks.front.checkpoint import write_member
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.registry.publish import Publication, publish
from tasks.registry.versions import RECORD, open_registry
from tasks.tracking.mlflow import connect, local_store
from tasks.tracking.tracker import Tracker

ROOT = Path(__file__).parents[3]

LOAD_ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("models", "tasks", "flows", "hm3"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/hm3-front-tiny@balanced")
print(json.dumps(model.predict(["three plus", "def add"], params={"max_new_tokens": 6})))
"""

KILLED_HALFWAY = """
import os, sys
from pathlib import Path
from tasks.project.progress import Progress
from tasks.registry.publish import Publication, publish
from tasks.project.workspace import open_workspace

add, count = Publication._add_version, 0

def die(self, name, *rest):
    global count
    count += name == self.name
    if count == 3:  # its files are sent, its version is not made
        os.kill(os.getpid(), 9)
    return add(self, name, *rest)

Publication._add_version = die
publish(open_workspace("tiny", Path(sys.argv[1])))
"""


def versions(client, name="hm3-front-tiny"):
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))


@pytest.fixture(scope="module")
def published(shared_project):
    """Workspace, client and result of one publication."""
    client = connect(shared_project.state)
    tracker = Tracker(shared_project, lambda text: pytest.fail(text))
    tracker.start("morning")
    return shared_project, client, publish(shared_project, parent=tracker.run_id), tracker.run_id


def test_every_member_becomes_a_version_of_one_front(published):
    workspace, client, result, _ = published
    front = Front.read(workspace.run)
    made = versions(client)
    assert [one.tags["member"] for one in made] == [one.id for one in front.members]
    assert {one.tags["front_id"] for one in made} == {front.digest}
    assert result.versions == {one.tags["member"]: int(one.version) for one in made}
    assert not result.already


def test_the_tags_of_a_version_are_the_few_that_people_filter_by(published):
    workspace, client, _, _ = published
    front = Front.read(workspace.run)
    for member, version in zip(front.members, versions(client), strict=True):
        tags = version.tags
        assert {name for name in tags if not name.startswith("test.")} == {
            *("member", "layers", "preference", "mergekit", "front_id", "weights")
        }
        assert len(tags) <= 12
        assert {name: float(tags[f"test.{name}"]) for name in front.tasks} == pytest.approx(
            {name: member.scores["test"][name] for name in front.tasks}
        )
        assert tags["layers"] == str(member.layers)
        assert tags["mergekit"] == member.mergekit
        weights = {name: float(one) for name, _, one in (pair.partition("=") for pair in tags["preference"].split(","))}
        assert weights == pytest.approx(member.serves, abs=0.01)
    shallow = client.search_model_versions(f"name = 'hm3-front-tiny' and tags.layers = '{member.layers}'")
    assert member.id in {one.tags["member"] for one in shallow}


def test_the_rest_is_in_a_file_of_the_version_and_hm3_reads_the_scores_there(published):
    workspace, client, result, _ = published
    front = Front.read(workspace.run)
    family = json.loads((workspace.zoo / "family.json").read_text())
    registered = open_registry(workspace)
    for member in front.members:
        number = result.versions[member.id]
        uri = f"models:/hm3-front-tiny/{number}"
        told = mlflow.artifacts.load_dict(f"{uri}/member.json")
        assert told["scores"] == member.scores
        assert (told["reported"], told["serves"]) == (member.reported, member.serves)
        assert (told["base"], told["experts"]) == (family["base"], family["experts"])
        assert told["digests"]["math"] == family["digests"]["math"]
        assert told["agent_version"] == result.agent_version
        version = registered.versions[number]
        client.log_metric(version.entry.run_id, "selection/math", 0.01, model_id=version.model_id)
        assert registered.scores(version) == member.scores["selection"]
    recipe = mlflow.artifacts.load_text(f"{uri}/artifacts/{member.id}/recipe.yaml")
    assert recipe_name(parse_recipes(recipe, "it")[-1]) == recipe_name(read_recipes(workspace.run / member.recipe)[-1])


def test_the_scores_of_a_version_from_before_there_was_that_file_are_its_metrics(project):
    result = publish(project)
    member = Front.read(project.run).members[0]
    registered = open_registry(project)
    version = registered.versions[result.versions[member.id]]
    (local_artifacts(registered, version) / RECORD).unlink()
    assert registered.scores(version) == pytest.approx(member.scores["selection"])
    assert registered.scores(version, "test") == pytest.approx(member.scores["test"])


def local_artifacts(registered, version):
    """Where the files of a version lie on this machine."""
    return Path(unquote(urlsplit(registered.client.get_logged_model(version.model_id).artifact_location).path))


def test_scores_are_metrics_of_the_logged_model_too(published):
    workspace, client, _, _ = published
    version = client.get_model_version("hm3-front-tiny", "2")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    expected = Front.read(workspace.run).members[1].scores["test"]["math"]
    assert {one.key: one.value for one in model.metrics}["test/math"] == pytest.approx(expected)


def test_aliases_name_the_balanced_member_and_the_best_of_each_objective(published):
    workspace, client, result, _ = published
    front = Front.read(workspace.run)
    aliases = client.get_registered_model("hm3-front-tiny").aliases
    assert set(aliases) == set(front.aliases())
    assert set(aliases) == {"balanced", "balanced-3", *(f"best-{name}" for name in front.objectives)}
    assert {alias: int(version) for alias, version in aliases.items()} == result.aliases
    best = max(front.members, key=lambda one: one.scores["selection"]["code"])
    assert int(aliases["best-code"]) == result.versions[best.id]
    shallow = min(one.layers for one in front.members)
    assert client.get_model_version_by_alias("hm3-front-tiny", "best-layers").tags["layers"] == str(shallow)


def test_a_balanced_alias_of_an_older_front_is_taken_away(published):
    workspace, client, _, _ = published
    client.set_registered_model_alias("hm3-front-tiny", "balanced-7", "1")
    client.set_registered_model_alias("hm3-front-tiny", "balanced-by-hand", "1")
    assert not publish(workspace).already
    left = client.get_registered_model("hm3-front-tiny").aliases
    assert set(left) == {*Front.read(workspace.run).aliases(), "balanced-by-hand"}
    client.delete_registered_model_alias("hm3-front-tiny", "balanced-by-hand")
    assert publish(workspace).already


def test_publishing_is_recorded_in_a_run_within_the_pipeline_run(published):
    _, client, _, parent = published
    experiment = client.get_experiment_by_name("hm3-tiny").experiment_id
    (run,) = client.search_runs([experiment], "tags.stage = 'publish'")
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.info.status == "FINISHED"
    assert {one.run_id for one in versions(client)} == {run.info.run_id}


def test_publishing_again_creates_nothing(published):
    workspace, client, result, _ = published
    experiment = client.get_experiment_by_name("hm3-tiny").experiment_id
    before = len(client.search_runs([experiment])), len(client.search_logged_models([experiment]))
    again = publish(workspace)
    assert again.already
    assert again.versions == result.versions
    assert len(versions(client)) == len(result.versions)
    assert len(versions(client, "hm3-agent-tiny")) == 1
    assert (len(client.search_runs([experiment])), len(client.search_logged_models([experiment]))) == before


def test_the_agent_is_a_version_with_its_files(published, tmp_path):
    workspace, _, result, _ = published
    got = mlflow.artifacts.download_artifacts(f"models:/hm3-agent-tiny/{result.agent_version}", dst_path=str(tmp_path))
    for path in (workspace.run / "agent").iterdir():
        assert (Path(got) / path.name).read_bytes() == path.read_bytes()


def test_the_agent_loads_from_the_registry_with_all_that_it_knows(published, tmp_path):
    workspace, _, result, _ = published
    got = mlflow.artifacts.download_artifacts(f"models:/hm3-agent-tiny/{result.agent_version}", dst_path=str(tmp_path))
    ours, theirs = load_agent(workspace.run / "agent"), load_agent(Path(got))
    assert theirs.config == ours.config
    described = np.random.default_rng(1).random((3, 2))
    for mine, other in zip(ours.surrogate.predict(described), theirs.surrogate.predict(described), strict=True):
        np.testing.assert_array_equal(other, mine)


def test_a_version_answers_as_the_exported_member_does(published, tmp_path):
    workspace, _, _, _ = published
    member = Front.read(workspace.run).aliases()["best-translation"]
    write_member(workspace, member, tmp_path / "out", Progress())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompts = ["three plus", "drei plus vier ist", "d"]
    expected = []
    for prompt in prompts:
        batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            tokens = model.generate(**batch, do_sample=False, max_new_tokens=8)[0, batch["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    loaded = mlflow.pyfunc.load_model("models:/hm3-front-tiny@best-translation")
    assert loaded.metadata.signature.params is not None
    assert loaded.predict(prompts, params={"max_new_tokens": 8}) == expected
    assert loaded.predict(pd.DataFrame({"prompt": prompts}), params={"max_new_tokens": 8}) == expected
    first = expected[0]
    assert loaded.predict(prompts[:1], params={"max_new_tokens": 8, "stop": [first[2:4]]}) == [
        first[: first.index(first[2:4])]
    ]
    assert (
        member.id
        in mlflow.models.get_model_info("models:/hm3-front-tiny@best-translation").flavors["python_function"][
            "artifacts"
        ]["member"]["path"]
    )


def test_a_version_loads_and_answers_without_hm3(published, tmp_path):
    workspace, _, _, _ = published
    uri = local_store(workspace.state)[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_ALONE, uri], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == mlflow.pyfunc.load_model("models:/hm3-front-tiny@balanced").predict(
        ["three plus", "def add"], params={"max_new_tokens": 6}
    )


def test_a_version_serves_the_forms_of_request_that_mlflow_knows(published):
    loaded = mlflow.pyfunc.load_model("models:/hm3-front-tiny@balanced")
    given = {"params": {"max_new_tokens": 3}}
    expected = {"predictions": loaded.predict(["three plus"], **given)}
    example = mlflow.artifacts.load_dict("models:/hm3-front-tiny@balanced/serving_input_example.json")
    with TestClient(scoring_server.init(loaded)) as server:
        for body in (
            {"inputs": ["three plus"]},
            {"dataframe_split": {"columns": ["prompt"], "data": [["three plus"]]}},
            {"dataframe_records": [{"prompt": "three plus"}]},
        ):
            assert server.post("/invocations", json=body | given).json() == expected
        assert server.post("/invocations", json=example).status_code == 200


def test_a_version_holds_code_and_safetensors_but_no_pickle_and_no_path_of_this_machine(published, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts("models:/hm3-front-tiny@balanced", dst_path=str(tmp_path)))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "served_model.py", "requirements.txt", "input_example.json"} <= files
    assert not [name for name in files if Path(name).suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth")]
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert path.read_bytes()[:1] != b"\x80", f"{path.name} looks like a pickle"
    text = (folder / "MLmodel").read_text()
    assert str(ROOT) not in text
    assert yaml.safe_load(text)["flavors"]["python_function"]["model_code_path"] == "served_model.py"
    (weights,) = folder.rglob("*.safetensors")
    with safe_open(weights, "pt") as tensors:
        assert "model.embed_tokens.weight" in tensors.keys()  # noqa: SIM118 (no mapping)
    pinned = (folder / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in pinned
    assert not [one for one in pinned if "==" not in one]


def test_killed_in_the_middle_it_is_completed_without_a_second_version_of_anything(project):
    command = [sys.executable, "-c", KILLED_HALFWAY, str(project.root)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == -9
    client = connect(project.state)
    assert len(versions(client)) == 2
    assert client.get_registered_model("hm3-front-tiny").aliases == {}
    result = publish(project)
    made = versions(client)
    assert [one.tags["member"] for one in made] == [one.id for one in Front.read(project.run).members]
    assert not result.already
    assert len(versions(client, "hm3-agent-tiny")) == 1
    experiment = client.get_experiment_by_name("hm3-tiny").experiment_id
    assert len(client.search_logged_models([experiment])) == len(made) + 1
    assert [run.info.status for run in client.search_runs([experiment])] == ["FINISHED"]
    assert publish(project).already


def test_a_half_sent_model_is_sent_again(project):
    client = connect(project.state)
    publication = Publication(project, Front.read(project.run), client, None)
    marks = {"front_id": publication.front.digest, "weights": "true", "member": publication.front.members[0].id}
    left = client.create_logged_model(publication.experiment, "left", None, marks)
    result = publish(project)
    assert left.model_id not in {one.source.removeprefix("models:/") for one in versions(client)}
    assert len(result.versions) == len(versions(client))
    assert mlflow.pyfunc.load_model("models:/hm3-front-tiny/1").predict(["a"], params={"max_new_tokens": 1})


def test_another_front_gets_new_versions_and_takes_the_aliases(project):
    first = publish(project)
    path = project.run / "front.json"
    front = json.loads(path.read_text())
    front["members"] = front["members"][2:]
    path.write_text(json.dumps(front))
    second = publish(project)
    client = connect(project.state)
    assert second.front_id != first.front_id
    assert min(second.versions.values()) == len(first.versions) + 1
    assert len(versions(client, "hm3-agent-tiny")) == 1
    aliases = client.get_registered_model("hm3-front-tiny").aliases
    assert min(map(int, aliases.values())) > max(first.versions.values())


def test_registered_by_recipe_alone_a_version_has_no_weights_and_says_so(project):
    path = project.root / "profiles" / "tiny.yaml"
    path.write_text(path.read_text() + "registry: {weights: none}\n")
    publish(open_workspace("tiny", project.root))
    folder = Path(mlflow.artifacts.download_artifacts("models:/hm3-front-tiny@balanced"))
    assert not list(folder.rglob("*.safetensors"))
    assert len(list(folder.rglob("recipe.yaml"))) == 1
    with pytest.raises(RuntimeError, match=r"hm3 merge recipe\.yaml"):
        mlflow.pyfunc.load_model("models:/hm3-front-tiny@balanced")


def test_what_is_missing_is_named(project):
    for path in (project.run / "agent").iterdir():
        path.unlink()
    with pytest.raises(BadInput, match="runs/tiny/agent: no files"):
        publish(project)
    (project.run / "front.json").unlink()
    with pytest.raises(BadInput, match=r"runs/tiny/front\.json: no such file"):
        publish(project)


def test_a_server_that_is_away_is_a_failure_with_the_remedy(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Failed, match=r"^MLflow at http://127\.0\.0\.1:9: does not answer; `hm3 publish`"):
        publish(project)
