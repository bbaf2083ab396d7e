"""What the actor is taught is what the engine scores, whatever the metric; and it is in the journal once."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.paths.prefix import PathLikelihoods
from models.paths.slopes import Slopes
from tasks.objectives.lessons import Lessons
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.scoring.journal import Journal
from tasks.scoring.slopes import Teaching, line
from tasks.trials.lab import EngineLab
from tasks.trials.trial import recipe_space
from tests.small_tasks import COUNTS, make_family_project, prompts, write_items, write_profile, write_task

CHOICES = {
    "output_type": "multiple_choice",
    "target_delimiter": " ",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "right",
}
KINDS = {
    "greedy": {},
    "choices": CHOICES,
    "choices by length": CHOICES | {"metric_list": [{"metric": "acc_norm"}]},
    "bits": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{prompt}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{prompt}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}
WRITTEN = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["Q"], "do_sample": False, "max_gen_toks": 6},
    "doc_to_target": "{{answer.strip()}}",
    "target_delimiter": " ",
    "metric_list": [{"metric": "chrf"}],
    "dataset_kwargs": {"data_files": {split: f"runs/p/tasks/one.{split}.jsonl" for split in COUNTS}},
}
WEIGHTS = np.array([[0.6, 0.2, 0.5], [0.1, 0.9, 0.3]])
ITEMS = [[0, 3, 4, 9], [1, 2, 5, 13]]


@pytest.fixture(scope="module")
def made(make_family, tmp_path_factory):
    return make_family_project(tmp_path_factory.mktemp("project"), make_family)


@pytest.fixture
def project(made, tmp_path):
    """A function that makes a project with the models of ``made`` whose first task is of some kind."""
    (tmp_path / "runs" / "p").mkdir(parents=True)
    (tmp_path / "runs" / "p" / "zoo").symlink_to(made.zoo)
    (tmp_path / "runs" / "p" / "tasks").mkdir()
    for path in (made.root / "runs" / "p" / "tasks").iterdir():
        (tmp_path / "runs" / "p" / "tasks" / path.name).write_bytes(path.read_bytes())
    for split, count in COUNTS.items():
        choices = [[f"w{4 + n}", f"w{n + 7} w6", f"w{9 + n} w7 w3"] for n in range(count)]
        rows = [
            {"id": f"row-{n}", "prompt": text, "answer": " w5", "choices": some, "right": n % 3}
            for n, (text, some) in enumerate(zip(prompts(count, 5), choices, strict=True))
        ]
        write_items(tmp_path / "runs" / "p" / "tasks" / f"other.{split}.jsonl", rows)

    def make(dtype="float32", checkpointing=False, **changes):
        write_task(tmp_path, "two")
        write_task(tmp_path, "other" if changes else "one", **changes)
        names = ("other" if changes else "one", "two")
        objectives = [{"name": name, "task": name, "items": COUNTS} for name in names]
        if "metric_list" in changes:
            objectives[0]["metric"] = changes["metric_list"][0]["metric"]
        write_profile(tmp_path, objectives, dtype=dtype, checkpointing=checkpointing)
        return Engine(open_workspace("p", tmp_path), tmp_path / "journal")

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_real_values_are_the_engine_s_and_soft_ones_near(project, kind):
    engine = project(**KINDS[kind])
    teaching = Teaching(engine)
    assert teaching.taught == engine.objectives("search").names
    weights = {name: {"weight": row.tolist()} for name, row in zip("ab", WEIGHTS, strict=True)}
    candidate = engine.add(recipe_space(engine).make("task_arithmetic", weights))
    (scored,) = engine.scored([candidate], "search")
    for one, some, values in zip(teaching.slopes(WEIGHTS, ITEMS), ITEMS, scored.items.values(), strict=True):
        assert one.real == pytest.approx(np.mean([values[item] for item in some]), rel=1e-5)
        assert one.slopes.shape == WEIGHTS.shape
        assert np.abs(one.slopes).max() > 0
        if kind in ("bits", "perplexity") and some is ITEMS[0]:
            assert one.soft == pytest.approx(one.real)  # a likelihood is its own soft score


def test_answers_come_from_the_journal_the_second_time(project, monkeypatch):
    engine = project()
    first = Teaching(engine).slopes(WEIGHTS, ITEMS)
    known = len(engine.journal)
    again = Engine(engine.workspace, engine.journal.folder)
    monkeypatch.setattr(Slopes, "run", lambda *_: pytest.fail("computed a second time"))
    for one, other in zip(Teaching(again).slopes(WEIGHTS, ITEMS), first, strict=True):
        assert (one.soft, one.real) == (other.soft, other.real)
        assert np.array_equal(one.slopes, other.slopes)
    assert len(again.journal) == known


def test_other_coefficients_and_other_items_are_other_questions(project):
    engine = project()
    teaching = Teaching(engine)
    teaching.slopes(WEIGHTS, ITEMS)
    for weights, items in ((WEIGHTS + 1e-12, ITEMS), (WEIGHTS, [ITEMS[0], [1, 2, 5, 12]])):
        known = len(engine.journal)
        teaching.slopes(weights, items)
        assert len(engine.journal) == known + 1


def likelihood(folder, items):
    """Mean log-likelihood of a token of answers and the end token behind them, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for item in items:
        prompt, answer = tokenizer(item["prompt"]).input_ids, [*tokenizer(item["answer"]).input_ids, 2]
        with torch.inference_mode():
            scores = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(dim=-1)
        found.append(np.mean([scores[len(prompt) - 1 + n, one] for n, one in enumerate(answer)]))
    return np.mean(found)


def test_what_is_written_is_worth_its_reference_s_likelihood_as_sources_show_it(project, made):
    engine = project(**WRITTEN)
    teaching = Teaching(engine)
    assert teaching.taught == ("other", "two")
    assert EngineLab(engine).answered == (COUNTS["search"], COUNTS["search"])
    items = [json.loads(line) for line in (made.root / "runs/p/tasks/one.search.jsonl").read_text().splitlines()]
    likely = [likelihood(made.zoo / name, items) for name in ("base", "a", "b")]
    scores = [one.means()["other"] for one in engine.scored(teaching.sources, "search")]
    slope, offset = np.polyfit(likely, scores, 1)
    assert slope > 0
    every = [[*range(COUNTS["search"])], []]
    for mine, own in zip(likely, ([0, 0], [1, 0], [0, 1]), strict=True):
        one, nothing = teaching.slopes(np.outer(own, np.ones(3)), every)
        assert one.soft == pytest.approx(offset + slope * mine, rel=1e-3)
        assert one.real == pytest.approx(one.soft)
        assert nothing is None


def test_slopes_of_what_is_written_are_those_of_finite_differences(project):
    teaching = Teaching(project("float64", **WRITTEN))
    one, _ = teaching.slopes(WEIGHTS, ITEMS)
    direction, step = np.random.default_rng(0).standard_normal(WEIGHTS.shape), 1e-4
    ahead, behind = (teaching.slopes(WEIGHTS + sign * step * direction, ITEMS)[0].soft for sign in (1, -1))
    expected = (one.slopes * direction).sum()
    assert abs(expected) > 0.01 * np.abs(one.slopes).sum()
    assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-3)


def test_likelihoods_of_references_are_computed_once(project, monkeypatch):
    engine = project(**WRITTEN)
    first = Teaching(engine).slopes(WEIGHTS, ITEMS)[0]
    again = Engine(engine.workspace, engine.journal.folder)
    monkeypatch.setattr(PathLikelihoods, "run", lambda *_: pytest.fail("computed a second time"))
    assert Teaching(again).slopes(WEIGHTS, ITEMS)[0].soft == first.soft


def test_computing_layers_twice_teaches_the_same(project):
    engine = project("float64", **WRITTEN)
    twice = project("float64", checkpointing=True, **WRITTEN)
    assert twice.workspace.profile.checkpointing
    twice.journal = Journal(twice.workspace.state / "another")
    for one, other in zip(*(Teaching(one).slopes(WEIGHTS, ITEMS) for one in (engine, twice)), strict=True):
        assert one.soft == other.soft
        assert np.array_equal(one.slopes, other.slopes)


def test_references_that_the_metric_refuses_teach_nothing(project):
    # every other answer ends in w3, so that what a model writes ends before it
    options = WRITTEN["generation_kwargs"] | {"until": ["w3"]}
    engine = project(**WRITTEN | {"generation_kwargs": options, "metric_list": [{"metric": "exact_match"}]})
    teaching = Teaching(engine)
    assert teaching.taught == ("two",)
    assert str(teaching.lessons) == "learns nothing from other, which has no right answers of a known worth"
    assert EngineLab(engine).answered == (0, COUNTS["search"])
    first, second = teaching.slopes(WEIGHTS, [[], ITEMS[1]])
    assert first is None
    assert second is not None


def test_references_that_better_writers_find_less_likely_teach_nothing(project):
    objectives = project(**WRITTEN).objectives("search")
    assert Lessons(objectives).has_answers("other")
    assert str(Lessons(objectives)) == "learns from every objective; from other, how likely reference answers are"
    assert not Lessons(objectives, lambda *_: (1.0, -0.5)).has_answers("other")
    assert not Lessons(objectives, lambda *_: (1.0, 0.0)).has_answers("other")


def test_the_worth_of_likelihood_is_the_line_nearest_to_the_sources():
    x, y = np.random.default_rng(0).standard_normal((2, 5))
    assert line(x, y) == pytest.approx(np.polyfit(x, y, 1)[::-1])
    assert line([2.0, 2.0], [0.1, 0.5]) == (pytest.approx(0.3), 0.0)
    assert line([], []) == (0.0, 0.0)


def test_another_item_stands_in_for_one_without_a_reference(project):
    target = "{{'' if id == 'item-3' else answer.strip()}}"
    teaching = Teaching(project(**WRITTEN | {"doc_to_target": target}))
    assert EngineLab(teaching.engine).answered == (COUNTS["search"], COUNTS["search"])
    one, other, first = (teaching.slopes(WEIGHTS, [some, []])[0] for some in ([3], [0], [1]))
    assert one.soft == other.soft != first.soft
