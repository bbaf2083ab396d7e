"""`hm3 doctor`: each thing that would stop a run is found before it starts, and the costs add up."""

import io
import json
import re
import shutil
import time

import pytest
import yaml
from rich.console import Console

from models.errors import BadInput
from tasks.doctor.doctor import examine
from tasks.doctor.plan import costs_of
from tasks.objectives.calibration import calibration_of, counted
from tasks.project.records import write_text
from tasks.project.workspace import open_workspace
from tasks.sandbox import sandbox
from tests.bubblewrap import require_bubblewrap
from tests.small_tasks import COUNTS, make_family_project, prompts, write_items, write_task

SERVERS = {"Prefect": ("a run starts a server for itself", True), "MLflow": ("sqlite:///x", True)}
SMALL = {
    "profiles": ["p"],
    "sample": {"candidates": 5},
    "dataset": {"edits": 3, "random": 2, "items": 4},
    "search": {"budget": 1000, "rungs": [4, 14]},
    "pareto": {"members": 3, "rescored": 6},
}


@pytest.fixture(scope="module")
def finished(make_family, tmp_path_factory):
    root = tmp_path_factory.mktemp("doctor")
    make_family_project(root, make_family)
    (root / "params.yaml").write_text(yaml.safe_dump(SMALL))
    return root


@pytest.fixture
def root(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project")


def look(root, servers=SERVERS):
    return examine(open_workspace("p", root), servers)


def faults(diagnosis):
    return {(one.what, one.text) for one in diagnosis.checks if one.status == "bad"}


def the_fault(diagnosis):
    assert not diagnosis.sound
    (fault,) = faults(diagnosis)
    return fault


def test_a_sound_project_is_sound_and_only_the_state_is_written(finished):
    before = sorted(finished.rglob("[!.]*"))
    found = look(finished)
    assert found.sound, faults(found)
    assert {one.what for one in found.checks if one.status == "good"} >= {
        *(
            "parameters",
            "base",
            "a",
            "b",
            "tokenizer",
            "tasks",
            "data",
            "actor",
            "memory",
            "disk",
            "device",
            "Prefect",
            "MLflow",
        )
    }
    after = [path for path in finished.rglob("[!.]*") if ".hm3" not in path.parts]
    assert sorted(after) == before


def test_the_costs_add_up(finished):
    costs = costs_of(open_workspace("p", finished), seconds_an_item=0.5)
    search, selection, test = (2 * COUNTS[split] for split in ("search", "selection", "test"))
    assert list(costs) == ["zoo", "sample", "dataset", "train", "search", "pareto"]
    assert costs["sample"].item_evaluations == 5 * search
    assert costs["dataset"].item_evaluations == 5 * 2 * 4
    assert sum(costs[one].item_evaluations for one in ("sample", "dataset", "train", "search")) == 1000
    assert costs["pareto"].item_evaluations == (6 + 3) * selection + (3 + 3 + 3) * test  # corners
    assert costs["sample"].seconds == 0.5 * 5 * search
    step = 3 * 2 * COUNTS["search"]  # a quarter of the budget, by steps over all items
    assert costs["train"].item_evaluations == int(0.25 * 1000 / step) * step
    assert costs["zoo"].seconds is None


def test_what_a_stage_took_last_time_is_what_it_will_take(root):
    times = {"zoo": 100, "sample": 10, "dataset": 10, "train": 30, "search": 40, "pareto": 10}
    write_text(root / ".hm3" / "times" / "p.json", json.dumps(times))
    plan = look(root).plan
    assert (plan.seconds, plan.timed) == (200, True)


def test_an_unmade_family_is_no_fault(root):
    shutil.rmtree(root / "runs")
    found = look(root)
    assert found.sound, faults(found)
    assert {one.what for one in found.checks if one.status == "later"} == {"models", "data", "memory"}
    assert found.plan.memory is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": {"candidates": 5, "methods": ["magic"]}}, "params.yaml: sample.methods: "),
        ({"search": {"budget": 1000, "rungs": [4, 99]}}, "params.yaml: search.rungs: must grow, and end at 14"),
        ({"search": {"budget": 1000, "rungs": [8, 4]}}, "params.yaml: search.rungs: must grow"),
        ({"dataset": {"edits": 3, "random": 2, "items": 50}}, "params.yaml: dataset.items: there are 14"),
        ({"search": {"budget": 100, "rungs": [4, 14]}}, "params.yaml: search.budget: 100 item evaluations, of which"),
    ],
)
def test_parameters_that_do_not_fit_each_other_are_found(root, change, message):
    (root / "params.yaml").write_text(yaml.safe_dump(SMALL | change))
    what, text = the_fault(look(root))
    assert what == "parameters"
    assert text.startswith(message)


def test_a_profile_that_is_not_listed_yet_is_no_fault(root):
    (root / "params.yaml").write_text(yaml.safe_dump(SMALL | {"profiles": ["other"]}))
    found = look(root)
    assert found.sound and found.plan.seconds is not None
    text = "params.yaml: profiles: p is not listed; `hm3 run` adds it"
    assert text in [one.text for one in found.checks if one.status == "later"]


def test_what_a_profile_sets_for_itself_is_what_is_checked_and_planned(root):
    path = root / "profiles" / "p.yaml"
    path.write_text(path.read_text() + yaml.safe_dump({"params": {"search": {"budget": 900}}}))
    assert sum(one.item_evaluations for one in look(root).plan.costs if one.stage != "pareto") == 900
    path.write_text(path.read_text().replace("budget: 900", "rungs: [4, 99]"))
    assert the_fault(look(root))[1].startswith(
        "params.yaml, with profiles/p.yaml: params: search.rungs: must grow, and end at 14"
    )


def test_a_hub_that_does_not_answer_is_one_fault_and_found_at_once(root, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    profile = yaml.safe_load((root / "profiles" / "p.yaml").read_text()) | {"made": None, "base": "hub:org/base@v1"}
    profile["experts"] = {"a": "hub:org/a@v1", "b": "hub:org/b@v1"}
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile))
    began = time.monotonic()
    what, text = the_fault(look(root))
    assert what == "models" and time.monotonic() - began < 20
    assert text.startswith("hub:org/a@v1, hub:org/b@v1, hub:org/base@v1: http://127.0.0.1:9 can't be reached (")


def test_another_rotary_base_is_said(root):
    config = root / "runs" / "p" / "zoo" / "b" / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps(data | {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}))
    (text,) = [one.text for one in look(root).checks if one.what == "b"]
    assert "; its positions differ: rope_theta 1,000,000 (base: 10,000); its layers run with the base's" in text


def test_a_truncated_model_is_found(root):
    path = root / "runs" / "p" / "zoo" / "b" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    what, text = the_fault(look(root))
    assert what == "b"
    assert "truncated" in text


def test_an_expert_of_another_size_is_found(root, make_llama):
    shutil.rmtree(root / "runs" / "p" / "zoo" / "b")
    make_llama(root / "runs" / "p" / "zoo" / "b", layers=4)
    what, text = the_fault(look(root))
    assert what == "b"
    assert text.startswith("expert b: ")


def test_too_few_items_are_found(root):
    profile = yaml.safe_load((root / "profiles" / "p.yaml").read_text())
    profile["objectives"][0]["items"]["test"] = 500
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile))
    assert "items.test: 500, but one has 12" in the_fault(look(root))[1]


def spoil(root, **changes):
    path = root / "profiles" / "p.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["objectives"][0] |= changes
    path.write_text(yaml.safe_dump(profile))


@pytest.mark.parametrize("count", [400, 40])
def test_rows_for_calibration_are_counted_and_too_few_refused(root, count):
    for seed, name in enumerate(("one", "two")):
        write_items(root / f"{name}.jsonl", [{"prompt": one, "answer": " w4 w5"} for one in prompts(count, seed)])
        files = {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in COUNTS} | {"train": f"{name}.jsonl"}
        write_task(root, name, dataset_kwargs={"data_files": files})
    arguments = open_workspace("p", root), root / "runs/p/zoo/base"
    said = r"(\d,)?\d+ tokens of rows in no split \(one (\d,)?\d+, two (\d,)?\d+\)"
    if count == 400:
        assert re.fullmatch(said, counted(arguments[0], calibration_of(*arguments)))
        return
    with pytest.raises(
        BadInput, match=rf"profiles/p\.yaml: calibration: {said}, fewer than 2,000; ask for fewer `items\.search`"
    ):
        counted(arguments[0], calibration_of(*arguments))


def test_each_objective_is_described_with_its_items(root):
    (root / "all.jsonl").write_text(
        "".join((root / f"runs/p/tasks/one.{split}.jsonl").read_text().replace("item-", split) for split in COUNTS)
    )
    write_task(root, "alone", dataset_kwargs={"data_files": {"test": "all.jsonl"}})
    tasks = [{"task": "two"}, {"task": "alone", "scale": 0.5, "direction": "lower"}]
    spoil(root, task=None, tasks=tasks, items={"search": 8, "selection": 4, "test": 4})
    (root / "params.yaml").write_text(yaml.safe_dump(SMALL))
    found = look(root)
    assert found.sound, faults(found)
    first, second, _ = (one.text for one in found.checks if one.what == "objective")
    counts = ", ".join(f"{split} {number} of {COUNTS[split]}" for split, number in zip(COUNTS, (4, 2, 2), strict=True))
    assert first == f"one: two, acc,none (higher is better); items: {counts}"
    assert second.startswith("one: alone, acc,none (lower is better, times 0.5); items: search 4 of ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "bleu"}, "metric 'bleu': missing in its result; there are acc"),
        ({"task": "gsm8k", "metric": "exact_match"}, "gsm8k: its data set openai/gsm8k can't be reached"),
        ({"reported": [{"task": "two", "metric": "f1"}]}, "metric 'f1': missing in its result; there are acc"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_found(root, changes, message):
    spoil(root, **changes)
    assert {what for what, _ in faults(look(root))} == {"data"}
    assert all(message in text and text.startswith("profiles/p.yaml: objectives.one") for _, text in faults(look(root)))


def test_answers_that_the_models_cannot_give_are_found(root):
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 500}
    files = {split: f"runs/p/tasks/one.{split}.jsonl" for split in COUNTS}
    generate = {"output_type": "generate_until", "generation_kwargs": options, "dataset_kwargs": {"data_files": files}}
    write_task(root, "said", **generate, metric_list=[{"metric": "chrf"}])
    spoil(root, task="said", metric="chrf")
    what, text = the_fault(look(root))
    assert what == "scoring"
    assert "requested max tokens to generate (500)" in text


def test_what_the_actor_learns_from_is_said(root):
    assert texts(look(root), "actor") == ["learns from every objective"]
    options = {"until": ["Q"], "do_sample": False, "max_gen_toks": 6}
    for name, metric in (("one", "chrf"), ("two", "exact_match")):  # what a model writes ends at Q
        changes = {"output_type": "generate_until", "generation_kwargs": options, "metric_list": [{"metric": metric}]}
        write_task(root, name, **changes, doc_to_target="{{answer.strip()}} Q w4", target_delimiter=" ")
    profile = yaml.safe_load((root / "profiles" / "p.yaml").read_text())
    for objective, metric in zip(profile["objectives"], ("chrf", "exact_match"), strict=True):
        objective["metric"] = metric
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile | {"checkpointing": True}))
    assert texts(look(root), "actor") == [
        "learns nothing from two, which has no right answers of a known worth; "
        "from one, how likely reference answers are; each layer is computed a second time"
    ]


def agree(root, **changes):
    """Let the profile run programs that its models write."""
    profile = yaml.safe_load((root / "profiles" / "p.yaml").read_text())
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile | {"run_code": True} | changes))


def texts(diagnosis, what):
    return [one.text for one in diagnosis.checks if one.what == what]


def test_what_holds_generated_programs_is_said_where_they_are_run(root, finished):
    assert texts(look(finished), "sandbox") == []
    bwrap = require_bubblewrap()
    agree(root)
    assert texts(look(root), "sandbox") == [
        f"bubblewrap ({bwrap}): generated programs see the standard library, nothing else of this machine"
    ]
    agree(root, sandbox="none")
    found = look(root)
    assert found.sound and texts(found, "sandbox")[0].startswith("none: generated programs can read and change")


def test_a_missing_sandbox_is_found(root, monkeypatch):
    monkeypatch.setattr(sandbox, "binaries", list)
    sandbox.find_bubblewrap.cache_clear()
    agree(root)
    what, text = the_fault(look(root))
    assert what == "sandbox" and text.startswith("sandbox: bubblewrap is not installed; install")


def test_a_server_that_does_not_answer_is_found(root):
    found = look(root, SERVERS | {"MLflow": ("http://me:hidden@127.0.0.1:9", False)})
    assert the_fault(found) == ("MLflow", "http://127.0.0.1:9 does not answer; start it, or unset MLFLOW_TRACKING_URI")


def test_each_check_is_told_when_it_is_known_and_the_quick_ones_first(finished):
    told, opened = [], []

    def tell(check):
        told.append(check)
        opened.append(check.what in ("base", "a", "b"))

    found = examine(open_workspace("p", finished), SERVERS, tell)
    assert tuple(told) == found.checks
    assert {"parameters", "device", "Prefect", "MLflow"} <= {one.what for one in told[: opened.index(True)]}


def test_the_trial_of_the_scoring_ends_in_time_and_says_so(finished, monkeypatch):
    (text,) = texts(look(finished), "scoring")
    assert "ms an item evaluation, of 16" in text or "ms an item evaluation, of 28" in text, text
    monkeypatch.setattr("tasks.doctor.plan.PROBE_SECONDS", 0.0)
    found = look(finished)
    (text,) = texts(found, "scoring")
    assert text.endswith("of 2, stopped after 20 s")
    assert found.plan.costs[1].seconds > 0


def test_the_diagnosis_reads_well(finished):
    console = Console(file=io.StringIO(), width=100)
    found = look(finished)
    found.show(console)
    text = console.file.getvalue()
    assert "plan of p" in text
    assert "expected time: at least" in text
    assert json.loads(json.dumps(found.to_json()))["sound"] is True
