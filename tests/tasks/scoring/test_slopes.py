"""What the actor is taught is what the engine scores, whatever the metric; and it is in the journal once."""

import numpy as np
import pytest

from models.paths.slopes import Slopes
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.scoring.slopes import Teaching
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
    "generation_kwargs": {"until": ["w3"], "do_sample": False, "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
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

    def make(**changes):
        write_task(tmp_path, "two")
        write_task(tmp_path, "other" if changes else "one", **changes)
        names = ("other" if changes else "one", "two")
        objectives = [{"name": name, "task": name, "items": COUNTS} for name in names]
        if "metric_list" in changes:
            objectives[0]["metric"] = changes["metric_list"][0]["metric"]
        write_profile(tmp_path, objectives)
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


def test_what_is_written_freely_teaches_nothing(project):
    engine = project(**WRITTEN)
    teaching = Teaching(engine)
    assert teaching.taught == ("two",)
    assert EngineLab(engine).answered == (0, COUNTS["search"])
    first, second = teaching.slopes(WEIGHTS, [[], ITEMS[1]])
    assert first is None
    assert second is not None
