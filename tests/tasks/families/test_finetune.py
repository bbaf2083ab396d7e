"""Experts from data: read, trained for real, written as a family that doctor and stage zoo take."""

import gzip
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from models.errors import BadInput, Failed
from models.sources.lora import open_model
from tasks import zoo
from tasks.doctor.doctor import examine
from tasks.families.experts import make_experts
from tasks.families.finetune import Row, Settings, divided, read_rows, tokens_of, train_expert
from tasks.families.spare_rows import fit_repair
from tasks.project.progress import Progress
from tasks.project.references import model_finder
from tasks.project.workspace import open_workspace
from tests.conftest import random_tokenizer

SETTINGS = Settings(steps=30, rate=2e-2, batch_tokens=400, rank=4, held_out=0.4)
SMALL = {
    "profiles": ["tiny"],
    "sample": {"candidates": 5},
    "dataset": {"edits": 3, "random": 2, "items": 4},
    "search": {"budget": 3000, "rungs": [4, 12]},
}


def write_data(path, start, count=120):
    """Each answer repeats the last two words of its prompt."""
    words = np.random.default_rng(start).integers(start, start + 17, (count, 4)).tolist()
    rows = [
        {"question": " ".join(f"w{one}" for one in row), "answer": " ".join(f"w{one}" for one in row[2:])}
        for row in words
    ]
    text = "".join(json.dumps({**row, "n": number}) + "\n" for number, row in enumerate(rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


TEMPLATES = "{question} w3", " {answer}"


@pytest.fixture(scope="module")
def base(make_llama, tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("base") / "base")


def make_root(root):
    (root / "profiles").mkdir(parents=True)
    (root / "params.yaml").write_text("# the algorithm\n" + yaml.safe_dump(SMALL))
    return root


def make(root, base, name="mine", **changes):
    settings = Settings(**{**SETTINGS.__dict__, **changes})
    data = {"one": write_data(root / "one.jsonl", 3), "two": write_data(root / "two.jsonl.gz", 20)}
    find = model_finder(root / ".hm3", root)
    params = open_workspace_params(root)
    with Progress(root / "events.jsonl") as progress:
        return make_experts(root, name, str(base), find, data, TEMPLATES, settings, params, progress)


def open_workspace_params(root):
    from models.files import validate
    from tasks.project.workspace import read_yaml
    from tasks.schema.params import Params

    return validate(Params, read_yaml(root / "params.yaml"), "params.yaml")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("zoo"))
    return root, make(root, base)


def test_the_loss_falls(made):
    for trained in made[1].experts.values():
        assert trained.last_loss < trained.first_loss - 0.3
        assert trained.rows > 20


def test_a_bar_shows_every_step(made):
    events = [json.loads(line) for line in (made[0] / "events.jsonl").read_text().splitlines()]
    bars = [one for one in events if one.get("description") == "train two"]
    assert bars[-1]["completed"] == bars[-1]["total"] == 30 and bars[-1]["note"].startswith("loss ")


def test_the_family_is_one_for_doctor_and_stage_zoo(made, base):
    root, result = made
    workspace = open_workspace("mine", root)
    assert workspace.params.profiles == ("tiny", "mine")
    assert (root / "params.yaml").read_text().startswith("# the algorithm\n")
    zoo.run(workspace, Progress())
    assert set(json.loads((workspace.zoo / "family.json").read_text())["digests"]) == {"base", "one", "two"}
    assert fit_repair(root, "mine").startswith("seams are not repaired")
    found = examine(open_workspace("mine", root), {})
    assert found.sound, [one for one in found.checks if one.status == "bad"]
    assert found.plan.seconds is not None
    most = min(one["search"] for one in result.items.values())
    assert max(workspace.params.search.rungs) <= most


def test_an_expert_foresees_held_out_answers_of_its_own_task_better_than_the_base(made):
    from models.candidate import Candidate
    from models.paths.pool import Pool
    from tasks.objectives.objectives import Objectives

    workspace = open_workspace("mine", made[0])
    find = model_finder(workspace.state, made[0])
    sources = {
        name: open_model(str(one), find)
        for name, one in (("base", workspace.profile.base), *workspace.profile.experts.items())
    }
    pool = Pool(sources["base"].config)
    for name, source in sources.items():
        pool.add(name, source)
    objectives = Objectives(workspace, "test", sources["base"].tokenizer)
    candidates = [Candidate.identity(name, pool.layers) for name in ("base", "one", "two")]
    stop = max(objectives.count(name) for name in objectives.names)
    base, one, two = (
        {k: sum(v) / len(v) for k, v in scored.items.items()}
        for scored in objectives.item_scores(pool, candidates, 0, stop)
    )
    assert one["one"] > base["one"] + 0.1 and two["two"] > base["two"] + 0.1
    reported = objectives.reported.evaluate(pool, candidates[1])
    assert 0 <= reported["two_token_accuracy"] < reported["one_token_accuracy"] <= 1


def test_no_held_out_row_was_trained_on_and_no_row_is_in_two_splits(made):
    root, _ = made
    rows = read_rows(root / "one.jsonl", *TEMPLATES)
    train, kept = divided(rows, SETTINGS.held_out)
    splits = [
        {
            (one["prompt"], one["completion"])
            for one in map(json.loads, (root / f"zoo/mine/data/one.{which}.jsonl").open())
        }
        for which in ("search", "selection", "test")
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(kept)
    assert not set.union(*splits) & {(row.prompt, row.completion) for row in train}
    assert len(train) + len(kept) == len(rows)


def test_one_seed_makes_one_expert_and_another_another(made, base, tmp_path):
    rows, _ = divided(read_rows(made[0] / "one.jsonl", *TEMPLATES), SETTINGS.held_out)
    for name, seed in (("again", 0), ("other", 1)):
        settings = Settings(**{**SETTINGS.__dict__, "seed": seed})
        train_expert(base, rows, tmp_path / name, settings, Progress(), name, str(base))
    first, again, other = (
        (folder / "adapter_model.safetensors").read_bytes()
        for folder in (made[0] / "zoo/mine/one", tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


def test_all_weights_can_be_trained(base, tmp_path):
    rows = read_rows(write_data(tmp_path / "one.jsonl", 3), *TEMPLATES)
    settings = Settings(steps=20, rate=5e-3, batch_tokens=400, full=True)
    trained = train_expert(base, rows, tmp_path / "full", settings, Progress(), "full", str(base))
    assert trained.last_loss < trained.first_loss
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "full" / "model.safetensors")
    assert set(before) == set(after)
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    zoo.check_models({"base": str(base), "full": "full"}, lambda one: tmp_path / one, Progress())


def test_the_loss_is_on_the_answer_and_its_end():
    tokenizer = random_tokenizer(41)
    ids, before = tokens_of(tokenizer, Row("w5 w6 ", "w7 w8"))
    assert ids == [5, 6, 7, 8, 2] and before == 2
    assert tokens_of(tokenizer, Row("", "w7 w8")) == ([7, 8, 2], 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("{", "line 1: not readable as JSON"),
        ("[1]\n", "line 1: no JSON object"),
        ('{"q": "a"}\n', r"line 1: has no field 'prompt'; there are q"),
        ('{"prompt": "a", "completion": " "}\n', "line 1: has an empty answer"),
    ],
)
def test_data_that_can_not_be_used_is_bad_input(tmp_path, content, message):
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(BadInput, match=message):
        read_rows(tmp_path / "data.jsonl")


def test_rows_are_texts_or_fields_as_they_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "w3 w4"}\n{"text": "w3 w4"}\n{"prompt": "w5", "completion": " w6"}\n')
    assert read_rows(tmp_path / "a.jsonl") == [Row("", "w3 w4"), Row("w5", " w6")]
    (tmp_path / "b.jsonl").write_text('{"q": "{a}", "a": "w6"}\n')
    assert read_rows(tmp_path / "b.jsonl", "Q: {q}\nA:", " {a}") == [Row("Q: {a}\nA:", " w6")]


def test_too_few_rows_are_bad_input_and_leave_nothing(base, tmp_path):
    root = make_root(tmp_path / "p")
    path = write_data(root / "one.jsonl", 3, count=3)
    with pytest.raises(BadInput, match="give more"):
        make_experts(
            root,
            "mine",
            str(base),
            model_finder(root, root),
            {"one": path},
            TEMPLATES,
            SETTINGS,
            open_workspace_params(root),
            Progress(),
        )
    assert not (root / "zoo").exists() and not list((root / "profiles").iterdir())


def test_a_loss_that_is_no_number_ends_the_training(base, tmp_path):
    rows = read_rows(write_data(tmp_path / "one.jsonl", 3), *TEMPLATES)
    with pytest.raises(Failed, match=r"one: the loss is nan after \d+ steps; lower --rate"):
        train_expert(base, rows, tmp_path / "one", Settings(steps=20, rate=1e30, full=True), Progress(), "one", "base")
    assert not (tmp_path / "one").exists()
