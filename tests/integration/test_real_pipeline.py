"""The six real stages on a real small family: what a run leaves, and what kills at random times leave of it.

The family is made once, by the first run. It is too small to be good; everything else is as in production.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from transformers import AutoModelForCausalLM

from flows.bench.fault_kinds import KINDS
from flows.bench.faults import FAULTS, PARAMS, attempt, prepare
from models.agent.agent import load_agent
from tasks.project.records import Anchors
from tasks.project.workspace import open_workspace
from tests import once
from tests.flows.project import dvc, hm3
from tests.warm import programs, warmed

ROOT = Path(__file__).parents[2]
KILLS = ["run killed", "stage killed", "DVC killed"]
STAGES = ["zoo", "sample", "dataset", "train", "search", "pareto"]
TIMEOUT = 900
IMPORTS = 4.0
"""Seconds that a process of ours takes longer where it isn't warm, about."""

ONE, THREE = 409, 54
"""Seeds whose faults come in `search`, and in `sample`, in `dataset` and in `search`."""


def run(root, *options):
    done = hm3(root, "run", "--profile", "tiny", *options, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def out_hashes(root):
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in lock.items()}


@pytest.fixture(scope="module", autouse=True)
def no_servers():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "HM3_STATE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def reference(folder):
    """What `hm3 bench faults` disturbs, and what an undisturbed run of it gives; its processes are warm."""
    state = folder / "template" / ".hm3"
    once.give_databases(state)
    with warmed():
        found = prepare(open_workspace("tiny", ROOT), folder)
    for name in ("prefect", "mlflow"):  # what is disturbed makes its own
        shutil.rmtree(state / name)
    template = replace(found.template, env=found.template.env | {"PATH": os.environ["PATH"]})
    seconds = {stage: seconds + IMPORTS for stage, seconds in found.seconds.items()}
    return replace(found, template=template, seconds=seconds)


@pytest.fixture(scope="module")
def undisturbed(reference, folder):
    return folder / "undisturbed"


@pytest.fixture(scope="module")
def front(undisturbed):
    return json.loads((undisturbed / "runs" / "tiny" / "front.json").read_text())


def test_the_members_do_not_dominate_each_other_and_hold_the_best_of_each_objective(undisturbed, front):
    sign = np.array([1 if name == "layers" else -1 for name in front["objectives"]])

    def costs(rows):  # `search` and `selection` have as many items
        both = [[row["scores"][split] for split in ("search", "selection")] for row in rows]
        return np.array([[(one[name] + two[name]) / 2 for name in front["objectives"]] for one, two in both]) * sign

    members = costs(front["members"])
    assert len(NonDominatedSorting().do(members, only_non_dominated_front=True)) == len(members) >= 2
    assert (members.min(axis=0) <= costs(front["references"]).min(axis=0)).all()
    assert set(front) >= {"profile", "objectives", "ideal", "nadir", "hv", "members"}
    for member in front["members"]:
        assert (undisturbed / "runs" / "tiny" / member["recipe"]).is_file()
        assert member["layers"] == len(member["path"])
        assert sum(member["serves"].values()) == pytest.approx(1, abs=1e-3)


def test_the_budget_is_kept_and_no_candidate_is_there_twice(undisturbed):
    archive = pd.read_parquet(undisturbed / "runs" / "tiny" / "archive.parquet")
    assert archive["candidate"].is_unique
    run, budget = undisturbed / "runs" / "tiny", PARAMS["search"]["budget"]
    repair, trained = Anchors.read(run).repair, pd.read_parquet(run / "trained.parquet")
    read = repair.item_evaluations if repair else 0
    taught = load_agent(run / "agent").config.spent - trained["charged"].sum() - read
    assert 0.15 * budget < taught < 0.3 * budget
    assert 0.9 * budget < archive["charged"].sum() + taught + read <= budget
    assert {"base", "expert", "baseline", "actor", "deletion", "edit"} <= set(archive["kind"])


def test_outs_hold_no_path_of_this_machine(undisturbed):
    for path in (undisturbed / "runs" / "tiny").rglob("*"):
        if path.is_file() and path.name != "report.html":
            assert str(undisturbed).encode() not in path.read_bytes(), path


@pytest.mark.slow  # test_pipeline.py starts nothing that did not change, and in test_commands.py the stages are real
def test_nothing_is_left_to_do_afterwards(undisturbed):
    assert json.loads(dvc(undisturbed, "status", "--json")) == {}
    began = {path: path.stat().st_mtime_ns for path in (undisturbed / ".hm3" / "progress" / "tiny").iterdir()}
    shown = run(undisturbed)
    assert [f"{stage}@tiny: cached" in shown for stage in STAGES] == [True] * 6
    assert {path: path.stat().st_mtime_ns for path in began} == began, "a stage process has started"


def test_an_exported_member_scores_in_lm_eval_as_in_hm3(undisturbed, front, tmp_path):
    member = min(front["members"], key=lambda one: one["layers"])
    out = tmp_path / "member"
    assert hm3(undisturbed, "export", member["id"], str(out)).returncode == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == member["layers"]
    ours = json.loads(hm3(undisturbed, "evaluate", str(out), "--split", "test", "--json").stdout)
    tasks = {one["name"]: one["task"] for one in profile(undisturbed)["objectives"]}
    command = [programs() / "python", "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={out}"]
    command += ["--tasks", *tasks.values(), "--include_path", "profiles/tiny", "--output_path", str(tmp_path / "eval")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    subprocess.run(command, cwd=undisturbed, env={**os.environ, **offline}, check=True, capture_output=True)
    results = json.loads(next((tmp_path / "eval").rglob("results_*.json")).read_text())["results"]
    for name, task in tasks.items():
        assert scores_of(ours)[name] == pytest.approx(results[task]["acc,none"], abs=1e-12)
        assert scores_of(ours)[name] == pytest.approx(member["scores"]["test"][name], abs=1e-12)


def test_mergekit_rebuilds_what_is_called_exact(undisturbed, front, tmp_path):
    exact = [one for one in front["members"] if one["mergekit"] == "exact"]
    assert exact, "no member of this front can be held against mergekit"
    for member in exact[:2]:
        ours, theirs = tmp_path / member["id"], tmp_path / f"{member['id']}-mergekit"
        assert hm3(undisturbed, "export", member["id"], str(ours)).returncode == 0
        command = [
            programs() / "python",
            "-m",
            "mergekit.scripts.multimerge",
            str(Path("runs/tiny") / member["recipe"]),
        ]
        command += ["--out-path", str(theirs), "-I", str(tmp_path / "between"), "--no-write-model-card"]
        subprocess.run(command, cwd=undisturbed, check=True, capture_output=True)
        states = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (ours, theirs)]
        assert states[0].keys() == states[1].keys()
        assert max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0]) <= 1e-5
        assert all(torch.isfinite(one).all() for one in states[0].values())


@pytest.mark.slow
def test_a_changed_search_runs_search_and_pareto_only(undisturbed, tmp_path):
    root = tmp_path / "changed"
    shutil.copytree(undisturbed, root, symlinks=True)
    data = yaml.safe_load((root / "params.yaml").read_text())
    data["search"]["batch"] = 7
    (root / "params.yaml").write_text(yaml.safe_dump(data))
    shown = run(root)
    cached = [stage for stage in STAGES if f"{stage}@tiny: cached" in shown]
    assert cached == ["zoo", "sample", "dataset", "train"]
    assert out_hashes(root)["train@tiny"] == out_hashes(undisturbed)["train@tiny"]
    assert out_hashes(root)["search@tiny"] != out_hashes(undisturbed)["search@tiny"]


def profile(root):
    return yaml.safe_load((root / "profiles" / "tiny.yaml").read_text())


def scores_of(evaluation):
    return evaluation["scores"]


def survives(reference, folder, kinds, seed):
    trial = attempt(reference, folder, kinds, seed)
    assert not trial.why, trial
    return trial


def test_a_search_that_is_killed_goes_on_and_scores_nothing_twice(reference, undisturbed, tmp_path):
    project = replace(reference.template, root=undisturbed).copy(tmp_path / "killed")
    shutil.copytree(undisturbed, project.root, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(project.root / ".hm3" / "journal")
    made = {name: project.root / "runs" / "tiny" / name for name in ("archive.parquet", "search.csv")}
    expected = {name: path.read_bytes() for name, path in made.items()}
    for path in made.values():
        path.unlink()
    command = [sys.executable, "-m", "flows.cli", "stage", "search", "--profile", "tiny"]
    stage = subprocess.Popen(command, cwd=project.root, env=project.env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal := project.root / ".hm3" / "journal" / "tiny").is_dir() or not project.scored():
        assert stage.poll() is None and time.monotonic() < deadline, journal
        time.sleep(0.02)
    stage.kill()
    stage.wait()
    before = project.scored()
    assert not made["archive.parquet"].exists(), "it was killed too late"
    again = hm3(project.root, "stage", "search", "--profile", "tiny", env=project.env)
    assert again.returncode == 0, again.stderr
    assert {name: path.read_bytes() for name, path in made.items()} == expected
    after = project.scored()
    assert len(after) == len(set(after)) > len(before) > 0
    assert set(before) < set(after)


@pytest.mark.slow  # test_faults.py ends a run, and above a stage is killed
@pytest.mark.parametrize(("kinds", "seed"), [(KILLS[:1], ONE), (KILLS, THREE)])
def test_the_real_pipeline_is_killed_at_random(reference, tmp_path, kinds, seed):
    assert [one.kind for one in survives(reference, tmp_path, kinds, seed).faults] == kinds


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_it_survives_a_hundred_kills(reference, tmp_path):
    killed, seed = 0, 0
    while killed < 100:
        seed += 1
        killed += len(survives(reference, tmp_path, random.Random(seed).choices(KILLS, k=FAULTS), seed).faults)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in KILLS])
def test_it_survives_whatever_else_comes(reference, tmp_path, kind):
    survives(reference, tmp_path, [kind] * FAULTS, 0)
