"""Our scores are lm-eval's own: in one process and through its command, on a path written to disk as a checkpoint."""

import json
import math
import os
import shutil
import subprocess

import numpy as np
import pytest
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from models.candidate import Candidate
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.objectives.objectives import Objectives
from tasks.project.offline import offline_environment
from tasks.project.workspace import open_workspace
from tests.small_models import write_path
from tests.small_tasks import COUNTS, make_task_project, write_items, write_profile, write_task
from tests.warm import programs

CANDIDATES = {
    "base": Candidate.identity("base", 3),
    "path": Candidate("a", (("a", 0), ("b", 1), ("a", 1), ("a", 2))),
    "shallow": Candidate("b", (("b", 0), ("b", 2))),
}
METRICS = [
    {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
]
JUDGE = '''
from tasks.families.tiny.expressions import run_expressions


def process_results(doc, results):
    """What the generated words say as a sum of their numbers, to be evaluated together at the end."""
    numbers = [word[1:] for word in results[0].split() if word[1:].isdigit()]
    return {"pass_at_1": (" + ".join(numbers), doc["inputs"], doc["outputs"])}


def pass_at_1(items):
    programs, inputs, outputs = zip(*items)
    found = run_expressions(programs, inputs)
    return sum(one == wanted for one, wanted in zip(found, outputs)) / len(items)
'''


@pytest.fixture(scope="module")
def family(make_family, tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("family"), noise=0.2)


@pytest.fixture(scope="module")
def sources(family):
    return {name: open_checkpoint(folder) for name, folder in family.items()}


@pytest.fixture(scope="module")
def pool(sources):
    pool = Pool(sources["base"].config)
    for name, source in sources.items():
        pool.add(name, source)
    return pool


@pytest.fixture(scope="module")
def exports(sources, family, tmp_path_factory):
    """Folder of each candidate as a checkpoint."""
    folder = tmp_path_factory.mktemp("exported")
    return {name: write_path(sources, one, folder / name, family["base"]) for name, one in CANDIDATES.items()}


@pytest.fixture(scope="module")
def workspace(exports, tmp_path_factory):
    """Two log-likelihood tasks, answered in part by the path or by the shallow one, and for each a task with true
    generation: chrF, and sums that are run."""
    root = tmp_path_factory.mktemp("project")
    make_task_project(root, {"a": exports["path"], "b": exports["shallow"]})
    for name in ("one", "two"):
        write_task(root, name, metric_list=METRICS)
    options = {"until": ["w17", "\n"], "max_gen_toks": 4, "do_sample": False}
    files = {split: f"runs/p/tasks/two.{split}.jsonl" for split in COUNTS}
    for split in COUNTS:
        path = root / f"runs/p/tasks/two.{split}.jsonl"
        items = [json.loads(line) for line in path.read_text().splitlines()]
        for item in items:
            total = sum(int(word[1:]) for word in item["answer"].split())
            item |= {"inputs": [{}], "outputs": [total]}
        write_items(path, items)
    generate = {"output_type": "generate_until", "generation_kwargs": options}
    chrf = [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}]
    files_one = {split: f"runs/p/tasks/one.{split}.jsonl" for split in COUNTS}
    write_task(root, "one_chrf", **generate, metric_list=chrf, dataset_kwargs={"data_files": files_one})
    write_task(root, "two_sum", **generate, dataset_kwargs={"data_files": files}, metric_list=None)
    with (root / "profiles/p/two_sum.yaml").open("a") as file:
        file.write("process_results: !function judge.process_results\n")
        file.write(
            "metric_list:\n- {metric: pass_at_1, aggregation: !function judge.pass_at_1, higher_is_better: true}\n"
        )
    (root / "profiles/p/judge.py").write_text(JUDGE)
    reported = {"one": {"task": "one_chrf", "metric": "chrf"}, "two": {"task": "two_sum", "metric": "pass_at_1"}}
    write_profile(
        root, [{"name": name, "task": name, "items": COUNTS, "reported": [reported[name]]} for name in ("one", "two")]
    )
    return open_workspace("p", root)


@pytest.fixture(scope="module", params=CANDIDATES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def candidate(name):
    return CANDIDATES[name]


@pytest.fixture(scope="module")
def exported(name, exports):
    return exports[name]


@pytest.fixture(scope="module")
def objectives(workspace, family):
    return Objectives(workspace, "test", family["base"])


def of_lm_eval(folder, workspace, names):
    """Its results in this process, one request at a time as is its default."""
    tasks = TaskManager(include_path=str(workspace.task_folder), include_defaults=False).load(names)
    model = HFLM(str(folder), device="cpu", batch_size=1)
    return evaluate(model, tasks, bootstrap_iters=0, log_samples=False)["results"]


def test_scores_equal_those_of_lm_eval(objectives, pool, name, candidate, exported, workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)
    theirs = of_lm_eval(exported, workspace, ["one", "two"])
    (ours,) = objectives.item_scores(pool, [candidate], 0, 12)
    means = {task: np.mean(values) for task, values in ours.items.items()}
    assert means == {task: pytest.approx(theirs[task]["acc,none"], abs=1e-12) for task in ("one", "two")}
    if name != "base":
        assert 0 < means["one" if name == "path" else "two"] < 1


def test_perplexity_equals_that_of_lm_eval(pool, candidate, exported, workspace, family, monkeypatch, tmp_path):
    root = shutil.copytree(workspace.root, tmp_path / "copy")
    write_profile(root, [{"name": "two", "task": "two", "metric": "perplexity", "items": COUNTS}])
    monkeypatch.chdir(root)
    theirs = of_lm_eval(exported, workspace, ["two"])["two"]["perplexity,none"]
    (ours,) = Objectives(open_workspace("p", root), "test", family["base"]).item_scores(pool, [candidate], 0, 12)
    assert math.exp(-np.mean(ours.items["two"])) == pytest.approx(theirs, rel=1e-5)


def test_generated_metrics_equal_those_of_lm_eval(objectives, pool, name, candidate, exported, workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)
    theirs = of_lm_eval(exported, workspace, ["one_chrf", "two_sum"])
    ours = objectives.reported.evaluate(pool, candidate)
    assert ours == {
        "one_chrf": pytest.approx(theirs["one_chrf"]["chrf,none"], abs=1e-12),
        "two_pass_at_1": pytest.approx(theirs["two_sum"]["pass_at_1,none"], abs=1e-12),
    }
    assert ours["one_chrf"] > 0
    if name == "shallow":
        assert 0 < ours["two_pass_at_1"] < 1


def test_generation_leaves_the_pool_as_it_was(objectives, pool, candidate):
    before = objectives.item_scores(pool, [candidate], 0, 12)
    objectives.reported.evaluate(pool, candidate)
    assert objectives.item_scores(pool, [candidate], 0, 12) == before
    assert all(pool.block("a", layer).self_attn.layer_idx == layer for layer in range(3))


@pytest.mark.slow  # test_lm_eval_outputs.py holds every type of output against the command
def test_scores_equal_those_of_the_lm_eval_command(objectives, pool, exports, workspace, tmp_path):
    candidate, folder, names = CANDIDATES["path"], exports["path"], ["one", "two", "one_chrf", "two_sum"]
    command = [programs() / "python", "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder}"]
    options = ["--device", "cpu", "--include_path", "profiles/p", "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, **offline_environment(tmp_path), "OMP_NUM_THREADS": "1", "LMEVAL_LOG_LEVEL": "WARNING"}
    done = subprocess.run(
        [*command, *options, "--tasks", *names],
        cwd=workspace.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(result.read_text())["results"]
    (ours,) = objectives.item_scores(pool, [candidate], 0, 12)
    for name in ("one", "two"):
        assert np.mean(ours.items[name]) == pytest.approx(theirs[name]["acc,none"], abs=1e-12)
    generated = objectives.reported.evaluate(pool, candidate)
    assert generated["one_chrf"] == pytest.approx(theirs["one_chrf"]["chrf,none"], abs=1e-12)
    assert generated["two_pass_at_1"] == pytest.approx(theirs["two_sum"]["pass_at_1,none"], abs=1e-12)
