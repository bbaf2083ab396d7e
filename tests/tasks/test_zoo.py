"""Stage `zoo`: a micro family as it is made, the gates that it must pass, and families that are given."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from flows.processes.children import command_line
from models.errors import BadInput, Failed
from tasks import zoo
from tasks.families.made import check_gates, train_in_process
from tasks.families.tiny.train import Job
from tasks.objectives.calibration import calibration_of
from tasks.project.family import load_family
from tasks.project.progress import Bar, Progress
from tasks.project.workspace import open_workspace
from tasks.schema.params import ZooParams
from tests.warm import programs, warmed

ROOT = Path(__file__).parents[2]
TASKS = ("translation", "math", "code")
ITEMS = {"search": 8, "selection": 64, "test": 8}
MICRO = {
    "layers": 2,
    "width": 32,
    "feed_forward": 48,
    "heads": 2,
    "vocabulary": 320,
    "translation_examples": 60,
    "math_examples": 1500,
    "code_examples": 60,
    "base_steps": 80,
    "expert_steps": 60,
    "min_own": 0,
    "max_foreign": 1,
    "min_range": 0,
    "min_distance": 0.001,
    "max_distance": 1,
}


def make_workspace(root, profile=None, **params):
    """A project with the shipped profile, its task files, and a micro family's parameters."""
    shutil.copytree(ROOT / "profiles", root / "profiles")
    path = root / "profiles" / "tiny.yaml"
    data = yaml.safe_load(path.read_text())
    for objective in data["objectives"]:
        objective["items"] = ITEMS
    path.write_text(yaml.safe_dump({**data, **(profile or {})}))
    (root / "params.yaml").write_text(yaml.safe_dump({"seed": 3, "zoo": {**MICRO, **params}}))
    return open_workspace("tiny", root)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("zoo"))
    with Progress(workspace.root / "events.jsonl") as progress, warmed():
        zoo.run(workspace, progress)
    return workspace


def family_json(workspace):
    return json.loads((workspace.zoo / "family.json").read_text())


def test_the_family_loads_with_transformers_alone(made):
    for name in ("base", *TASKS):
        model = AutoModelForCausalLM.from_pretrained(made.zoo / name)
        tokenizer = AutoTokenizer.from_pretrained(made.zoo / name)
        assert isinstance(model, LlamaForCausalLM) and model.dtype == torch.float32
        assert tokenizer("In German,")["input_ids"] == tokenizer("In German,", add_special_tokens=False)["input_ids"]
        ids = tokenizer("In German, one:", return_tensors="pt")
        assert model.generate(**ids, max_new_tokens=4).shape[1] <= ids.input_ids.shape[1] + 4
        assert tokenizer.encode("\n")[0] in model.generation_config.eos_token_id


def test_family_json_names_folders_digests_and_gates(made):
    data = family_json(made)
    assert data["base"] == "runs/tiny/zoo/base"
    assert data["experts"] == {name: f"runs/tiny/zoo/{name}" for name in TASKS}
    assert set(data["digests"]) == {"base", *TASKS} and len(set(data["digests"].values())) == 4
    assert set(data["gates"]["scores"]) == {"base", *TASKS} and set(data["gates"]["distance"]) == set(TASKS)
    family = load_family(made)
    assert (family.base, family.experts) == (data["base"], data["experts"])


def test_distances_are_those_of_the_written_weights(made):
    weights = {name: load_file(made.zoo / name / "model.safetensors") for name in ("base", *TASKS)}
    norm = sum(tensor.double().square().sum() for tensor in weights["base"].values()).sqrt()
    for name, measured in family_json(made)["gates"]["distance"].items():
        moved = sum((t.double() - weights["base"][key]).square().sum() for key, t in weights[name].items()).sqrt()
        assert measured == pytest.approx(float(moved / norm), rel=1e-5)


def test_no_file_holds_a_path_a_time_or_a_host(made):
    for path in [*made.zoo.rglob("*"), *made.items.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            for word in (str(made.root), str(ROOT), time.strftime("%Y-%m-%d")):
                assert word.encode() not in content, path
            if path.suffix != ".safetensors":  # a short name can come up in the bytes of weights
                assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b".encode(), content), path
    assert not [path for path in made.run.iterdir() if path.name not in ("zoo", "tasks")]


def test_every_training_shows_a_moving_bar(made):
    events = [json.loads(line) for line in (made.root / "events.jsonl").read_text().splitlines()]
    for name in ("base", *TASKS):
        bars = [event for event in events if event.get("description") == f"train {name}"]
        assert bars[0]["completed"] == 0 and bars[-1]["completed"] == bars[-1]["total"]
        assert bars[-1]["note"].startswith("loss ")


def test_training_examples_are_there_for_calibration(made):
    calibration = calibration_of(made, made.zoo / "base", 1200)
    assert calibration.total >= 1200 and set(calibration.per_task) == set(TASKS)
    assert min(calibration.per_task.values()) > 350


@pytest.mark.slow  # test_real_pipeline.py holds an exported member against the same command and tasks
def test_lm_eval_gives_the_scores_of_the_gates(made):
    """The real command on the `selection` items, which it takes for its test split."""
    for task in TASKS:
        path = made.root / "profiles" / "tiny" / f"tiny_{task}.yaml"
        path.write_text(path.read_text().replace("test_split: test", "test_split: selection"))
    environment = {
        **os.environ,
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(made.root / "cache"),
    }
    names = [*(f"tiny_{task}" for task in TASKS), "tiny_translation_chrf", "tiny_code_pass"]
    command = [
        *(
            programs() / "python",
            "-m",
            "lm_eval",
            "run",
            "--model",
            "hf",
            "--model_args",
            "pretrained=runs/tiny/zoo/math",
        ),
        *("--tasks", ",".join(names), "--include_path", "profiles/tiny", "--device", "cpu", "--batch_size", "32"),
        *("--output_path", "results.json"),
    ]
    done = subprocess.run(command, cwd=made.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next(made.root.glob("results*.json")).read_text())["results"]
    scores = family_json(made)["gates"]["scores"]["math"]
    assert 0 < scores["math"] < 1  # else the comparison would say nothing
    assert {task: results[f"tiny_{task}"]["acc,none"] for task in TASKS} == scores
    assert 0 <= results["tiny_translation_chrf"]["chrf,none"] <= 100
    assert results["tiny_code_pass"]["pass@1,none"] >= 0


def test_programs_are_judged_by_what_they_give(made):
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(made.root / "profiles" / "tiny" / "tiny_code_pass.yaml", resolve_func=True)
    items = [json.loads(line) for line in (made.items / "tiny_code.test.jsonl").read_text().splitlines()][:4]
    answers = [items[0]["answer"], f" ({items[1]['answer'].strip()})", " x +", " __import__('os')"]
    attempts = [config["process_results"](doc, [text])["pass@1"] for doc, text in zip(items, answers, strict=True)]
    assert config["metric_list"][0]["aggregation"](attempts) == 0.5


@pytest.mark.slow
def test_one_seed_makes_one_family(made, tmp_path):
    again = make_workspace(tmp_path / "again")
    zoo.run(again, Progress())
    for folder in (made.zoo, made.items):
        other = again.root / folder.relative_to(made.root)
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert files == {path.relative_to(other): path.read_bytes() for path in other.rglob("*") if path.is_file()}


GATES = {
    "scores": {name: {task: 0.9 if task == name else 0.3 for task in TASKS} for name in ("base", *TASKS)},
    "distance": dict.fromkeys(TASKS, 0.1),
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("scores", "math", "math"), 0.75, r"the math expert scores 0\.750 on its own task, below zoo\.min_own 0\.8"),
        (
            ("distance", "code"),
            0.021,
            r"relative length 0\.021, outside zoo\.min_distance 0\.05 to zoo\.max_distance 0\.2",
        ),
        (("distance", "code"), 0.21, r"relative length 0\.210, outside"),
        (
            ("scores",),
            {m: {t: 0.9 if t == m else 0.75 if t == "math" else 0.1 for t in TASKS} for m in ("base", *TASKS)},
            r"base and experts span 0\.150 on math, below zoo\.min_range 0\.2",
        ),
        (("distance", "code"), float("nan"), "relative length nan, outside"),
        (
            ("scores", "math"),
            {"math": 0.9, "code": 1, "translation": 1.7},
            r"score 0\.650 on the others' tasks, above .*0\.6",
        ),
    ],
)
def test_a_missed_gate_names_the_number_and_the_bound(path, value, message):
    check_gates(GATES, ZooParams())
    missed = json.loads(json.dumps(GATES))
    place = missed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(Failed, match=message):
        check_gates(missed, ZooParams())


@pytest.mark.slow
def test_a_family_that_misses_a_gate_leaves_nothing_behind(tmp_path):
    steps = {"base_steps": 1, "expert_steps": 1}
    workspace = make_workspace(tmp_path / "p", **steps, min_own=0.99)
    with pytest.raises(Failed, match=r"below zoo\.min_own 0\.99"):
        zoo.run(workspace, Progress())
    assert not list(workspace.run.iterdir())


def test_a_stage_that_stops_leaves_nothing_behind(tmp_path):
    workspace = make_workspace(tmp_path / "p", code_examples=99_999)
    with pytest.raises(BadInput, match=r"zoo\.code_examples: 99999 asked for"):
        zoo.run(workspace, Progress())
    assert not list(workspace.run.iterdir())


def test_a_profile_with_other_experts_can_not_be_made(tmp_path):
    workspace = make_workspace(tmp_path / "p", {"experts": {"math": None, "law": None}})
    with pytest.raises(
        BadInput, match=r"profiles/tiny\.yaml: experts: the family tiny has the experts translation, math"
    ):
        zoo.run(workspace, Progress())


def test_a_training_that_fails_says_why(warm):
    job = Job("no/such/folder", None, None, 0, 1, ZooParams().model_dump(), {}, {})
    with pytest.raises(Failed, match=r"training of base ended with 1: .*no/such/folder"):
        asyncio.run(train_in_process("base", job, Bar(Progress(), "train", 1, "steps")))


PARENT = """
import sys, yaml
from pathlib import Path
from tasks import zoo
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
if __name__ == "__main__":
    zoo.run(open_workspace("tiny", Path(sys.argv[1])), Progress())
"""


def test_trainings_die_with_a_parent_that_is_killed(tmp_path):
    workspace = make_workspace(tmp_path / "p", base_steps=100_000)
    (tmp_path / "parent.py").write_text(PARENT)
    parent = psutil.Popen([sys.executable, tmp_path / "parent.py", workspace.root], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (children := [one for one in parent.children() if "tasks.families.tiny.train" in command_line(one)]):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert gone and not alive


def given_workspace(made, root, **changes):
    """A project whose profile names the micro family's folders."""
    shutil.copytree(made.zoo, root / "models")
    profile = {"made": None, "base": "models/base", "experts": {name: f"models/{name}" for name in TASKS}}
    return make_workspace(root, {**profile, **changes})


def test_a_given_family_is_checked_and_named(made, tmp_path):
    workspace = given_workspace(made, tmp_path / "p")
    zoo.run(workspace, Progress())
    data = family_json(workspace)
    assert data["base"] == "models/base" and data["experts"]["code"] == "models/code"
    assert data["digests"] == family_json(made)["digests"] and data["gates"] == {}
    assert [path.name for path in workspace.items.iterdir()] == [".empty"]


def test_a_given_model_that_is_missing_is_bad_input(made, tmp_path):
    workspace = given_workspace(made, tmp_path / "p")
    shutil.rmtree(workspace.root / "models" / "math")
    with pytest.raises(BadInput, match="math"):
        zoo.run(workspace, Progress())
    assert not list(workspace.run.iterdir())


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_given_model_with_nan_is_bad_input(made, tmp_path):
    workspace = given_workspace(made, tmp_path / "p")
    change_weights(workspace.root / "models" / "code", lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(BadInput, match=r"code: model\.norm\.weight: holds NaN or Inf"):
        zoo.run(workspace, Progress())


def test_a_given_model_of_another_width_is_bad_input(made, tmp_path):
    workspace = given_workspace(made, tmp_path / "p")
    path = workspace.root / "models" / "code" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 64}))
    with pytest.raises(BadInput, match=r"code: config\.json: hidden_size: 64, but the base has 32"):
        zoo.run(workspace, Progress())


@pytest.mark.parametrize("content", [None, "{", "[]", '{"base": "x"}'])
def test_a_family_file_that_is_missing_or_damaged_names_the_stage(tmp_path, content):
    workspace = make_workspace(tmp_path / "p")
    workspace.zoo.mkdir(parents=True)
    if content is not None:
        (workspace.zoo / "family.json").write_text(content)
    with pytest.raises(BadInput, match=r"runs/tiny/zoo/family\.json: .*; run `hm3 stage zoo --profile tiny`"):
        load_family(workspace)
