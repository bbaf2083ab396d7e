"""What one does with DVC every week, on the real stages and the smallest family that they take.

Two profiles live side by side: ``tiny`` has its models below ``runs/``, as if made there; ``mine`` is given the same.
Remotes are a folder and a bucket of moto's S3 server.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import yaml

from tasks.scoring.journal import read_segment
from tests.flows.project import dvc, git, hm3
from tests.s3_server import CREDENTIALS, client_of, s3_server

STAGES = ["zoo", "sample", "dataset", "train", "search", "pareto"]


@pytest.fixture(scope="module", autouse=True)
def environment(warm):
    """That of a user who has set nothing but credentials."""
    with pytest.MonkeyPatch.context() as patch:
        ours = ("MLFLOW_", "PREFECT_API", "HM3_STATE", "AWS_")
        for name in [name for name in os.environ if name.startswith(ours)]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    """A copy of the project after `dvc repro` of ``tiny``, with what it made committed."""
    return shutil.copytree(pipeline, tmp_path_factory.mktemp("dvc") / "project", symlinks=True)


def commit(root, message):
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def content(root, profile):
    """Bytes of all outs of a profile, by path."""
    run = root / "runs" / profile
    return {one.relative_to(run): one.read_bytes() for one in run.rglob("*") if one.is_file() and one.suffix != ".html"}


def test_nothing_is_left_to_do_for_the_profile_that_was_run(finished):
    status = json.loads(dvc(finished, "status", "--json"))
    assert {name.partition("@")[2] for name in status} == {"mine"}


@pytest.mark.slow  # test_pipeline.py runs one, and test_commands.py its commands
def test_an_experiment_is_run_shown_and_compared(project):
    said = dvc(project, "exp", "run", "-S", "search.budget=1500", "--name", "less", "search@tiny", "pareto@tiny")
    assert [stage for stage in STAGES if f"Running stage '{stage}@tiny'" in said] == ["train", "search", "pareto"]
    parameters = json.loads(dvc(project, "params", "diff", "--json"))
    assert parameters["params.yaml"]["search.budget"] == {"old": 1800, "new": 1500, "diff": -300}
    metrics = json.loads(dvc(project, "metrics", "diff", "--json"))["runs/tiny/metrics.json"]
    assert metrics["item_evaluations"]["new"] <= 1500 < metrics["item_evaluations"]["old"] <= 1800
    table = pd.read_csv(io.StringIO(dvc(project, "exp", "show", "--csv", "--only-changed")))
    assert {"search.budget", "item_evaluations"} <= set(table.columns)
    names = table["Experiment"].fillna(table["rev"])
    budgets = dict(zip(names, table["search.budget"], strict=True))
    assert budgets == {"workspace": 1500, "master": 1800, "less": 1500}


PLOTS = {
    "train.csv": ("tiny: training of actor and critic", "optimiser step", "loss"),
    "search.csv": (
        *("tiny: hypervolume found by the search, on the search split", "item evaluations spent"),
        "hypervolume, share of the box from nadir to ideal",
    ),
    "plots/front.csv": (
        *("tiny: the front and what it is held against, on the test split", "layers passed, over layers of the base"),
        "mean score of the tasks",
    ),
}


@pytest.mark.parametrize("file", PLOTS)
def test_plots_say_what_they_show_and_in_what_units(finished, file):
    title, x, y = PLOTS[file]
    plot = json.loads(dvc(finished, "plots", "show", "--show-vega", f"runs/tiny/{file}"))
    encoding = (plot.get("spec") or plot)["encoding"]
    assert (plot["title"]["text"], encoding["x"]["title"], encoding["y"]["title"]) == (title, x, y)
    table = pd.read_csv(finished / "runs" / "tiny" / file)
    assert len(plot["data"]["values"]) == len(table)
    assert {encoding["x"]["field"], encoding["y"]["field"]} <= set(table.columns)
    assert "<DVC" not in json.dumps(plot), "a placeholder of the template is left"


def test_plots_of_two_versions_are_drawn_on_one_page(project):
    table = pd.read_csv(project / "runs" / "tiny" / "search.csv")
    table.assign(hv=table["hv"] / 2).to_csv(project / "runs" / "tiny" / "search.csv", index=False)
    dvc(project, "plots", "diff", "HEAD", "--out", "shown")
    page = (project / "shown" / "index.html").read_text()
    for title, x, y in PLOTS.values():
        assert page.count(json.dumps(title)) == 1
        assert json.dumps(x) in page
        assert json.dumps(y) in page
    assert '"rev": "workspace"' in page
    assert '"rev": "HEAD"' in page


def test_collecting_garbage_keeps_every_profile(project):
    dvc(project, "repro", "zoo@mine")
    (project / "junk").write_text("nobody needs this")
    dvc(project, "add", "junk")
    junk = yaml.safe_load((project / "junk.dvc").read_text())["outs"][0]["md5"]
    kept = project / ".dvc" / "cache" / "files" / "md5" / junk[:2] / junk[2:]
    assert kept.is_file()
    for name in ("junk", "junk.dvc"):
        (project / name).unlink()
    dvc(project, "gc", "--workspace", "--force")
    assert not kept.exists()
    before = {name: content(project, name) for name in ("tiny", "mine")}
    shutil.rmtree(project / "runs")
    dvc(project, "checkout", "--allow-missing")
    assert {name: content(project, name) for name in ("tiny", "mine")} == before
    assert before["mine"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        client_of(url).create_bucket(Bucket="team")
        yield url


def clone(project, folder):
    """What a colleague gets: the commits, and what `dvc pull` brings of what was pushed."""
    git(project.parent, "clone", "--quiet", str(project), str(folder))
    dvc(folder, "pull", "--allow-missing")  # nobody has run `mine`
    return folder


def has_the_front(project, there):
    assert content(there, "tiny") == content(project, "tiny")
    status = json.loads(dvc(there, "status", "--json"))
    assert not [name for name in status if name.endswith("@tiny")]
    shown = [json.loads(hm3(one, "front", "--profile", "tiny", "--json").stdout) for one in (project, there)]
    for one in shown:
        del one["aliases_from"], one["notes"]  # only the project has a registry
        for row in (*one["members"], *one["references"]):
            row["cost"] = sorted(row["cost"])  # each has measured times of its own
        for row in one["members"]:
            row["aliases"].sort()  # a registry gives them in its order
    assert shown[0] == shown[1]
    report = hm3(there, "report", "--profile", "tiny")
    assert (there / "runs" / "tiny" / "report.html").is_file(), report.stderr


def test_a_clone_has_the_front_through_a_bucket_and_can_publish_it(project, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    dvc(project, "remote", "add", "--default", "team", "s3://team/hm3")
    commit(project, "a remote for the team")
    dvc(project, "push")
    there = clone(project, tmp_path / "clone")
    has_the_front(project, there)
    published = hm3(there, "publish", "--profile", "tiny", "--json")
    assert published.returncode == 0, published.stderr
    members = json.loads((there / "runs" / "tiny" / "front.json").read_text())["members"]
    assert set(json.loads(published.stdout)["versions"]) == {one["id"] for one in members}
    assert dvc(project, "push") == "Everything is up to date.\n"


@pytest.mark.slow  # the documentation's commands push and pull, too
def test_a_run_pushes_what_it_made_if_it_is_told_to(project, tmp_path):
    dvc(project, "remote", "modify", "local", "url", str(tmp_path / "remote"))
    commit(project, "a remote for the team")
    run = hm3(project, "run", "--profile", "tiny", "--push", timeout=300)
    assert run.returncode == 0, run.stderr
    assert "push: outs are in the DVC remote local" in run.stdout
    has_the_front(project, clone(project, tmp_path / "clone"))


@pytest.mark.slow  # the documentation's commands run an experiment, and push
def test_an_experiment_is_pushed_to_the_remote_of_the_project(project, tmp_path):
    os.utime(project / "params.yaml")  # touched and not changed
    run = hm3(project, "run", "--profile", "tiny", "-S", "pareto.members=2", "--push", "--json", timeout=300)
    assert run.returncode == 0, run.stderr
    name = json.loads(run.stdout)["experiment"]
    reference = git(project, "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}").strip()
    lock = yaml.safe_load(git(project, "show", f"{reference}:dvc.lock"))["stages"]["pareto@tiny"]
    front = next(one["md5"] for one in lock["outs"] if one["path"].endswith("front.json"))
    assert (project / ".hm3" / "dvc-remote" / "files" / "md5" / front[:2] / front[2:]).is_file()


def test_a_run_that_could_not_push_does_not_begin(project):
    dvc(project, "config", "--unset", "core.remote")
    run = hm3(project, "run", "--profile", "tiny", "--push", timeout=300)
    assert run.returncode == 2
    assert run.stderr.startswith("hm3: .dvc/config: no default remote to push to; `dvc remote add --default NAME URL`")


@pytest.mark.slow  # tests/tasks/scoring/test_ray.py compares scores and keys of the journal
@pytest.mark.parametrize("stages", [["search"], ["sample", "pareto"]])
def test_ray_workers_give_the_same_dvc_lock(project, monkeypatch, stages):
    wanted = (project / "dvc.lock").read_bytes()
    shutil.rmtree(project / ".hm3")
    monkeypatch.setenv("HM3_ENGINE", "ray")
    for stage in stages:
        dvc(project, "repro", "--force", "--single-item", f"{stage}@tiny")
    assert (project / "dvc.lock").read_bytes() == wanted


def journalled(folder):
    """Every (key, item) of the segments in a folder, as often as it was scored."""
    entries = [entry for segment in folder.glob("*.jsonl") for entry in read_segment(segment)]
    return [(entry.key, item) for entry in entries for item in range(entry.start, entry.stop)]


@pytest.mark.slow  # tests/tasks/scoring/test_journal.py resumes from a bucket
def test_a_machine_that_is_taken_away_in_the_search_is_replaced_by_another(project, s3, tmp_path, cold, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["search"]["budget"] = 3000
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    dvc(project, "remote", "add", "--default", "pod", "s3://team/pod")
    commit(project, "a longer search")
    dvc(project, "push")
    bucket, state = client_of(s3), "state/journal/tiny/"

    def segments():
        return [one["Key"] for one in bucket.list_objects_v2(Bucket="team", Prefix=state).get("Contents", [])]

    monkeypatch.setenv("HM3_STATE", "s3://team/state")
    first = clone(project, tmp_path / "first")
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "search@tiny"]
    with subprocess.Popen(command, cwd=first, start_new_session=True, stderr=subprocess.DEVNULL) as pod:
        deadline = time.monotonic() + 300
        while len(segments()) < 3:
            assert pod.poll() is None, "ended before it could be taken away"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        under = psutil.Process(pod.pid).children(recursive=True)
        os.killpg(pod.pid, signal.SIGKILL)
        for one in under:
            with contextlib.suppress(psutil.NoSuchProcess):  # it was of the same group
                one.kill()
        psutil.wait_procs(under)  # none writes into the folder while it is deleted
    shutil.rmtree(first)
    saved = set(segments())
    second = clone(project, tmp_path / "second")
    dvc(second, "repro", "--single-item", "search@tiny")
    assert saved < set(segments())
    scored = journalled(second / ".hm3" / "journal" / "tiny")
    assert len(scored) == len(set(scored))
    monkeypatch.delenv("HM3_STATE")
    shutil.rmtree(project / ".hm3")
    dvc(project, "repro", "--single-item", "search@tiny")
    archives = [(root / "runs" / "tiny" / "archive.parquet").read_bytes() for root in (project, second)]
    assert archives[0] == archives[1]
    assert sorted(journalled(project / ".hm3" / "journal" / "tiny")) == sorted(scored)
