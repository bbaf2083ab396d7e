"""Promotion with real servers: the command line and the flow against an MLflow server, and what the champion serves."""

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from contextlib import contextmanager

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from prefect.artifacts import Artifact
from prefect.context import refresh_global_settings_context
from prefect.utilities.callables import parameter_schema

import flows.promote
from flows.search import hm3_search
from flows.servers.local import free_port
from tasks.front.choice import Wish
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.registry.aliases import named
from tasks.registry.promotion import Request, promote, rollback
from tasks.registry.publish import publish
from tasks.tracking.mlflow import connect, local_store
from tasks.trials.targeted import utility_of
from tests.flows.project import hm3
from tests.promotable import ids, make_promotable_project
from tests.servers import mlflow_server, prefect_server, server
from tests.small_search import make_finished_project

pytestmark = pytest.mark.usefixtures("warm")
ID = ids()


def call(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def prefect_client(tmp_path_factory):
    with prefect_server(tmp_path_factory.mktemp("prefect")) as client:
        yield client


@pytest.fixture
def prefect(prefect_client):
    """Flows run in this process, whose environment comes back afterwards."""
    before = dict(os.environ)
    os.environ |= prefect_client
    refresh_global_settings_context()  # threads, too, are to find the server
    yield
    os.environ.clear()
    os.environ.update(before)
    refresh_global_settings_context()


def fields(flow):
    """Fields of a flow's form, by name."""
    return parameter_schema(flow).model_dump()["properties"]


@pytest.fixture(scope="module")
def plain(make_family, tmp_path_factory):
    """A project whose models have no chat template, with a champion in its own database."""
    workspace = make_promotable_project(tmp_path_factory.mktemp("plain") / "project", make_family)
    for path in workspace.zoo.rglob("chat_template.jinja"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("HM3_STATE", raising=False)
        publish(workspace)
        promote(workspace, Request(member="b"), Progress())
    return workspace


@pytest.fixture(scope="module")
def project(make_family, tmp_path_factory):
    """A project whose models have a chat template, registered at an MLflow server that also hands out the artifacts."""
    folder = tmp_path_factory.mktemp("served")
    root = make_promotable_project(folder / "project", make_family).root
    with mlflow_server(folder, folder / "kept") as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", url)
        patch.delenv("HM3_STATE", raising=False)
        publish(open_workspace("p", root))
        yield root, url


def test_the_command_moves_refuses_and_goes_back_and_the_front_shows_who_moved_by_hand(project):
    root, url = project
    moved = hm3(root, "promote", "b")
    assert moved.returncode == 0, moved.stderr
    assert re.search(r"two +0\.5000 +0\.5000 ± 1e-05 +pass", moved.stdout)
    assert f"champion of hm3-front-p is now version 2, member {ID['b']}" in moved.stdout
    refused = hm3(root, "promote", "a")
    assert refused.returncode == 1
    assert re.search(r"two +0\.0000 +≥ 0\.4800 +fail +now 0\.5000", refused.stdout)
    assert re.fullmatch(r"hm3: champion stays at version 2: against the holder: two .*\n", refused.stderr)
    workspace = open_workspace("p", root)
    assert promote(workspace, Request(member="a", force=True, reason="math first"), Progress()).move.forced
    back = rollback(workspace, "champion")
    assert (back.before, back.to, back.kind) == (1, 2, "rollback")
    # what MLflow's own page sends
    body = {"name": "hm3-front-p", "alias": "champion", "version": "4"}
    assert call(f"{url}/api/2.0/mlflow/registered-models/alias", body)[0] == 200
    front = hm3(root, "front", "--split", "selection")
    row = next(line for line in front.stdout.splitlines() if line.startswith(ID["short"]))
    assert "champion" in row.split()
    assert "champion was moved by hand to version 4; the audit trail says: promoted last to version 2" in front.stdout
    history = hm3(root, "promote", "--history").stdout
    assert [line.split()[3:6] for line in history.splitlines() if " → " in line] == [
        ["new", "→", "2"],
        ["2", "→", "1"],
        ["1", "→", "2"],
    ]
    assert "math first" in history and "(forced)" in history and "(rollback)" in history
    assert "moved by hand to version 4" in history


def test_the_flow_keeps_the_gates_as_a_table_and_fails_where_they_hold_it_up(project, prefect, monkeypatch):
    monkeypatch.chdir(project[0])
    assert list(fields(flows.promote.promote)) == ["profile", "member", "alias", "prefer", "force", "reason"]
    assert all(one.get("description") and "default" in one for one in fields(flows.promote.promote).values())
    done = flows.promote.promote("p", member="short", alias="flowing")
    assert done["moved"] and done["member"] == ID["short"]
    passed = Artifact.get("promotion-p").data
    assert "| reproduced | one | 0.1250 | 0.1250 ± 1e-05 | **pass** |" in passed
    state = flows.promote.promote("p", member="b", alias="flowing", return_state=True)
    refused = Artifact.get("promotion-p").data
    assert "| against the holder | layers | 1.0000 | ≤ 0.6867 | **fail** | now 0.6667 |" in refused
    assert state.is_failed() and "flowing stays at version 4" in str(state)


def test_what_the_flow_finds_the_command_finds_too_and_both_promote_it(make_family, prefect, tmp_path, monkeypatch):
    workspace = make_finished_project(tmp_path / "project", make_family)
    with_its_worst_member_alone(workspace)
    monkeypatch.delenv("HM3_STATE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_store(workspace.state)[0])
    publish(workspace)
    monkeypatch.chdir(workspace.root)
    form = fields(hm3_search)
    assert list(form) == ["profile", "prefer", "require", "max_layers", "search", "engine"]
    assert all(one.get("description") and "default" in one for one in form.values())
    assert not any("anyOf" in one for one in form.values())  # Prefect's form draws those as tabs of types
    find = hm3_search("p", prefer="one=0.6,two=0.4", require=["one>=0.05"], max_layers=4, search=10)
    assert Artifact.get("progress-preference-p").data == 100
    assert find["id"] != find["search"]["best_member"]
    promoted = flows.promote.promote("p", member=find["id"], alias="flowing")
    assert (promoted["member"], promoted["moved"]) == (find["id"], True)

    asked = ("--prefer", "one=3,two=2", "--require", "one>=0.05", "--max-layers", "4", "--search", "10", "--json")
    journal = sorted((workspace.state / "journal").rglob("*.jsonl"))
    again = hm3(workspace.root, "choose", *asked)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == find
    assert sorted((workspace.state / "journal").rglob("*.jsonl")) == journal
    moved = hm3(workspace.root, "promote", find["id"][:6])
    assert moved.returncode == 0, moved.stderr
    assert f"champion of hm3-front-p is now version {promoted['version']}, member {find['id']}" in moved.stdout
    version = connect(workspace.state).get_model_version_by_alias("hm3-front-p", "champion")
    assert (version.tags["found"], version.tags["member"]) == ("true", find["id"])
    assert named(workspace, Front.read(workspace.run), "champion").scores == find["scores"]


def with_its_worst_member_alone(workspace):
    """Leave a front only the member that serves a preference least, so that there is something to find."""
    front = Front.read(workspace.run)
    worst = min(front.members, key=lambda one: utility_of(front, one, Wish.parse(front, "one=0.6,two=0.4").weights))
    data = json.loads((workspace.run / "front.json").read_text())
    data["members"] = [one for one in data["members"] if one["id"] == worst.id]
    (workspace.run / "front.json").write_text(json.dumps(data))


def test_the_champion_answers_prompts_and_conversations(project, tmp_path):
    root, url = project
    connect(root / ".hm3").set_registered_model_alias("hm3-front-p", "serving", "2")
    member = Front.read(root / "runs" / "p").member("b")
    with serving("models:/hm3-front-p@serving", url, tmp_path) as address:
        texts = {"inputs": ["w3 w4 w5"], "params": {"max_new_tokens": 4}}
        status, answer = call(address, texts)
        assert status == 200
        assert answer == {"predictions": [continued(root / member.recipe, root, "w3 w4 w5", 4)]}
        messages = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": " w5"}]
        for extra in ({}, {"model": "champion", "temperature": 0, "stream": False}):
            status, chat = call(address, {**extra, "messages": messages, "max_tokens": 4})
            assert status == 200, chat
            # this template only joins the contents
            content = {"role": "assistant", "content": answer["predictions"][0]}
            assert chat["choices"] == [{"index": 0, "message": content}]
        status, refused = call(address, {"messages": messages, "temperature": 0.7})
        assert status == 400 and "answers are greedy" in refused
        status, refused = call(address, {"messages": messages, "top_p": 0.5})
        assert status == 200
        status, refused = call(address, {"top_p": 0.5, "messages": messages})
        assert status == 400 and "top_p" in refused


def test_without_a_chat_template_a_conversation_is_refused_and_a_prompt_is_answered(plain, monkeypatch):
    """What a server loads, asked directly."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_store(plain.state)[0])
    loaded = mlflow.pyfunc.load_model("models:/hm3-front-p@champion")
    (answer,) = loaded.predict(pd.DataFrame({"prompt": ["w3 w4 w5"]}), params={"max_new_tokens": 4})
    assert len(answer.split()) == 4
    with pytest.raises(MlflowException, match="no chat template; send the text as `prompt`") as refused:
        loaded.predict(pd.DataFrame({"messages": [{"role": "user", "content": "w3"}]}))
    assert refused.value.get_http_status_code() == 400


@contextmanager
def serving(uri, registry, folder):
    """`mlflow models serve` of a registered version; gives the address to send requests to."""
    port = free_port()
    command = ["-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    address, env = f"http://127.0.0.1:{port}", {"MLFLOW_TRACKING_URI": registry}
    with server(command, f"{address}/ping", folder / "serve.log", folder, env):
        yield f"{address}/invocations"


def continued(recipe, root, prompt, tokens):
    """What transformers itself makes of a prompt with an exported member."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.front.checkpoint import write_member

    out = recipe.parent / "exported"
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_member(open_workspace("p", root), Front.read(root / "runs" / "p").member("b"), out, Progress())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    new = model.generate(**batch, do_sample=False, max_new_tokens=tokens)[0, batch["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)
