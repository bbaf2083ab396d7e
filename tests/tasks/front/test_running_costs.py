"""What the members of a front take to run: measured once a depth, kept, and shown where it is known."""

import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from models.candidate import Candidate
from models.merge.path_recipe import path_recipe
from models.merge.recipe import dump_recipes
from models.paths.latency import RunningCost
from tasks.front.checkpoint import write_member
from tasks.front.front import Front
from tasks.front.running_costs import DEEPEST, RunningCosts, depths, known_costs, running_costs, short
from tasks.front.table import front_table, markdown, summary, table_rows
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.zoo import run as zoo
from tests.small_front import SPLITS, member, write_front
from tests.small_images import LAYERS as IMAGE_LAYERS
from tests.small_images import make_vit_project


@pytest.fixture
def front(project):
    return Front.read(project.run)


@pytest.fixture(scope="module")
def measured(shared_project):
    """Front and costs of a project that nobody changes."""
    front = Front.read(shared_project.run)
    return front, running_costs(shared_project, front)


@pytest.fixture
def shallow(front):
    """One depth of it."""
    return replace(front, members=tuple(one for one in front.members if one.layers == 3), references=())


def files(workspace):
    return sorted((workspace.state / "costs").glob("*.json"))


def drop_models(workspace):
    for folder in workspace.zoo.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)


def test_each_depth_costs_what_the_checkpoints_of_its_members_cost(measured, shared_project, tmp_path):
    front, costs = measured
    assert set(costs.of) == {3, 4, 5} == depths(front)
    for one in front.members:
        out = tmp_path / one.id
        write_member(shared_project, one, out, Progress())
        model = AutoModelForCausalLM.from_pretrained(out)
        cost = costs.of[one.layers]
        assert cost.parameters == sum(parameter.numel() for parameter in model.parameters()), one.id
        cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
        assert cost.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 3


def test_it_is_measured_once_and_known_without_the_models(project, front):
    threads = torch.get_num_threads()
    costs = running_costs(project, front)
    assert torch.get_num_threads() == threads
    assert "2 CPU threads" in costs.note and "float32" in costs.note
    drop_models(project)
    assert running_costs(project, front) == costs == known_costs(project)
    assert len(files(project)) == 1


def test_only_depths_that_are_not_known_are_measured(project, front, shallow):
    first = running_costs(project, shallow)
    assert set(first.of) == {3}
    costs = running_costs(project, front)
    assert set(costs.of) == {3, 4, 5}
    assert costs.of[3] == first.of[3]


@pytest.mark.parametrize("change", ["family", "dtype", "threads"])
def test_other_models_and_settings_are_measured_anew(project, shallow, change):
    before = running_costs(project, shallow)
    other = project
    if change == "family":
        family = json.loads((project.zoo / "family.json").read_text())
        (project.zoo / "family.json").write_text(json.dumps(family | {"digests": {"base": "0" * 64}}))
    else:
        value = {"dtype": "bfloat16", "threads": 1}[change]
        other = replace(project, profile=project.profile.model_copy(update={change: value}))
    assert known_costs(other).of == {}
    costs = running_costs(other, shallow)
    assert set(costs.of) == set(before.of)
    assert len(files(project)) == 2
    if change == "dtype":
        assert costs.of[3].cache_bytes == before.of[3].cache_bytes / 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "{",
        lambda data: json.dumps({**data, "costs": [{**data["costs"][0], "ms_1": -1.0}]}),
        lambda data: json.dumps({**data, "costs": [{**data["costs"][0], "cache_bytes": "many"}]}),
    ],
    ids=["no JSON", "a negative time", "a word for bytes"],
)
def test_a_file_that_does_not_hold_is_measured_anew(project, shallow, damage):
    running_costs(project, shallow)
    (file,) = files(project)
    file.write_text(damage(json.loads(file.read_text())))
    assert known_costs(project).of == {}
    assert set(running_costs(project, shallow).of) == {3}


def test_without_the_models_one_line_says_why(project, front):
    drop_models(project)
    costs = running_costs(project, front)
    assert costs.of == {}
    assert costs.note.startswith("what members take to run is not known: ")
    assert "base" in costs.note and "\n" not in costs.note and str(project.root) not in costs.note
    (project.zoo / "family.json").unlink()
    assert "runs/tiny/zoo/family.json: no such file" in running_costs(project, front).note
    assert files(project) == []


def test_without_the_device_one_line_says_why(project, front):
    other = replace(project, profile=project.profile.model_copy(update={"device": "cuda:7"}))
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "profiles/tiny.yaml: device: cuda:7 isn't here" in running_costs(other, front).note


def test_a_model_of_the_hub_is_not_fetched_for_it(project, front):
    family = json.loads((project.zoo / "family.json").read_text())
    (project.zoo / "family.json").write_text(json.dumps(family | {"base": "hub:nobody/nothing@main"}))
    note = running_costs(project, front).note
    assert "hub:nobody/nothing@main: not fetched yet; `hm3 run --profile tiny` fetches it" in note


def test_a_front_of_deeper_models_builds_nothing(project, front):
    first = front.members[0]
    endless = replace(first, path=tuple((first.host, 0) for _ in range(DEEPEST * front.layers + 1)))
    assert len(endless.path) not in depths(replace(front, members=(endless, *front.members[1:])))
    scores = {split: {**values, "layers": 1 / 1000} for split, values in first.scores.items()}
    deep = replace(front, members=(replace(first, scores=scores), *front.members[1:]))
    assert "it is of other models" in running_costs(project, deep).note


def test_where_nothing_can_be_kept_it_is_shown_all_the_same(project, shallow):
    (project.state / "costs").write_text("a file where the folder would be")
    assert set(running_costs(project, shallow).of) == {3}


def test_the_columns_stand_beside_the_layers(measured):
    front, costs = measured
    assert costs.headings == ("parameters", "ms/token ×1", "×32", "KV B/token")
    for row in table_rows(front, "test", costs=costs):
        assert row.costs == costs.cells(int(row.layers))
        assert row.costs[3] == f"{int(row.layers) * 2 * 32 * 4:,}"
    console = Console(file=io.StringIO(), width=200)
    console.print(front_table(front, "test", costs=costs))
    shown, written = console.file.getvalue(), markdown(front, "test", costs)
    for cell in (*costs.headings, *costs.cells(3)):
        assert cell in shown
        assert cell in written
    assert len({line.count("|") for line in written.splitlines()[2:]}) == 1


def test_what_is_not_known_has_no_column_or_an_empty_cell(measured):
    front, costs = measured
    assert {row.costs for row in table_rows(front, "test")} == {()}
    assert "ms/" not in markdown(front, "test")
    partly = RunningCosts({3: costs.of[3]})
    cells = {row.layers: row.costs for row in table_rows(front, "test", costs=partly)}
    assert cells["3"] == costs.cells(3)
    assert cells["4"] == ("",) * 4


def test_the_summary_holds_numbers_or_null(measured):
    front, costs = measured
    said = json.loads(json.dumps(summary(front, costs=costs)))
    for one in (*said["members"], *said["references"]):
        assert one["cost"].keys() == {"layers", "parameters", "ms_1", "ms_32", "cache_bytes", "unit"}
        assert RunningCost(**one["cost"]) == costs.of[one.get("layers", front.layers)]
    assert {str(one["cost"]) for one in summary(front)["members"]} == {"None"}


def test_references_are_as_deep_as_the_base_where_the_front_says_so(front):
    assert front.layers in depths(replace(front, members=front.members[3:4]))
    assert depths(replace(front, members=front.members[3:4], references=())) == {3}
    tasks = tuple(one for one in front.objectives if one != "layers")
    flat = replace(front, objectives=tasks, members=front.members[3:4])
    assert depths(flat) == {3}
    costs = RunningCosts({3: RunningCost(3, 10, 1.0, 1.0, 8.0, "token"), 4: RunningCost(4, 12, 1.0, 1.0, 8.0, "token")})
    assert {row.costs for row in table_rows(flat, "test", costs=costs) if row.kind != "member"} == {("",) * 4}


def test_an_encoder_is_counted_with_the_heads_that_its_members_have(tmp_path):
    workspace = make_vit_project(tmp_path)
    zoo(workspace, Progress())
    members = []
    for layers in ((0, 1, 2, 3), (0, 2, 3)):
        candidate = Candidate("one", tuple(("one", layer) for layer in layers))
        file = f"members/{candidate.id}/recipe.yaml"
        recipe = dump_recipes(path_recipe(candidate, {}, "models/{}".format, IMAGE_LAYERS))
        write_text(workspace.run / file, recipe)
        scores = {split: {"one": 0.5, "two": 0.5, "layers": len(layers) / IMAGE_LAYERS} for split in SPLITS}
        members.append(member(candidate, file, scores, {"one": 1.0}))
    write_front(workspace, members)
    front = Front.read(workspace.run)
    costs = running_costs(workspace, front)
    assert costs.headings == ("parameters", "ms/image ×1", "×32")
    for one in front.members:
        out = tmp_path / one.id
        write_member(workspace, one, out, Progress())
        model = AutoModelForImageClassification.from_pretrained(out)
        cost = costs.of[one.layers]
        assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert (cost.cache_bytes, cost.unit) == (None, "image")
        assert len(costs.cells(one.layers)) == 3


@pytest.mark.parametrize(
    ("count", "text"),
    [(4_100, "4.1k"), (720_000, "0.72M"), (134_515_008, "135M"), (999_999_000, "1000M"), (6_738_415_616, "6.74B")],
)
def test_a_number_of_parameters_has_three_digits(count, text):
    assert short(count) == text
