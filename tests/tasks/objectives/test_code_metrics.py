"""pass@k is unbiased, and lm-eval's tasks of code judge real solutions in our sandbox, offline."""

import gzip
import json
import os
import subprocess
import sys
from fractions import Fraction
from itertools import combinations
from math import comb
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from models.errors import BadInput
from tasks.objectives import code_metrics
from tasks.objectives.code_metrics import CodeEval, code_eval_from, confine, estimate_pass_at_k, pass_at_k, sandbox_of
from tasks.sandbox.sandbox import Limits, Sandbox
from tasks.schema.profile import Profile
from tests.bubblewrap import require_bubblewrap

LM_EVAL = Path(lm_eval.__file__).parent / "tasks"
ADD = {"prompt": "def add(a, b):\n", "test": "def check(f):\n    assert f(2, 3) == 5\n", "entry_point": "add"}


@pytest.fixture(scope="module")
def sandbox():
    require_bubblewrap()
    with Sandbox("bubblewrap", Limits(cpu_seconds=5), workers=2) as one:
        yield one


counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(counts)
def test_the_estimate_equals_the_papers_product_form(numbers):
    samples, passed, k = numbers
    factors = 1 - k / np.arange(samples - passed + 1, samples + 1)
    product = 1.0 if samples - passed < k else 1 - np.prod(factors)
    assert estimate_pass_at_k(samples, passed, k) == pytest.approx(product, rel=1e-12, abs=1e-14)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_the_estimate_is_the_share_of_draws_in_which_one_passes(passes, data):
    k = data.draw(st.integers(1, len(passes)))
    draws = list(combinations(passes, k))
    share = sum(any(draw) for draw in draws) / len(draws)
    assert estimate_pass_at_k(len(passes), sum(passes), k) == share


@pytest.mark.parametrize(
    ("samples", "passed", "k"), [(10**6, 1, 1), (10**6, 1, 10), (10**5, 3, 100), (2 * 10**5, 10**5, 7), (1000, 2, 998)]
)
def test_neither_large_counts_nor_small_chances_lose_digits(samples, passed, k):
    none = Fraction(1)
    for draw in range(k):
        none *= Fraction(samples - passed - draw, samples - draw)
    assert estimate_pass_at_k(samples, passed, k) == float(1 - none) > 0


@given(counts)
def test_the_estimate_grows_with_passes_and_with_draws(numbers):
    samples, passed, k = numbers
    found = estimate_pass_at_k(samples, passed, k)
    assert (found == 0) == (passed == 0) and found <= 1
    assert found <= estimate_pass_at_k(samples, min(passed + 1, samples), k)
    assert found <= estimate_pass_at_k(samples, passed, min(k + 1, samples))
    assert estimate_pass_at_k(samples, passed, 1) == passed / samples


@given(st.integers(2, 40), st.integers(1, 10), st.floats(0.05, 0.95))
def test_the_estimate_is_unbiased(samples, k, chance):
    k = min(k, samples)
    weights = [comb(samples, c) * chance**c * (1 - chance) ** (samples - c) for c in range(samples + 1)]
    mean = np.dot(weights, [estimate_pass_at_k(samples, c, k) for c in range(samples + 1)])
    assert mean == pytest.approx(1 - (1 - chance) ** k, rel=1e-9)


@pytest.mark.parametrize("numbers", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (0, 0, 1)])
def test_contradicting_counts_are_refused(numbers):
    with pytest.raises(ValueError, match="pass@"):
        estimate_pass_at_k(*numbers)


def test_code_eval_means_over_problems_and_leaves_out_what_too_few_samples_give(sandbox):
    tests = ["assert f() == 1", "assert f() == 2"]
    one, two = "def f(): return 1", "def f(): return 2"
    programs = [[one, two], [one, "raise SystemExit", two]]
    scores, results = CodeEval(sandbox).compute(references=tests, predictions=programs, k=[1, 2, 3, 10])
    assert scores == {"pass@1": pytest.approx((1 / 2 + 1 / 3) / 2), "pass@2": pytest.approx((1 + 2 / 3) / 2)}
    assert [[one["passed"] for _, one in tries] for tries in results.values()] == [[True, False], [False, False, True]]
    assert results[1][1] == (1, {"task_id": 1, "passed": False, "result": "failed: SystemExit: ", "completion_id": 1})
    assert CodeEval(sandbox).compute(references=[], predictions=[]) == ({}, {})


def load_task(name, items, folder, sandbox, **changes):
    """lm-eval's own task over local items, as it is loaded for an objective."""
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in items))
    (path,) = LM_EVAL.glob(f"*/{name}.yaml")
    with code_eval_from(sandbox):
        config = load_yaml(path, resolve_func=True)
        data = {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}
        config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": data, "num_fewshot": 0, **changes}
        task = TaskManager(include_defaults=False).load([config])["tasks"][name]
    confine(task, sandbox)
    return task


def judge(task, answers):
    """Metrics of each item for the answers to its requests."""
    task.build_all_requests()
    for instance in task.instances:
        instance.resps, instance.filtered_resps = list(answers[instance.doc_id]), {}
    task.apply_filters()
    return [
        task.process_results(instance.doc, [instance.filtered_resps[name]])
        for instance in sorted(task.instances, key=lambda one: one.doc_id)
        for name in instance.filtered_resps
    ]


@pytest.fixture(scope="module")
def humaneval():
    path = Path(os.environ.get("HM3_SHARED", "/nowhere")) / "data" / "humaneval.jsonl.gz"
    if not path.is_file():
        pytest.skip("HM3_SHARED names no folder with data/humaneval.jsonl.gz")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


BREAKS = ("    return None\n", "    raise ValueError\n", "    return [\n", "    import sys\n    sys.exit(0)\n", "")


def broken(number):
    """A completion that is wrong, in one of several ways."""
    return BREAKS[number % len(BREAKS)]


def test_the_canonical_solutions_of_humaneval_pass_and_broken_ones_fail(humaneval, sandbox):
    tests = [f"{one['test']}\ncheck({one['entry_point']})" for one in humaneval]
    right = [one["prompt"] + one["canonical_solution"] for one in humaneval]
    wrong = [one["prompt"] + broken(number) for number, one in enumerate(humaneval)]
    # of ten samples number + 1 are right, in turn
    passing = [number % 10 + 1 for number in range(len(humaneval))]
    tries = [[r] * c + [w] * (10 - c) for r, w, c in zip(right, wrong, passing, strict=True)]
    scores, results = CodeEval(sandbox).compute(references=tests, predictions=tries, k=[1, 10])
    found = [[one["passed"] for _, one in results[problem]] for problem in results]
    faulty = [humaneval[p]["task_id"] for p, c in enumerate(passing) if found[p] != [True] * c + [False] * (10 - c)]
    assert faulty == []
    assert scores == {"pass@1": pytest.approx(np.mean(passing) / 10), "pass@10": 1.0}
    nothing, _ = CodeEval(sandbox).compute(references=tests, predictions=[[w] * 10 for w in wrong], k=[1, 10])
    assert nothing == {"pass@1": 0, "pass@10": 0}


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct"])
def test_lm_evals_humaneval_scores_offline(name, humaneval, sandbox, tmp_path):
    items = humaneval[:6]
    task = load_task(name, items, tmp_path, sandbox)
    end = "```\nThat is all." if name == "humaneval_instruct" else ""
    answers = [[(one["canonical_solution"] if n % 2 else broken(n)) + end] for n, one in enumerate(items)]
    assert judge(task, answers) == [{"pass@1": float(n % 2)} for n in range(6)]


def test_several_samples_give_pass_at_larger_k(sandbox, tmp_path):
    metrics = [{"metric": None, "k": [1, 4], "aggregation": "mean", "higher_is_better": True}]
    with code_eval_from(sandbox):
        stock = load_yaml(LM_EVAL / "humaneval" / "humaneval.yaml", resolve_func=True)
    metrics[0]["metric"] = stock["metric_list"][0]["metric"]
    task = load_task("humaneval", [ADD], tmp_path, sandbox, repeats=4, metric_list=metrics)
    assert judge(task, [["    return a + b\n"] + ["    return a\n"] * 3]) == [{"pass@1": 0.25, "pass@4": 1.0}]


MBPP = {
    "task_id": 11,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
}


@pytest.mark.parametrize("name", ["mbpp", "mbpp_instruct"])
def test_lm_evals_mbpp_scores_offline(name, sandbox, tmp_path):
    task = load_task(name, [MBPP, MBPP], tmp_path, sandbox)
    # of the instruct form, lm-eval takes a word right behind the fence for a language
    code = f"\n{MBPP['code']}\n```" if name == "mbpp_instruct" else MBPP["code"]
    assert judge(task, [[code], [code.replace("+", "-")]]) == [{"pass_at_1": 1.0}, {"pass_at_1": 0.0}]


def test_a_task_with_an_executor_of_its_own_is_confined(sandbox, tmp_path):
    item = {"code": "def f(x):\n    return x + 1", "input": "1", "output": "2"}
    task = load_task("cruxeval_output", [item, item], tmp_path, sandbox, repeats=2)
    reading = "open('/etc/passwd').read() and 2"  # would pass outside
    assert judge(task, [["assert f(1) == 2", "assert f(1) == 3"], [f"assert f(1) == {reading}"] * 2]) == [
        {"pass@1": 0.5},
        {"pass@1": 0.0},
    ]


def test_a_task_that_runs_programs_by_itself_is_refused(sandbox, tmp_path):
    (tmp_path / "own.py").write_text("def passes(references, predictions):\n    exec(predictions[0])\n    return 1.0\n")
    with pytest.raises(BadInput, match="task own: runs programs by itself"):
        confine(local_task(tmp_path, [ADD], metric="!function own.passes"), sandbox)


def local_task(folder, items, metric, more=""):
    """A task file of one's own, loaded."""
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in items))
    text = yaml.safe_dump(
        {
            "task": "own",
            "unsafe_code": True,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{test}}\ncheck({{entry_point}})",
            "repeats": 3,
            "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": 3}]}],
        }
    )
    text += f"metric_list:\n- {{metric: {metric}, aggregation: mean, higher_is_better: true{more}}}\n"
    (folder / "own.yaml").write_text(text)
    return TaskManager(include_path=str(folder), include_defaults=False).load(["own"])["tasks"]["own"]


def test_a_local_task_names_our_metric(sandbox, tmp_path):
    task = local_task(tmp_path, [ADD, ADD], metric="!function tasks.code_metrics.pass_at_k", more=", k: [1, 3]")
    confine(task, sandbox)
    confine(task, sandbox)  # once more is the same
    body = [ADD["prompt"] + f"    return a + {what}\n" for what in ("b", "a", "1")]
    assert judge(task, [body, [body[2]] * 3]) == [
        {"pass@1": pytest.approx(1 / 3), "pass@3": 1.0},
        {"pass@1": 0.0, "pass@3": 0.0},
    ]
    # as under lm-eval's own command, which knows nothing of our profile
    assert pass_at_k(["assert f() == 1"], ["def f(): return 1"]) == {"pass@1": 1.0}


def test_without_consent_nothing_runs(sandbox, tmp_path, monkeypatch):
    profile = Profile(made="tiny", experts={"a": None}, objectives=[{"name": "one", "task": "one"}])
    assert profile.run_code is False and profile.sandbox == "bubblewrap" and sandbox_of(profile) is None
    assert sandbox_of(profile.model_copy(update={"run_code": True})) is code_metrics.shared_sandbox("bubblewrap")
    task = load_task("humaneval", [ADD], tmp_path, sandbox)
    with pytest.raises(BadInput, match="task humaneval: runs programs that the model wrote; set `run_code: true`"):
        confine(task, None)
    with pytest.raises(BadInput, match="run_code"):
        CodeEval(None).compute(references=["assert 1"], predictions=[["pass"]])
    harmless = local_task(tmp_path, [ADD], metric="exact_match")
    with pytest.raises(BadInput, match="run_code"):
        confine(harmless, None)
    harmless.config.unsafe_code = False
    before = dict(harmless._metric_fn_list)
    confine(harmless, None)
    assert harmless._metric_fn_list == before


LOADS = """
import sys
from pathlib import Path
import lm_eval
from lm_eval.tasks._yaml_loader import load_yaml
from tasks.objectives.code_metrics import code_eval_from
file = Path(lm_eval.__file__).parent / "tasks/mbpp/mbpp.yaml"
try:
    with code_eval_from(None):
        load_yaml(file, resolve_func=True)
except Exception as error:
    print(type(error).__name__, error)
assert "evaluate" not in sys.modules  # which takes seconds to import
with code_eval_from(None):
    import evaluate
    assert evaluate.__name__ == "evaluate" and evaluate.EvaluationModule.__module__ == "evaluate.module"
    try:
        evaluate.load("no_such_metric")
    except Exception as error:
        print(type(error).__name__)
real = sys.modules["evaluate"]
assert real.__file__ and real.EvaluationModule is evaluate.EvaluationModule
with code_eval_from(None):
    assert sys.modules["evaluate"] is not real
assert sys.modules["evaluate"] is real
"""


def test_loading_a_task_of_code_fetches_nothing_and_asks_for_consent():
    """In a process of its own, because a module of lm-eval is loaded once."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done
    refused, unknown = done.stdout.splitlines()
    assert refused.startswith("BadInput this task runs programs that the model wrote; set `run_code: true`")
    assert unknown == "FileNotFoundError"
