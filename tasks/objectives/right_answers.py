"""What a model would read that gives the right answers: of each item of a task its prompt, and the answer behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.paths.prefix import Pair
from tasks.objectives.generation import OUTPUT
from tasks.objectives.likelihood import ROLLING
from tasks.objectives.tokens import encode, windows

Text = tuple[tuple[int, ...], int]
"""Token ids of a prompt and the right answer behind it, and how many of them are the answer."""

CHOICES = "multiple_choice"
"""lm-eval's output type."""


def right_answers(tokenizer: Any, task: Any, items: Sequence[Sequence[Any]], chat: bool, max_length: int) -> list[Text]:
    """The prompt and right answer of each item that has one; of a text without a prompt, its windows.

    Args:
        tokenizer: the models'.
        task: lm-eval's.
        items: its requests, by item.
        chat: whether prompts are in a chat template, behind which an answer follows at once.
        max_length: longest sequence that the models take; longer ones lose tokens on the left.
    """
    if task.OUTPUT_TYPE == ROLLING:
        asked = [instance for item in items for instance in item if instance.arguments[-1]]
        pairs: Sequence[Pair] = [pair for text in windows(tokenizer, asked, max_length) for pair in text]
    else:
        found = [_right(task, item, chat) for item in items]
        pairs = encode(tokenizer, [one for one in found if one is not None])
    texts = [((*context, *answer)[-max_length - 1 :], len(answer)) for context, answer in pairs if answer]
    return [(text, min(answer, len(text) - 1)) for text, answer in texts if len(text) > 1]


def _right(task: Any, requests: Sequence[Any], chat: bool) -> Any | None:
    """The log-likelihood request of an item's right answer; none where the item has no right answer."""
    first = requests[0]
    if task.OUTPUT_TYPE == CHOICES:
        index = choice_of(task, first.doc)
        return None if index is None else requests[index]
    if task.OUTPUT_TYPE != OUTPUT:
        return first if first.arguments[-1] else None
    return written(task, first, chat)


def written(task: Any, asked: Any, chat: bool) -> Any | None:
    """The log-likelihood request of the text that should be written where it is asked for; none without a text."""
    answer, prompt = _reference(task, asked.doc), asked.arguments[0]
    delimiter = "" if chat or prompt[-1:].isspace() else task.config.target_delimiter
    return forced(asked, prompt, f"{delimiter}{answer}") if answer else None


def choice_of(task: Any, doc: Any) -> int | None:
    """Index of the right choice; of the first, where several are right (lm-eval's ``process_results``)."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    gold = gold[0] if isinstance(gold, list) and gold else gold
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else None
    return int(gold) if isinstance(gold, int) and 0 <= gold < len(choices) else None


def _reference(task: Any, doc: Any) -> str:
    """The text that should be written; the first, where there are several."""
    gold = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(gold, int):
        gold = task.doc_to_choice(doc)[gold]
    if isinstance(gold, list | tuple):
        gold = gold[0] if gold else ""
    return str(gold)


def forced(instance: Any, prompt: str, answer: str) -> Any:
    """The log-likelihood request of an answer in place of another request for the same item."""
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", instance.doc, (prompt, answer), 0)
