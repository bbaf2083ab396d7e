"""Calibration: items with their answers from rows that are in no split, evenly of every objective."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import BadInput
from models.paths.calibration import Calibration
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.objectives.calibration import calibration_of, fairly
from tasks.objectives.objectives import Objectives
from tasks.objectives.tokens import open_tokenizer
from tasks.project.workspace import open_workspace
from tests.small_tasks import COUNTS, make_family_project, prompts, write_items, write_profile, write_task

CHOICES = {
    "output_type": "multiple_choice",
    "target_delimiter": " ",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "right",
}
WRITTEN = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["w3"], "do_sample": False, "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "target_delimiter": " ",
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{prompt}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


@pytest.fixture(scope="module")
def made(make_family, tmp_path_factory):
    return make_family_project(tmp_path_factory.mktemp("project"), make_family)


@pytest.fixture
def root(made, tmp_path):
    """A project whose models and items are those of ``made``."""
    (tmp_path / "runs").symlink_to(made.root / "runs")
    for name in ("one", "two"):
        write_task(tmp_path, name)
    write_profile(tmp_path, objectives())
    return tmp_path


def objectives(**changes):
    return [{"name": name, "task": name, "items": COUNTS} | changes for name in ("one", "two")]


def rows(count, seed, start=0):
    answers = prompts(count, seed + 1)
    return [
        {"id": f"row-{start + number}", "prompt": text, "answer": f" {answer}", "choices": ["w4", "w5 w6", "w7"]}
        | {"right": number % 3}
        for number, (text, answer) in enumerate(zip(prompts(count, seed), answers, strict=True))
    ]


def base(root):
    return root / "runs" / "p" / "zoo" / "base"


def found(root, tokens=600):
    return calibration_of(open_workspace("p", root), base(root), tokens)


def texts(root, calibration, name):
    tokenizer = open_tokenizer(base(root))
    pairs = zip(calibration.tasks, calibration.tokens, strict=True)
    return [tokenizer.decode(one) for task, one in pairs if task == name]


def with_training(root, count=90, **changes):
    """Both tasks with rows for training."""
    for seed, name in enumerate(("one", "two")):
        write_items(root / "data" / f"{name}.train.jsonl", rows(count, 100 + seed))
        files = {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in COUNTS}
        files["train"] = f"data/{name}.train.jsonl"
        write_task(root, name, dataset_kwargs={"data_files": files}, **changes)


def shared(root, count=200, **changes):
    """Both tasks with one file each, which is divided by hash."""
    for seed, name in enumerate(("one", "two")):
        write_items(root / "data" / f"{name}.jsonl", rows(count, 200 + seed))
        write_task(root, name, dataset_kwargs={"data_files": {"test": f"data/{name}.jsonl"}}, **changes)


def item_prompts(root, name):
    """Prompts of the items of all splits."""
    workspace = open_workspace("p", root)
    splits = [Objectives(workspace, split, base(root)).composed[name].parts for split in COUNTS]
    return {doc["prompt"] for parts in splits for part in parts for doc in part.built.docs}


def test_rows_for_training_are_taken(root):
    with_training(root)
    calibration = found(root)
    assert calibration.total >= 600 and calibration.total - calibration.sizes[-1] < 600
    for seed, name in enumerate(("one", "two")):
        known = {f"{one['prompt']}{one['answer']}" for one in rows(90, 100 + seed)}
        assert set(texts(root, calibration, name)) <= known
    assert calibration.digest == found(root).digest


def test_a_row_for_training_that_is_an_item_is_left_out(root):
    with_training(root, 40)
    path = root / "data" / "one.train.jsonl"
    items = [json.loads(one) for one in (root / "runs/p/tasks/two.test.jsonl").read_text().splitlines()]
    write_items(path, [*map(json.loads, path.read_text().splitlines()), *({**one, "id": "x"} for one in items)])
    taken = texts(root, found(root, 10_000), "one")
    assert len(taken) == 40 and not {f"{one['prompt']}{one['answer']}" for one in items} & set(taken)


@pytest.mark.parametrize("kind", [{}, CHOICES, WRITTEN, ROLLING], ids=["answer", "choice", "written", "rolling"])
@pytest.mark.parametrize("shots", [0, 2])
def test_else_rows_of_the_search_share_that_are_no_items(root, kind, shots):
    if kind == ROLLING and shots:
        return  # a text has no examples
    shared(root, **kind)
    metric = kind.get("metric_list", [{"metric": "acc"}])[0]["metric"]
    write_profile(root, objectives(metric=metric, shots=shots))
    calibration = found(root, 100_000)
    for seed, name in enumerate(("one", "two")):
        items, taken = item_prompts(root, name), texts(root, calibration, name)
        whole = {row["prompt"]: answered(kind, row) for row in rows(200, 200 + seed)}
        own = [next(one for one in whole if f" {text}".endswith(f" {whole[one]}")) for text in taken]
        assert len(items) == sum(COUNTS.values()) and not items & set(own)
        share = 0.45 * 200 - COUNTS["search"] - 4 * shots
        assert 0.5 * share < len(own) == len(set(own)) < 1.5 * share
        assert all((text == whole[one]) == (shots == 0) for text, one in zip(taken, own, strict=True))


def answered(kind, row):
    """What a model reads of a row without examples."""
    if kind == ROLLING:
        return f"<s> {row['prompt']}"
    return f"{row['prompt']} {row['choices'][row['right']] if kind == CHOICES else row['answer'].strip()}"


@pytest.mark.parametrize("kind", [{}, WRITTEN], ids=["answer", "written"])
def test_answers_follow_a_chat_template_at_once(root, kind):
    shared(root, **kind)
    metric = kind.get("metric_list", [{"metric": "acc"}])[0]["metric"]
    write_profile(root, objectives(metric=metric), chat_template=True)
    whole = {answered(kind, row) for row in rows(200, 200)}
    taken = texts(root, found(root), "one")
    assert taken and {text.replace("<s> ", "") for text in taken} <= whole


@pytest.mark.parametrize("training", ["train", "test", None])
def test_a_data_set_s_own_training_split_is_taken_unless_items_come_from_it(root, training):
    for name, seed in (("one", 200), ("two", 201)):
        write_items(root / "sets" / name / "test.jsonl", rows(200, seed))
        write_items(root / "sets" / name / "train.jsonl", rows(90, seed + 100))
        write_task(root, name, dataset_path=str(root / "sets" / name), dataset_kwargs=None, training_split=training)
    taken = texts(root, found(root), "one")
    known = {answered({}, row) for row in (rows(90, 300) if training == "train" else rows(200, 200))}
    assert taken and set(taken) <= known
    assert not item_prompts(root, "one") & {row["prompt"] for row in rows(200, 200) if answered({}, row) in taken}


def test_nothing_is_left(root):
    with pytest.raises(BadInput, match=r"objectives\.one: no row is left for calibration: name rows for training"):
        found(root)


def test_any_first_tokens_hold_nearly_as_many_of_every_objective(root):
    with_training(root)
    calibration = found(root)
    for tokens in (1, 50, 200, 400):
        first = calibration.first(tokens)
        assert first.total >= tokens and first.total - first.sizes[-1] < tokens
        of_tasks = [first.per_task.get(name, 0) for name in ("one", "two")]
        assert abs(of_tasks[0] - of_tasks[1]) <= max(calibration.sizes)
        assert first.tokens == calibration.tokens[: len(first.tokens)]
    assert calibration.first(10**6).digest == calibration.digest


def test_an_order_is_fair_for_lists_of_any_lengths():
    generator = np.random.default_rng(0)
    sizes = [generator.integers(1, 30, count).tolist() for count in (40, 40, 3, 0)]
    order = list(fairly(sizes, [1, 2, 1, 1]))
    assert sorted(order) == [(one, item) for one, own in enumerate(sizes) for item in range(len(own))]
    tokens = [0.0, 0.0]
    for one, item in order[:60]:
        if one < 2:
            tokens[one] += sizes[one][item] / (1, 2)[one]
            assert abs(tokens[0] - tokens[1]) <= 30


def test_tasks_of_an_objective_share_it(root):
    with_training(root)
    tasks = [{"task": "one", "weight": 3.0}, {"task": "two"}]
    write_profile(root, [{"name": "both", "tasks": tasks, "items": COUNTS}])
    taken = found(root)
    assert set(taken.tasks) == {"both"}
    first = {one["prompt"] for one in rows(90, 100)}
    mine = [any(text.startswith(f"{one} ") for one in first) for text in texts(root, taken, "both")]
    assert 0.6 < sum(size for size, own in zip(taken.sizes, mine, strict=True) if own) / taken.total < 0.9


def test_every_token_of_a_batch_that_is_read_is_real(root, made):
    with_training(root)
    calibration = found(root)
    pool = Pool(open_checkpoint(base(root)).config)
    requests = calibration.requests(pool)
    read = {}
    for batch in requests.batches:
        real = batch.real(torch.zeros(*batch.ids.shape, 1))
        for row, ids, mask in zip(batch.rows.tolist(), batch.ids, real, strict=True):
            read[row] = tuple(ids[mask].tolist())
    assert [read[row] for row in sorted(read)] == [one[:-1] for one in calibration.tokens]
    assert sum(map(len, read.values())) == calibration.total


def test_long_texts_are_cut_to_what_the_models_take(root):
    write_items(root / "data" / "long.jsonl", [{"prompt": "w4 " * 100, "answer": f"w5 w{n}"} for n in range(6, 30)])
    for name in ("one", "two"):
        files = {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in COUNTS} | {"train": "data/long.jsonl"}
        write_task(root, name, dataset_kwargs={"data_files": files})
    calibration = found(root)
    assert {*map(len, calibration.tokens)} == {65} and set(calibration.sizes) == {64}


def test_a_file_gives_back_what_was_written_and_its_bytes_depend_on_that_alone(root, tmp_path):
    with_training(root)
    calibration = found(root)
    calibration.write(tmp_path / "a.safetensors")
    again = Calibration.read(tmp_path / "a.safetensors")
    again.write(tmp_path / "b.safetensors")
    assert (again.tasks, again.tokens, again.digest) == (calibration.tasks, calibration.tokens, calibration.digest)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    pixels = Calibration(("x", "y"), (0, 1), None, torch.randn(2, 3, 4, 4).half(), 5)
    pixels.write(tmp_path / "c.safetensors")
    assert Calibration.read(tmp_path / "c.safetensors").digest == pixels.digest
    assert pixels.digest != Calibration(("x", "y"), (0, 1), None, pixels.pixels + 1, 5).digest != calibration.digest


TEXTS = Calibration(("x", "y"), (2, 1), ((1, 2, 3), (4, 5)))


@pytest.mark.parametrize(
    "changes",
    [
        {"length": torch.tensor([3, 3], dtype=torch.int32)},
        {"length": torch.tensor([4, 1], dtype=torch.int32)},
        {"length": torch.tensor([5], dtype=torch.int32)},
        {"task": torch.tensor([0, 2], dtype=torch.int32)},
        {"task": torch.tensor([0, -1], dtype=torch.int32)},
        {"task": torch.tensor([[0, 1]], dtype=torch.int32)},
        {"token": torch.tensor([1, 2, 3, 4, -5], dtype=torch.int32)},
        {"token": torch.tensor([1.0, 2, 3, 4, 5])},
        {"token": None},
        {"pixels": torch.full((2, 3, 4, 4), torch.nan).half()},
        {"pixels": torch.zeros(2, 3, 4, 4)},
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, changes):
    path = tmp_path / "rows.safetensors"
    TEXTS.write(path)
    tensors = {**load_file(path), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, path, {"calibration": json.dumps({"tasks": ["x", "y"], "image_tokens": 5})})
    with pytest.raises(BadInput, match=r"rows\.safetensors: holds no calibration"):
        Calibration.read(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    TEXTS.write(path)
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-3], whole.replace(b"image_tokens", b"image_tokenz")):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"rows\.safetensors"):
            Calibration.read(path)
    with pytest.raises(BadInput, match="missing"):
        Calibration.read(tmp_path / "none.safetensors")


def test_tokens_that_the_models_do_not_know_are_refused(root):
    pool = Pool(open_checkpoint(base(root)).config)
    with pytest.raises(BadInput, match="calibration: token 41: the models have 41"):
        Calibration(("x",), (1,), ((3, 41),)).requests(pool)
