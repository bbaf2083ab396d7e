"""Objectives of several tasks, of generation, of data without splits: made and scored as the profile says."""

import json

import pytest
import torch
from lm_eval.api import metrics

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.objectives.items import SPLITS, digest
from tasks.objectives.objectives import Objectives
from tasks.project.workspace import open_workspace
from tests.bubblewrap import require_bubblewrap
from tests.small_tasks import COUNTS, write_items, write_profile, write_task

MEAN = {"aggregation": "mean", "higher_is_better": True}
GENERATE = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
    "doc_to_target": "{{answer.strip()}}",
    "metric_list": [{"metric": "exact_match", **MEAN}, {"metric": "chrf"}],
}
A, B = (Candidate.identity(name, 3) for name in "ab")
MIXED = Candidate("a", (("a", 0), ("b", 1), ("a", 1), ("a", 2)))


def lines(root, name, split="search"):
    return [json.loads(line) for line in (root / f"runs/p/tasks/{name}.{split}.jsonl").read_text().splitlines()]


def answered(root, name):
    return [float(one["answered"]) for one in lines(root, name)]


def data_files(name):
    return {"dataset_kwargs": {"data_files": {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in COUNTS}}}


def opened(root, family, split="search", name="p"):
    return Objectives(open_workspace(name, root), split, family["base"])


def everything(root, name="one"):
    """One file with the items of all splits, which then belong to none."""
    items = [item | {"id": f"{split}-{item['id']}"} for split in COUNTS for item in lines(root, name, split)]
    write_items(root / "all.jsonl", items)
    return {"dataset_kwargs": {"data_files": {"test": "all.jsonl"}}}


def test_tasks_of_one_objective_take_turns_by_weight(root, family, pool):
    tasks = [{"task": "one", "weight": 3}, {"task": "two", "weight": 1}]
    write_profile(root, [{"name": "both", "tasks": tasks, "items": COUNTS | {"search": 12}}])
    objectives = opened(root, family)
    found = objectives.item_scores(pool, [A, B], 0, 99)
    order = objectives.composed["both"].order
    assert (order.count(0), order.count(1)) == (9, 3)
    for name, scored in (("one", found[0]), ("two", found[1])):
        number = ("one", "two").index(name)
        mine = [value for value, task in zip(scored.items["both"], order, strict=True) if task == number]
        assert mine == answered(root, name)[: order.count(number)]
    ids = objectives.ids("both")
    assert [one for one in ids if one.startswith("two")] == [f"two: {one['id']}" for one in lines(root, "two")[:3]]
    assert len(set(ids)) == 12


def test_a_group_is_its_tasks_with_equal_shares(root, family, pool):
    (root / "profiles/p/pair.yaml").write_text("group: pair\ntask: [one, {task: two, doc_to_text: 'Q {{prompt}}'}]\n")
    write_profile(root, [{"name": "both", "task": "pair", "items": COUNTS | {"search": 8}}])
    objectives = opened(root, family)
    one, two = objectives.composed["both"].parts
    assert (one.count, two.count) == (4, 4)
    assert [item[0].arguments[0][:2] for item in two.built.requests] == ["Q "] * 4
    assert objectives.item_scores(pool, [A], 0, 8)[0].items["both"][0::2] == answered(root, "one")[:4]


def test_greedy_generation_answers_what_a_model_answers_and_increments_add_up(root, family, pool):
    write_task(root, "said", **GENERATE, **data_files("one"))
    tasks = [{"task": "said", "metric": "exact_match"}, {"task": "two"}]
    objective = {"name": "both", "tasks": tasks, "items": COUNTS}
    write_profile(root, [objective, {"name": "one", "task": "one", "items": COUNTS}], generation_batch=3)
    objectives = opened(root, family)
    told = []
    whole = objectives.item_scores(pool, [A, MIXED], 0, 14, told.append)
    assert whole[0].items["both"][0::2] == answered(root, "one")[:7] == whole[0].items["one"][:7]
    assert sum(told) == pytest.approx(2)
    assert len(told) > 10
    parts = [objectives.item_scores(pool, [A, MIXED], *span) for span in ((0, 3), (3, 4), (4, 14))]
    for number, one in enumerate(whole):
        for name in ("both", "one"):
            assert one.items[name] == [value for part in parts for value in part[number].items[name]]


def test_a_candidate_whose_logits_are_not_finite_fails_in_generation(root, family):
    write_task(root, "one", **GENERATE, **data_files("one"))
    write_profile(root, [{"name": "one", "task": "one", "metric": "exact_match", "items": COUNTS}])
    pool = Pool(open_checkpoint(family["base"]).config)
    pool.add("base", open_checkpoint(family["base"]))
    weight = pool.block("base", 1).mlp.up_proj.weight
    pool.block("base", 1).mlp.up_proj.weight = torch.nn.Parameter(torch.full_like(weight, torch.nan), False)
    told = []
    broken, sound = Candidate.identity("base", 3), Candidate("base", (("base", 0), ("base", 2)))
    bad, good = opened(root, family).item_scores(pool, [broken, sound], 0, 14, told.append)
    assert bad.failed == "one: its logits are not finite"
    assert good.failed is None
    assert sum(told) == pytest.approx(2)
    tasks = [{"name": "one", "task": "one", "metric": "exact_match"}, {"name": "two", "task": "two"}]
    write_profile(root, [task | {"items": COUNTS} for task in tasks])
    bad, good = opened(root, family).item_scores(pool, [broken, sound], 0, 14)
    assert bad.failed.endswith("its log-likelihood is not finite")  # the kind that is scored first
    assert good.failed is None and len(good.items["one"]) == len(good.items["two"]) == 14


def test_sampled_answers_are_the_same_in_every_run(root, family, pool):
    sampling = {"until": ["\n"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 4}
    write_task(root, "one", **GENERATE | {"generation_kwargs": sampling, "repeats": 3}, **data_files("one"))
    write_profile(root, [{"name": "one", "task": "one", "metric": "chrf", "items": COUNTS}])
    objectives = opened(root, family)
    first, again = (objectives.item_scores(pool, [A], 0, 14)[0].items["one"] for _ in range(2))
    assert first == again
    (answers,) = objectives.kinds[0].answers(pool, [A], [(0, 14)], lambda _: None)
    assert any(len(set(request)) > 1 for item in answers[0] for request in item)
    assert {len(request) for item in answers[0] for request in item} == {3}


def test_an_answer_longer_than_the_model_takes_is_refused(root, family, pool):
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 500}
    write_task(root, "one", **GENERATE | {"generation_kwargs": options}, **data_files("one"))
    write_profile(root, [{"name": "one", "task": "one", "metric": "chrf", "items": COUNTS}])
    with pytest.raises(BadInput, match=r"objectives.one: Invalid configuration: requested max tokens .*\(500\)"):
        opened(root, family).item_scores(pool, [A], 0, 1)


def test_scale_and_direction_turn_a_metric_into_a_score(root, family, pool):
    write_task(root, "said", **GENERATE, **data_files("one"))
    names = {"plain": {}, "small": {"scale": 0.01}, "turned": {"direction": "lower"}}
    chrf = {"task": "said", "metric": "chrf", "items": COUNTS}
    write_profile(root, [{"name": name, **chrf, **changes} for name, changes in names.items()])
    (found,) = opened(root, family).item_scores(pool, [A], 0, 14)
    assert found.items["small"] == pytest.approx([0.01 * one for one in found.items["plain"]])
    assert found.items["turned"] == [-one for one in found.items["plain"]]
    assert max(found.items["plain"]) == pytest.approx(100)


def test_a_corpus_metric_is_taken_over_each_item(root, family, pool):
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{prompt}}"}
    listed = [{"metric": name} for name in ("word_perplexity", "bits_per_byte")]
    write_task(root, "text", **rolling, metric_list=listed, **data_files("one"))
    write_task(root, "said", **GENERATE, **data_files("one"))
    wanted = {"text": ("word_perplexity", "bits_per_byte"), "said": ("chrf",)}
    asked = [
        {"name": metric, "task": task, "metric": metric, "items": COUNTS}
        for task, names in wanted.items()
        for metric in names
    ]
    write_profile(root, asked)
    objectives = opened(root, family)
    (found,) = objectives.item_scores(pool, [MIXED], 0, 14)
    raw = {}
    for kind in objectives.kinds:
        (answers,) = kind.answers(pool, [MIXED], [(0, part.count) for part in kind.parts], lambda _: None)
        for part, mine in zip(kind.parts, answers, strict=True):
            raw[part.name] = [one[part.metric.key] for one in part.built.metrics(mine)]
    assert found.items["chrf"] == [metrics.chrf([one]) for one in raw["chrf"]]
    assert found.items["bits_per_byte"] == [-metrics.bits_per_byte([one]) for one in raw["bits_per_byte"]]
    logarithms = [
        -torch.tensor(metrics.weighted_perplexity([one])).double().log().item() for one in raw["word_perplexity"]
    ]
    assert found.items["word_perplexity"] == pytest.approx(logarithms, rel=1e-5)


def test_items_without_splits_are_shared_by_hash(root, family):
    write_task(root, "one", **everything(root))
    counts = {"search": 9, "selection": 4, "test": 5}
    write_profile(root, [{"name": "one", "task": "one", "items": counts}])
    built = {split: opened(root, family, split).composed["one"].parts[0].built for split in SPLITS}
    contents = [digest(doc) for one in built.values() for doc in one.docs]
    assert len(set(contents)) == len(contents) == 18
    assert sum(one.available for one in built.values()) == 34
    fewer = {"search": 3, "selection": 2, "test": 2}
    write_profile(root, [{"name": "one", "task": "one", "items": fewer}])
    for split, one in built.items():
        assert opened(root, family, split).ids("one") == one.ids[: fewer[split]]


def test_other_data_takes_the_place_of_the_task_s_own(root, family, pool):
    items = [{**one, "id": f"new-{one['id']}"} for one in lines(root, "two")]
    write_items(root / "elsewhere.jsonl", items)
    files = dict.fromkeys(SPLITS, "elsewhere.jsonl")
    write_profile(root, [{"name": "one", "task": "one", "items": COUNTS, "data": {"files": files}}])
    objectives = opened(root, family)
    assert objectives.ids("one") == tuple(one["id"] for one in items)
    assert objectives.item_scores(pool, [B], 0, 14)[0].items["one"] == answered(root, "two")


def test_examples_are_drawn_where_the_task_says_and_read_only_where_they_are_shown(root, family):
    train = [one | {"prompt": "w9 " + one["prompt"]} for one in lines(root, "two")]
    write_items(root / "train.jsonl", train)
    files = {"train": "train.jsonl", **data_files("one")["dataset_kwargs"]["data_files"]}
    write_task(root, "one", training_split="train", dataset_kwargs={"data_files": files})
    asked = {"name": "one", "task": "one", "items": COUNTS}
    write_profile(root, [asked | {"shots": 1}])
    part = opened(root, family).composed["one"].parts[0]
    assert part.built.available == 14
    assert all(request.arguments[0].startswith("w9 ") for (request,) in part.built.requests)
    (root / "train.jsonl").unlink()
    write_profile(root, [asked])
    assert opened(root, family).count("one") == 14
    write_profile(root, [asked | {"shots": 1}])
    with pytest.raises(BadInput, match=r"train\.jsonl: no such file"):
        opened(root, family)


@pytest.mark.parametrize("by_file", [True, False])
def test_examples_never_come_from_items_that_are_scored(root, family, by_file):
    counts = {"search": 6, "selection": 4, "test": 5}
    write_task(root, "one", **(data_files("one") if by_file else everything(root)))
    write_profile(root, [{"name": "one", "task": "one", "shots": 2, "items": counts}])
    parts = {split: opened(root, family, split).composed["one"].parts[0] for split in SPLITS}
    examples = {digest(doc) for part in parts.values() for doc in part.built.task.sampler.df}
    scored = {digest(doc) for part in parts.values() for doc in part.built.docs}
    assert len(examples) == 8
    assert not examples & scored
    for part in parts.values():
        for doc, (request,) in zip(part.built.docs, part.built.requests, strict=True):
            before, _, last = request.arguments[0].rpartition("\n\n")
            assert last == doc["prompt"]
            shown = before.split("\n\n")
            assert len(shown) == 2
            assert all(any(one == ex["prompt"] + ex["answer"] for ex in part.built.task.sampler.df) for one in shown)


def test_items_are_counted_without_those_set_apart_as_examples(root, family):
    write_profile(root, [{"name": "one", "task": "one", "shots": 2, "items": COUNTS}])
    with pytest.raises(BadInput, match=r"items.search: 14, but one has 6; ask for no more"):
        opened(root, family)


def test_a_metric_may_value_many_items_in_one_call(root, family, pool):
    (root / "profiles/p/judge.py").write_text(
        "CALLS = []\n\n\n"
        "def judge(doc, results):\n    return {'own': results[0]}\n\n\n"
        "def agree(items):\n    return by_item(items)[0]\n\n\n"
        "def by_item(items):\n    CALLS.append(len(items))\n    return [len(one) for one in items]\n\n\n"
        "agree.by_item = by_item\n"
    )
    write_task(root, "one", **GENERATE | {"metric_list": None}, **data_files("one"))
    with (root / "profiles/p/one.yaml").open("a") as file:
        file.write("process_results: !function judge.judge\n")
        file.write("metric_list: [{metric: own, aggregation: !function judge.agree, higher_is_better: true}]\n")
    write_profile(root, [{"name": "one", "task": "one", "metric": "own", "items": COUNTS}])
    objectives = opened(root, family)
    (found,) = objectives.item_scores(pool, [A], 0, 14)
    judge = objectives.composed["one"].parts[0].metric.aggregation
    assert judge.__globals__["CALLS"] == [1, 14]  # the trial, and all items at once
    assert all(value > 0 for value in found.items["one"])


def test_programs_are_run_in_the_sandbox_with_consent(root, family, pool):
    require_bubblewrap()
    number = [{"function": "regex", "regex_pattern": r"w(\d+)"}, {"function": "take_first"}]
    judge = {"filter_list": [{"name": "number", "filter": number}], "doc_to_target": "{{test}}", "metric_list": None}
    write_task(root, "code", **GENERATE | judge, **data_files("one"), unsafe_code=True)
    with (root / "profiles/p/code.yaml").open("a") as file:
        file.write("metric_list:\n- {metric: !function tasks.code_metrics.pass_at_k, k: [1], aggregation: mean}\n")
    wanted = [float(number % 3 > 0) for number in range(14)]
    items = [one | {"test": f"assert {bool(passes)}"} for one, passes in zip(lines(root, "one"), wanted, strict=True)]
    write_items(root / "runs/p/tasks/one.search.jsonl", items)
    asked = {"name": "code", "task": "code", "metric": "pass@1", "direction": "higher", "items": COUNTS}
    write_profile(root, [asked])
    with pytest.raises(BadInput, match=r"objectives.code: task code: .* `run_code: true`"):
        opened(root, family)
    write_profile(root, [asked], run_code=True)
    objectives = opened(root, family)
    assert objectives.item_scores(pool, [A], 0, 14)[0].items["code"] == wanted
    assert "bubblewrap" in objectives.composed["code"].parts[0].built.text
