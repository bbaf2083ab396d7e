"""The engine as a trial's lab: real models, scored and measured on the search split."""

import itertools
import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from models.candidate import Candidate
from models.front import Scale
from models.merge.space import RecipeSpace
from models.paths.path import path_model
from models.search.archive import Archive, Entry
from models.search.environment import PathRules
from models.search.reward import Reward
from models.search.trial import Trial
from tasks.bench.baselines import BASELINES
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.trials.lab import EngineLab
from tests.small_tasks import COUNTS, make_family_project, write_profile, write_task
from tests.tasks.test_stages_with_tasks import GENERATE

FEW = {"search": 6, "selection": 4, "test": 4}


@pytest.fixture(scope="module")
def project(make_family, tmp_path_factory):
    """Two objectives of log-likelihoods."""
    return make_family_project(tmp_path_factory.mktemp("lab"), make_family)


@pytest.fixture(scope="module")
def lab(project):
    """A third objective asks for text and has fewer items."""
    root = project.root
    files = {split: f"runs/p/tasks/one.{split}.jsonl" for split in COUNTS}
    write_task(root, "said", **GENERATE, dataset_kwargs={"data_files": files})
    tasks = [{"name": name, "task": name, "items": COUNTS} for name in ("one", "two")]
    write_profile(root, [*tasks, {"name": "said", "task": "said", "metric": "exact_match", "items": FEW}])
    return EngineLab(Engine(open_workspace("p", root)))


def test_scores_are_the_engines_means(lab):
    candidates = [Candidate.identity("a", 3), Candidate("b", (("a", 0), ("b", 2)))]
    assert lab.counts == (14, 14, 6)
    scored = lab.engine.scored(candidates, "search", 2, 9)
    assert lab.mean_scores(candidates, 2, 9) == [tuple(one.mean()) for one in scored]
    late = lab.mean_scores(candidates, 6, 14)[0]
    assert np.isfinite(late[:2]).all()
    assert np.isnan(late[2])


def test_a_failed_candidate_has_no_scores_but_a_reason(lab):
    endless = {name: {"weight": 1e39} for name in lab.engine.family.experts}
    broken = lab.add(space(lab).make("task_arithmetic", endless))
    assert lab.mean_scores([Candidate.identity("a", 3), broken], 0, 14)[1] is None
    assert "finite" in lab.failures[broken]
    assert lab.influence(broken) is None


def space(lab):
    return RecipeSpace(("task_arithmetic", "ties"), lab.engine.family.base, lab.engine.family.experts)


def test_block_influence_reads_every_item_as_its_task_asks(lab):
    path = Candidate("a", (("b", 0), ("a", 2), ("a", 1), ("a", 2)))
    tokenizer = AutoTokenizer.from_pretrained(lab.engine.workspace.root / lab.engine.family.base)
    model, angles = path_model(lab.engine.pool, path), []
    behind = []
    model.model.layers[-1].register_forward_hook(lambda _, args, output: behind.append(output))
    for task, counted in (("one", 14), ("two", 14), ("one", 6)):
        file = lab.engine.workspace.run / "tasks" / f"{task}.search.jsonl"
        for item in map(json.loads, file.read_text().splitlines()[:counted]):
            asked = item["prompt"] if counted == 6 else item["prompt"] + item["answer"]
            ids = tokenizer(asked, return_tensors="pt").input_ids[:, :-1]
            with torch.inference_mode():
                hidden = [*model(ids, output_hidden_states=True).hidden_states[:-1], behind[-1]]
            pairs = itertools.pairwise(hidden)
            angles.append(torch.stack([torch.cosine_similarity(x[0], y[0], dim=-1) for x, y in pairs]))
    wanted = 1 - torch.cat(angles, dim=1).double().mean(dim=1)
    np.testing.assert_allclose(lab.influence(path), wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["ea-paths", "greedy-deletion", "block-influence"])
def test_baselines_run_on_real_models(project, name):
    lab = EngineLab(Engine(project))
    sources = [Candidate.identity(name, lab.layers) for name in ("base", "a", "b")]
    scores = lab.mean_scores(sources, 0, 14)
    rows = np.array(scores)
    scale = Scale(("one", "two", "layers"), (*rows.max(0), 0.3), (*rows.min(0), 1.0))
    archive = Archive([Entry(one, "expert", 0, 14, row) for one, row in zip(sources, scores, strict=True)], lab.counts)
    trial = Trial(lab, Reward(scale, lab.layers), archive, 24 * archive.cost(0, 14))
    BASELINES[name].run(trial, space(lab), PathRules(), np.random.default_rng(0))
    assert trial.left < trial.whole
    entries = [one for one in trial.archive.entries if one.charged]
    assert lab.mean_scores([one.candidate for one in entries], 0, 14) == [one.scores for one in entries]
    assert any(one.candidate.depth < lab.layers for one in entries)
