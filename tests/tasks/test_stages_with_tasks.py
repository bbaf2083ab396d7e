"""The stages on objectives of several tasks, of generation among them, whose items are split by hash."""

import json

import pytest
import yaml

from tasks import dataset, pareto, sample, search, train
from tasks.objectives.items import SPLITS
from tasks.objectives.objectives import Objectives
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tests import small_search
from tests.small_tasks import COUNTS, answered, make_family_project, prompts, write_items, write_profile, write_task

PARAMS = small_search.PARAMS | {"pareto": {"members": 4, "rescored": 4}}
ITEMS = {"search": 12, "selection": 8, "test": 8}
GENERATE = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
    "doc_to_target": "{{answer.strip()}}",
    "metric_list": [{"metric": "exact_match"}, {"metric": "chrf"}],
}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc"}],
}
STAGES = (sample, dataset, train, search, pareto)


@pytest.fixture(scope="module")
def finished(make_family, tmp_path_factory):
    """A project whose pipeline has run, and the number of its journal's entries."""
    root = tmp_path_factory.mktemp("stages")
    workspace = make_family_project(root, make_family)
    items = answered(workspace.zoo / "a", prompts(60, 7))
    for number, item in enumerate(items):
        item |= {"choices": [item["answer"].strip(), "w4 w5"], "gold": number % 2}
    write_items(root / "all.jsonl", items)
    data = {"dataset_kwargs": {"data_files": {"test": "all.jsonl"}}}
    write_task(root, "said", **GENERATE, **data)
    write_task(root, "chosen", **CHOICE, **data)
    tasks = [{"task": "said", "metric": "chrf", "scale": 0.01}, {"task": "chosen", "weight": 2}]
    reported = [{"task": "said", "metric": "exact_match"}]
    objectives = [
        {"name": "mixed", "tasks": tasks, "expert": "a", "items": ITEMS, "reported": reported},
        {"name": "two", "task": "two", "expert": "b", "items": COUNTS},
    ]
    write_profile(root, objectives)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    workspace = open_workspace("p", root)
    run(workspace)
    return workspace


def run(workspace):
    for stage in STAGES:
        stage.run(workspace, Progress())


def entries(workspace):
    return sum(len(one.read_text().splitlines()) - 1 for one in (workspace.state / "journal").rglob("*.jsonl"))


def test_the_front_holds_scores_of_every_split(finished):
    front = json.loads((finished.run / "front.json").read_text())
    assert front["objectives"] == ["mixed", "two", "layers"]
    for member in front["members"]:
        assert set(member["scores"]) == set(SPLITS)
        assert set(member["reported"]) == {"mixed_exact_match"}
        assert all(0 <= one["mixed"] <= 1 for one in member["scores"].values())
    assert len({member["scores"]["search"]["mixed"] for member in front["members"]}) > 1


def test_nothing_is_scored_twice(finished):
    before, front = entries(finished), (finished.run / "front.json").read_bytes()
    run(finished)
    assert entries(finished) == before
    assert (finished.run / "front.json").read_bytes() == front


def test_no_item_is_in_two_splits(finished):
    held = [set(Objectives(finished, split, finished.zoo / "base").ids("mixed")) for split in SPLITS]
    assert [len(one) for one in held] == list(ITEMS.values())
    assert len(set.union(*held)) == sum(ITEMS.values())
