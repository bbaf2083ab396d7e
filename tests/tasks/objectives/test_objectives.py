"""Objectives: the first items of a split, tokenised once, scored as lm-eval does, higher always better."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.objectives.objectives import Objectives
from tasks.objectives.task_files import default_index, find
from tasks.objectives.tokens import encode, open_tokenizer
from tasks.project.offline import offline_environment
from tasks.project.workspace import open_workspace
from tests.small_tasks import COUNTS, prompts, write_items, write_profile, write_task


@pytest.fixture(scope="module")
def search(finished, family):
    return Objectives(finished, "search", family["base"])


CANDIDATES = [Candidate.identity(name, 3) for name in ("base", "a", "b")] + [
    Candidate("a", (("a", 0), ("b", 1), ("a", 2))),
    Candidate("b", (("b", 0), ("b", 2))),
]


def lines(root, name, split):
    return [json.loads(line) for line in (root / f"runs/p/tasks/{name}.{split}.jsonl").read_text().splitlines()]


def test_items_are_the_first_of_their_file(finished, family):
    for split, count in COUNTS.items():
        whole = Objectives(finished, split, family["base"])
        assert whole.names == ("one", "two")
        for name in whole.names:
            assert whole.count(name) == count
            assert whole.ids(name) == tuple(one["id"] for one in lines(finished.root, name, split))


def expected(root, name):
    return [float(one["answered"]) for one in lines(root, name, "search")]


def test_scores_tell_the_items_that_a_model_answers(search, pool, finished):
    scored = dict(zip(CANDIDATES, search.item_scores(pool, CANDIDATES, 0, 99), strict=True))
    assert scored[CANDIDATES[1]].items["one"] == expected(finished.root, "one")
    assert scored[CANDIDATES[2]].items["two"] == expected(finished.root, "two")
    assert 0 < sum(expected(finished.root, "two")) <= 7
    assert sum(scored[CANDIDATES[1]].items["two"]) < sum(expected(finished.root, "two"))
    assert all(one.failed is None for one in scored.values())


def test_increments_add_up_to_the_whole(search, pool):
    whole = search.item_scores(pool, CANDIDATES, 0, 14)
    parts = [search.item_scores(pool, CANDIDATES, *span) for span in ((0, 3), (3, 9), (9, 14), (14, 20))]
    for number, one in enumerate(whole):
        for name in search.names:
            assert one.items[name] == [value for part in parts for value in part[number].items[name]]
    assert parts[3][0].items == {"one": [], "two": []}


def test_objectives_may_have_different_numbers_of_items(root, family, pool):
    write_profile(
        root,
        [
            {"name": "one", "task": "one", "items": COUNTS},
            {"name": "two", "task": "two", "items": COUNTS | {"search": 4}},
        ],
    )
    objectives = Objectives(open_workspace("p", root), "search", family["base"])
    assert (objectives.count("one"), objectives.count("two")) == (14, 4)
    (found,) = objectives.item_scores(pool, CANDIDATES[1:2], 2, 8)
    assert (len(found.items["one"]), len(found.items["two"])) == (6, 2)


def test_progress_is_told(search, pool):
    told = []
    search.item_scores(pool, CANDIDATES, 0, 14, told.append)
    assert sum(told) == len(CANDIDATES)


def test_lower_is_better_is_turned_round(root, family, pool):
    write_task(root, "two", metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": False}])
    objectives = Objectives(open_workspace("p", root), "search", family["base"])
    (found,) = objectives.item_scores(pool, CANDIDATES[2:3], 0, 14)
    assert found.items["two"] == [-value for value in expected(root, "two")]


def test_perplexity_is_scored_by_its_log_likelihoods(root, family, pool):
    metric = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    write_task(root, "two", metric_list=[metric])
    write_profile(root, [{"name": "two", "task": "two", "metric": "perplexity", "items": COUNTS}])
    objectives = Objectives(open_workspace("p", root), "search", family["base"])
    base, best = objectives.item_scores(pool, [CANDIDATES[0], CANDIDATES[2]], 0, 14)
    assert all(value < 0 for value in base.items["two"])
    assert sum(best.items["two"]) > sum(base.items["two"])


def test_a_candidate_without_finite_log_likelihood_has_failed(search, family):
    pool = Pool(open_checkpoint(family["base"]).config)
    pool.add("base", open_checkpoint(family["base"]))
    weight = pool.block("base", 1).mlp.up_proj.weight
    pool.block("base", 1).mlp.up_proj.weight = torch.nn.Parameter(torch.full_like(weight, torch.nan), False)
    skipping = Candidate("base", (("base", 0), ("base", 2)))
    bad, good = search.item_scores(pool, [CANDIDATES[0], skipping], 0, 14)
    assert bad.items == {}
    assert bad.failed == "one: item item-0: its log-likelihood is not finite"
    assert good.failed is None


def test_tokens_are_those_of_lm_eval_s_model(family):
    tokenizer = open_tokenizer(family["base"])
    pairs = [(text, " w5 w6") for text in prompts(9, 3)] + [
        ("", "w5 w7"),
        ("", "<s> w5"),
        ("w4 ", "w8"),
        ("<s> w9", " w3"),
    ]
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    model = HFLM(str(family["base"]), device="cpu")
    seen = []
    model._loglikelihood_tokens = lambda requests, **_: seen.extend(requests)
    model.loglikelihood(instances, disable_tqdm=True)
    assert encode(tokenizer, instances) == tuple((tuple(context), tuple(rest)) for _, context, rest in seen)


def test_the_definition_does_not_depend_on_where_the_project_lies(finished, root, family, monkeypatch):
    monkeypatch.chdir(root.parent)
    here = Objectives(finished, "search", family["base"])
    assert here.definition == Objectives(open_workspace("p", root), "search", family["base"]).definition


def change_answer(root):
    items = lines(root, "two", "search")
    items[3]["answer"] = " w9"
    write_items(root / "runs/p/tasks/two.search.jsonl", items)


@pytest.mark.parametrize(
    "change",
    [
        change_answer,
        lambda root: write_task(root, "two", doc_to_text="Q {{prompt}}"),
        lambda root: write_task(
            root, "two", metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]
        ),
        lambda root: write_profile(
            root, [{"name": name, "task": name, "items": COUNTS | {"search": 6}} for name in ("one", "two")]
        ),
    ],
    ids=["answer", "template", "direction", "number of items"],
)
def test_the_definition_changes_with_what_decides_the_scores(root, family, search, change):
    change(root)
    assert Objectives(open_workspace("p", root), "search", family["base"]).definition != search.definition


def test_items_without_id_are_named_by_content(root, family):
    items = [{key: value for key, value in one.items() if key != "id"} for one in lines(root, "one", "search")]
    write_items(root / "runs/p/tasks/one.search.jsonl", items)
    ids = Objectives(open_workspace("p", root), "search", family["base"]).ids("one")
    assert len(set(ids)) == 14
    assert all(len(one) == 16 for one in ids)


def unknown_task(root):
    write_profile(root, [{"name": "one", "task": "oen", "items": COUNTS}])


def unknown_reported_task(root):
    write_profile(
        root, [{"name": "one", "task": "one", "items": COUNTS, "reported": [{"task": "tow", "metric": "acc"}]}]
    )


def group_of_strangers(root):
    (root / "profiles/p/both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["one", "stranger"]}))
    write_profile(root, [{"name": "one", "task": "both", "items": COUNTS}])


def group_in_itself(root):
    (root / "profiles/p/both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["both"]}))
    write_profile(root, [{"name": "one", "task": "both", "items": COUNTS}])


def more_tasks_than_items(root):
    tasks = [{"task": "one"}, {"task": "two"}]
    write_profile(root, [{"name": "one", "tasks": tasks, "items": COUNTS | {"search": 1}}])


def unclear_filter(root):
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("first", "second")]
    write_task(root, "one", filter_list=filters)


def other_filter(root):
    write_profile(root, [{"name": "one", "task": "one", "filter": "strict", "items": COUNTS}])


def no_direction(root):
    path = root / "profiles/p/judge.py"
    path.write_text("def judge(doc, results):\n    return {'own': 1.0}\n")
    write_task(root, "one")
    with (root / "profiles/p/one.yaml").open("a") as file:
        file.write("process_results: !function judge.judge\n")
    write_profile(root, [{"name": "one", "task": "one", "metric": "own", "items": COUNTS}])


def judge_that_fails(root):
    no_direction(root)
    path = root / "profiles/p/judge.py"
    path.write_text("def judge(doc, results):\n    return {'own': doc['missing']}\n")


def value_without_number(root):
    no_direction(root)
    path = root / "profiles/p/judge.py"
    path.write_text("def judge(doc, results):\n    return {'own': float('nan')}\n")
    objective = {"name": "one", "task": "one", "metric": "own", "direction": "lower", "items": COUNTS}
    write_profile(root, [objective])


def other_metric(root):
    write_profile(root, [{"name": "one", "task": "one", "metric": "f1", "items": COUNTS}])


def median(root):
    write_task(root, "one", metric_list=[{"metric": "acc", "aggregation": "median", "higher_is_better": True}])


def no_file(root):
    (root / "runs/p/tasks/one.search.jsonl").unlink()


def empty_file(root):
    (root / "runs/p/tasks/one.search.jsonl").write_text("")


def broken_file(root):
    (root / "runs/p/tasks/one.search.jsonl").write_text('{"prompt": "a"\n')


def too_few(root):
    write_items(root / "runs/p/tasks/one.search.jsonl", lines(root, "one", "search")[:9])


def no_split(root):
    files = {split: f"runs/p/tasks/one.{split}.jsonl" for split in ("selection", "test")}
    write_task(root, "one", dataset_kwargs={"data_files": files})


def too_few_by_hash(root):
    write_task(root, "one", dataset_kwargs={"data_files": {"test": "runs/p/tasks/one.test.jsonl"}})


def data_of_no_use(root):
    files = {"somewhere": "runs/p/tasks/one.test.jsonl"}
    write_profile(root, [{"name": "one", "task": "one", "items": COUNTS, "data": {"files": files}}])


def no_answer(root):
    write_items(root / "runs/p/tasks/one.search.jsonl", [one | {"answer": ""} for one in lines(root, "one", "search")])


def wrong_template(root):
    write_task(root, "one", doc_to_text="{{prompt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unknown_task, r"profiles/p.yaml: objectives.one: task 'oen': unknown to lm-eval; there are one, two"),
        (unknown_reported_task, r"task 'tow': unknown to lm-eval; there are one, two"),
        (group_of_strangers, r"task 'both': names 'stranger', which is unknown to lm-eval"),
        (group_in_itself, r"task 'both': is a group within itself"),
        (more_tasks_than_items, r"items.search: 1, shared by 2 tasks; ask for more"),
        (unclear_filter, r"metric 'acc': several filters give it; name one of acc,first, acc,second"),
        (other_filter, r"metric 'acc,strict': missing in its result; there are acc,none"),
        (no_direction, r"metric 'own': the task does not say whether higher is better; add `direction: higher` or"),
        (judge_that_fails, r"task one: can't be computed \(KeyError: 'missing'\)"),
        (value_without_number, r"metric 'own': gives nan for one item"),
        (other_metric, r"objectives.one: metric 'f1': missing in its result; there are acc"),
        (median, r"metric 'acc': is no mean over items"),
        (no_file, r"objectives.one: one: runs/p/tasks/one.search.jsonl: no such file"),
        (empty_file, r"one.search.jsonl: holds no items"),
        (broken_file, r"task one: its items can't be built"),
        (too_few, r"items.search: 14, but one has 9"),
        (no_split, r"data_files: names no file for split 'search'"),
        (too_few_by_hash, r"items.search: 14, but one has [3-9]; ask for no more"),
        (data_of_no_use, r"data_files: names somewhere, and the task reads none"),
        (no_answer, r"item item-0: has an empty prompt or answer"),
        (wrong_template, r"task one: its items can't be built .*mend one.yaml"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_used_is_refused_in_one_line(root, family, spoil, message):
    spoil(root)
    with pytest.raises(BadInput, match=message) as caught:
        Objectives(open_workspace("p", root), "search", family["base"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("profiles/p.yaml: objectives.one: ")


def test_a_chat_template_that_the_tokenizer_lacks_is_refused(root, family, tmp_path):
    write_profile(root, [{"name": "one", "task": "one", "items": COUNTS}], chat_template=True)
    plain = shutil.copytree(family["base"], tmp_path / "plain")
    for path in plain.glob("*chat_template*"):
        path.unlink()
    with pytest.raises(BadInput, match=r"p.yaml: chat_template: the base's tokenizer has none; leave it out"):
        Objectives(open_workspace("p", root), "search", plain)


def test_what_lm_eval_brings_is_found_by_name_and_listed_once(finished):
    names = {name: [one.name for one in find(finished, name, "p")] for name in ("gsm8k", "wmt16", "mmlu_stem", "one")}
    assert names["gsm8k"] == ["gsm8k"]
    assert names["wmt16"] == ["wmt16-de-en", "wmt16-en-de", "wmt16-en-ro", "wmt16-ro-en"]
    assert len(names["mmlu_stem"]) == 19
    assert all(one.startswith("mmlu_") for one in names["mmlu_stem"])
    assert names["one"] == ["one"]
    (kept,) = finished.state.glob("lm_eval-*.json")
    before = kept.read_bytes()
    default_index.cache_clear()
    assert find(finished, "gsm8k", "p")[0].path.name == "gsm8k.yaml"
    assert kept.read_bytes() == before


def test_code_is_run_with_consent_alone(root, family):
    write_profile(root, [{"name": "code", "task": "humaneval", "metric": "pass@1", "items": COUNTS}])
    with pytest.raises(BadInput, match=r"objectives.code: task humaneval: runs programs .* set `run_code: true`"):
        Objectives(open_workspace("p", root), "search", family["base"])


def test_a_folder_without_tokenizer_is_refused(finished, tmp_path):
    with pytest.raises(BadInput, match="tokenizer: can't be loaded"):
        Objectives(finished, "search", tmp_path)


def test_the_libraries_stay_off_the_network_and_in_the_state_folder(tmp_path):
    code = (
        "import datasets.config, huggingface_hub.constants as hub;"
        "print(hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_CACHE)"
    )
    for on_hub, said in ((False, "True True"), (True, "False False")):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment = inherited | offline_environment(tmp_path, on_hub)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"{said} {tmp_path / 'datasets'}"
