"""References count as answers where the task's own metric takes them, cut as what models write is cut."""

import pytest

from tasks.objectives.objectives import Objectives
from tasks.objectives.references import references
from tasks.project.workspace import open_workspace
from tests.small_tasks import COUNTS, write_items, write_profile, write_task

WRITTEN = {
    "output_type": "generate_until",
    "target_delimiter": " ",
    "generation_kwargs": {"until": ["Q"], "do_sample": False, "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
END = 2
"""The end token."""


@pytest.fixture
def ask(root, family):
    """A function that gives the references of a task of some answers, all behind the same prompt."""

    def ask(*answers, prompt="w3 w4", until=("Q",), chat=False, code="", **changes):
        rows = [{"prompt": prompt, "answer": answer} for answer in answers]
        for split in COUNTS:
            write_items(root / "runs" / "p" / "tasks" / f"said.{split}.jsonl", rows)
        changes["generation_kwargs"] = WRITTEN["generation_kwargs"] | {"until": list(until)}
        write_task(root, "said", **WRITTEN | changes)
        with (root / "profiles" / "p" / "said.yaml").open("a") as file:
            file.write(code)
        metric = WRITTEN["metric_list"][0] | changes.get("metric_list", [{}])[0]
        counts = dict.fromkeys(COUNTS, len(answers))
        write_profile(root, [{"name": "said", "task": "said", "metric": metric["metric"], "items": counts}])
        objectives = Objectives(open_workspace("p", root), "search", family["base"])
        (part,) = objectives.composed["said"].parts
        return references(part, objectives.tokenizer(), chat)

    return ask


def test_a_reference_stands_behind_its_prompt_with_the_end_token(ask):
    assert ask("w5 w6", "w7") == [((3, 4), (5, 6, END)), ((3, 4), (7, END))]


def test_what_stops_a_model_ends_a_reference(ask):
    taken, refused, begun = ask("w5", "w5 w9 w6", "w9 w5", until=["w9"])
    assert taken == ((3, 4), (5, END))
    assert refused is begun is None  # a model could not write it whole, or not at all
    graded = ask("w5", "w5 w9 w6", "w9 w5", until=["w9"], metric_list=[{"metric": "chrf"}])
    assert graded == [((3, 4), (5, END)), ((3, 4), (5, 9)), None]


def test_a_reference_is_no_longer_than_what_a_model_may_write(ask):
    assert ask("w5 w5 w5 w5 w5 w5") == [((3, 4), (5,) * 6)]
    assert ask("w5 w5 w5 w5 w5 w5 w5") == [None]


def test_a_reference_that_the_metric_refuses_is_none(ask):
    pattern = {"function": "regex", "regex_pattern": "w9 (w\\d+)"}
    after = [{"name": "after", "filter": [pattern, {"function": "take_first"}]}]
    last = "{{answer.split()[-1]}}"  # where the metric looks for a sentence around it
    assert ask("w9 w5", "w5", doc_to_target=last, filter_list=after) == [None, None]


def test_without_a_reference_there_is_none(ask):
    assert ask("", "w5") == [None, ((3, 4), (5, END))]


def test_space_behind_a_prompt_is_not_a_model_s(ask):
    assert ask("w5", prompt="w3 w4 ") == ask("w5", prompt="w3 w4\n") == ask("w5")


def test_what_the_task_s_own_code_cannot_judge_is_none(ask, root):
    (root / "profiles" / "p" / "judging.py").write_text(
        "def first(doc, results):\n    return {'exact_match': float(results[0].split()[0] == doc['answer'])}\n"
    )
    assert ask("w5", code="process_results: !function judging.first\n") == [None]  # an empty text has no first word


def test_behind_a_chat_template_an_answer_follows_at_once(ask):
    assert ask("w5", target_delimiter=" w9 ", metric_list=[{"metric": "chrf"}]) == [((3, 4), (9, 5, END))]
    assert ask("w5", prompt="w3 w4 ", target_delimiter=" w9 ", chat=True) == [((3, 4), (5, END))]
