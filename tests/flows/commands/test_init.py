"""`hm3 init` and `hm3 zoo` as a user types them."""

import json
import shutil

import pytest
import yaml

from models.errors import BadInput
from tasks.families import profile
from tasks.families.finetune import read_rows
from tasks.project.workspace import open_workspace
from tests import once
from tests.flows.project import hm3
from tests.small_tasks import COUNTS, make_family_project
from tests.tasks.families.test_finetune import SMALL, TEMPLATES, write_data

QUICK = {"profiles": ["tiny"], "sample": {"candidates": 5}, "dataset": {"edits": 3, "random": 2, "items": 4}}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("# the algorithm\n" + yaml.safe_dump(SMALL))
    return tmp_path


def test_zoo_makes_a_family_that_doctor_finds_sound(root, make_llama):
    make_llama(root / "base")
    data = [write_data(root / f"{name}.jsonl", start) for name, start in (("one", 3), ("two", 20))]
    options = ["--prompt", TEMPLATES[0], "--completion", TEMPLATES[1], "--steps", "8", "--rank", "4"]
    given = [f"--data={path.stem}={path.name}" for path in data]
    done = hm3(root, "zoo", "mine", "--base", "base", *given, *options, "--held-out", "0.4", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["experts"]) == {"one", "two"}
    looked = hm3(root, "doctor", "--profile", "mine", "--json")
    assert looked.returncode == 0, looked.stdout
    assert json.loads(looked.stdout)["seconds"] > 0
    again = hm3(root, "zoo", "mine", "--base", "base", *given)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "hm3: profiles/mine.yaml: is there already; take another name, or edit or remove it\n"


def test_init_writes_a_profile_and_looks_at_it(root, make_llama, tmp_path_factory):
    elsewhere = make_llama(tmp_path_factory.mktemp("elsewhere") / "model")
    make_llama(root / "base")
    make_llama(root / "math", base=root / "base")
    make_llama(root / "wide", hidden_size=32)
    experts = ["--expert", "math=math", "--expert", f"far={elsewhere}", "--expert", "wide=wide"]
    done = hm3(root, "init", "mine", "--base", "base", *experts, "--task", "math=mathqa", "--json", timeout=300)
    assert done.returncode == 2, done.stderr  # an expert does not fit, and the task's data is on the hub
    said = json.loads(done.stdout)
    assert said["written"] == "profiles/mine.yaml"
    bad = {one["what"]: one["text"] for one in said["doctor"]["checks"] if one["status"] == "bad"}
    assert bad["wide"].startswith("expert wide: config.json: hidden_size: 32") and "math" not in bad
    profile = open_workspace("mine", root).profile
    assert profile.base == "base" and profile.experts["far"] == str(elsewhere)
    (objective,) = profile.objectives
    assert (objective.name, objective.task, objective.metric) == ("math", "mathqa", "acc")
    assert open_workspace("mine", root).params.profiles == ("tiny", "mine")


def test_init_takes_a_task_of_its_own_and_as_many_items_as_its_data_has(tmp_path, make_family):
    make_family_project(tmp_path, make_family)
    shutil.copytree(tmp_path / "profiles" / "p", tmp_path / "profiles" / "mine")
    quick = {**QUICK, "search": {"budget": 2000}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(quick))
    zoo = "runs/p/zoo"
    experts = ["--expert", f"a={zoo}/a", "--expert", f"b={zoo}/b"]
    done = hm3(
        tmp_path, "init", "mine", "--base", f"{zoo}/base", *experts, "--task", "one=one", "--task", "two=two:acc"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "items by split, as many as the data has: one 14/8/12, two 14/8/12\n" in done.stdout
    workspace = open_workspace("mine", tmp_path)
    assert [one.items.model_dump() for one in workspace.profile.objectives] == [COUNTS, COUNTS]
    assert max(workspace.params.search.rungs) == COUNTS["search"]
    assert "plan of mine" in done.stdout


def test_init_makes_objectives_of_rows_of_its_own_and_a_search_that_fits_them(root, make_llama):
    make_llama(root / "base")
    for number, name in enumerate(("one", "two"), 1):
        make_llama(root / name, seed=number, base=root / "base")
    data = [write_data(root / f"{name}.jsonl", start) for name, start in (("one", 3), ("two", 20))]
    options = ["--prompt", TEMPLATES[0], "--completion", TEMPLATES[1]]
    given = [
        word for path in data for word in ("--expert", f"{path.stem}={path.stem}", f"--data={path.stem}={path.name}")
    ]
    done = hm3(root, "init", "mine", "--base", "base", *given, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    workspace = open_workspace("mine", root)
    items = [one.items for one in workspace.profile.objectives]
    counts = [sum(one.model_dump().values()) for one in items]
    assert counts == [len(read_rows(path, *TEMPLATES)) for path in data], "every row is in one split"
    assert workspace.params.search.rungs[-1] == min(one.search for one in items)
    spent = workspace.params.search.budget / sum(one.search for one in items)
    assert 140 < spent < 160  # candidates on all items, for a model as small as this
    assert {one.metric for one in workspace.profile.objectives} == {"bits_per_byte"}


def test_init_of_a_profile_that_is_there_lists_it_and_looks_at_it(make_family, tmp_path):
    make_family_project(tmp_path, make_family)
    quick = {**QUICK, "search": {"budget": 1000, "rungs": [4, COUNTS["search"]]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(quick))
    done = hm3(tmp_path, "init", "p", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["written"] is None
    assert open_workspace("p", tmp_path).params.profiles == ("tiny", "p")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init", "mine"], "profile 'mine': unknown; give --base, --expert and --task to write it"),
        (["init", "mine", "--base", "b", "--expert", "a=x"], "--task: missing; a profile needs a base, an expert"),
        (["init", "Mine", "--base", "b", "--expert", "a=x", "--task", "a=mathqa"], "NAME Mine: a profile's name has"),
        (["init", "mine", "--base", "b", "--expert", "x", "--task", "a=mathqa"], "--expert x: write NAME=VALUE"),
        (["init", "mine", "--base", "b", "--expert", "a=x", "--task", "a=mathqaa:acc", "--dtype", "int4"], "dtype: "),
        (["zoo", "mine", "--base", "nowhere", "--data", "a=none.jsonl"], "nowhere: no such folder"),
    ],
)
def test_what_can_not_be_meant_is_one_line_and_leaves_nothing(root, words, message):
    before = (root / "params.yaml").read_text()
    done = hm3(root, *words)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list((root / "profiles").iterdir()) and (root / "params.yaml").read_text() == before


def test_a_task_is_known_by_its_name_and_its_first_metric(tmp_path):
    once.give_index(tmp_path)
    for given, metric in (
        ("gsm8k", "exact_match,strict-match"),
        ("gsm8k:exact_match,flexible-extract", "exact_match,flexible-extract"),
    ):
        (found,) = profile.objectives({"math": given}, tmp_path, tmp_path / "none")
        assert found == {"name": "math", "task": "gsm8k", "metric": metric}
    with pytest.raises(BadInput, match=r"--task gsm9k: neither in none/ nor known to lm-eval; there are gsm8k"):
        profile.first_metric("gsm9k", tmp_path, tmp_path / "none")
    with pytest.raises(BadInput, match=r"--task glue: is a group of tasks; say which metric"):
        profile.first_metric("glue", tmp_path, tmp_path / "none")


def test_models_in_the_project_are_named_from_its_folder(tmp_path):
    root, here = tmp_path / "p", tmp_path / "p" / "models"
    assert profile.reference(root, here, "base+../adapters/math") == "models/base+adapters/math"
    assert profile.reference(root, here, "hub:a/b@c+math") == "hub:a/b@c+models/math"
    assert profile.reference(root, here, "../../q/base") == str(tmp_path / "q" / "base")
    assert profile.reference(root, here, "${X}/base") == "${X}/base"
