"""Models of the hub, through a server on loopback that answers as the hub does."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.errors import BadInput
from models.sources.hub import HubModel, Unreachable
from models.sources.lora import open_model
from tasks import zoo
from tasks.project.progress import Progress
from tasks.project.references import hub_parts, model_finder
from tasks.project.workspace import open_workspace
from tests.small_adapters import make_adapter
from tests.small_tasks import write_profile

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories that are folders below ``server.root``; ``main`` is the only revision."""

    def log_message(self, *_):
        """Quiet."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), parts[4:])
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        return self.file(repo, revision, name)

    def api(self, repo, rest):
        folder = self.server.root / repo
        if repo == "org/gated":
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if not folder.is_dir():
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(folder.iterdir())
        if rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": one.name, "size": one.stat().st_size, "oid": oid(one)} for one in files]
            return self.answer(200, json.dumps(listed).encode())
        siblings = [{"rfilename": one.name, "size": one.stat().st_size, "blobId": oid(one)} for one in files]
        found = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
        return self.answer(200, json.dumps({**found, "siblings": siblings}).encode())

    def file(self, repo, revision, name):
        path = self.server.root / repo / name
        if revision not in ("main", COMMIT) or not path.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self.answer(200, path.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(path)}"'})

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def oid(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, with the libraries told to use it and an empty cache."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.asked = tmp_path / "hub", []
    server.root.mkdir()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_and_tokenizer_are_fetched_once_and_nothing_else(hub, make_llama, tmp_path):
    folder = make_llama(hub.root / "org" / "small")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    find = model_finder(tmp_path)
    one = HubModel.parse("hub:org/small@main")
    assert one.cached() is None
    assert one.bytes() == (folder / "model.safetensors").stat().st_size
    source = open_model("hub:org/small@main", find)
    assert (source.path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (source.path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (source.path / "pytorch_model.bin").exists()
    hub.asked.clear()
    assert find("hub:org/small") == source.path == one.cached()
    assert hub.asked == []


def test_a_family_of_the_hub_is_fetched_by_stage_zoo_and_named_as_the_profile_names_it(hub, make_llama, tmp_path):
    base = make_llama(hub.root / "org" / "base")
    make_llama(hub.root / "org" / "math", base=base)
    make_adapter(hub.root / "org" / "adapter", base, target_modules=["q_proj"])
    experts = {"math": "hub:org/math@main", "code": "hub:org/base@main+hub:org/adapter"}
    root = tmp_path / "project"
    write_profile(root, [{"name": "math", "task": "gsm8k"}], made=None, base="hub:org/base@main", experts=experts)
    workspace = open_workspace("p", root)
    with Progress(root / "events.jsonl") as progress:
        zoo.run(workspace, progress)
    family = json.loads((workspace.zoo / "family.json").read_text())
    assert (family["base"], family["experts"]) == ("hub:org/base@main", experts)
    assert len(set(family["digests"].values())) == 3
    bars = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    (last,) = [one for one in bars if one.get("description") == "fetch from the hub"][-1:]
    assert last["completed"] == last["total"] > 2 * (base / "model.safetensors").stat().st_size
    assert str(tmp_path) not in (workspace.zoo / "family.json").read_text()


def test_what_the_hub_lacks_is_bad_input(hub, make_llama):
    make_llama(hub.root / "org" / "small")
    with pytest.raises(BadInput, match=r"hub:org/small@v9: no such revision"):
        HubModel.parse("hub:org/small@v9").fetch()
    with pytest.raises(BadInput, match=r"hub:org/none@main: no such model, or it is private"):
        HubModel.parse("hub:org/none").fetch()
    with pytest.raises(
        BadInput, match=r"hub:org/gated@main: is gated; accept its licence at .*, then run `hf auth login`"
    ):
        HubModel.parse("hub:org/gated").bytes()


def test_a_pickled_model_is_refused_with_the_command_that_converts_it(hub):
    folder = hub.root / "org" / "old"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        BadInput, match=r"pytorch_model\.bin: a pickled .* refused; .*'org/old', revision='main'.*models/old"
    ):
        HubModel.parse("hub:org/old").fetch()
    assert not any("resolve" in one for one in hub.asked)


def test_a_hub_that_does_not_answer_is_said_in_one_line(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        Unreachable, match=r"^hub:org/small@main: http://127\.0\.0\.1:9 can't be reached \(\w+\); connect"
    ):
        HubModel.parse("hub:org/small").bytes()


@pytest.mark.parametrize("text", ["hub:small", "hub:a/b/c", "hub:a/b@", "hub:/b"])
def test_other_spellings_are_refused(text):
    with pytest.raises(BadInput, match="write hub:ORG/NAME or hub:ORG/NAME@REVISION"):
        HubModel.parse(text)


def test_each_model_is_named_once():
    parts = hub_parts(["hub:a/b@x", "hub:a/b@x+hub:c/d", "models/e"])
    assert [str(one) for one in parts] == ["hub:a/b@x", "hub:c/d@main"]
