"""Reference answers of tasks whose answers are written freely: as a model would write them, if the metric takes them.

A reference is not always an answer: tasks of programs name tests in its place, others a number where the metric looks
for a sentence. So each is shown to the task's own metric first, cut and filtered like what models write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from models.paths.prefix import Pair
from tasks.objectives.metrics import repeats
from tasks.objectives.parts import TaskPart
from tasks.objectives.right_answers import forced, written
from tasks.objectives.tokens import encode

MOST_TOKENS = 256
"""Of an answer where the task sets no bound: lm-eval's own."""


def references(part: TaskPart, tokenizer: Any, chat: bool) -> list[Pair | None]:
    """Prompt and reference of each item, with what ends it; none where the metric likes an empty text as much.

    Args:
        part: a task whose answers are written freely.
        tokenizer: the models'.
        chat: whether prompts are in a chat template, behind which an answer follows at once.
    """
    task, items = part.built.task, part.built.requests[: part.count]
    ends = [_ends(tokenizer, item[0]) for item in items]
    found = {number: one for number, item in enumerate(items) if (one := written(task, item[0], chat)) is not None}
    ended = {number: _ended(one, ends[number][0]) for number, one in found.items()}
    pairs: list[Pair | None] = [None] * len(items)
    texts = [""] * len(items)
    for (number, one), (prompt, answer) in zip(ended.items(), encode(tokenizer, list(ended.values())), strict=True):
        stops, most = ends[number]
        known = tokenizer.eos_token_id is None or one.arguments[1].endswith(tuple(stops))
        answer = (*answer, *([] if known else [tokenizer.eos_token_id]))[:most]
        if prompt and answer:
            pairs[number] = prompt, answer
            texts[number] = _as_written(tokenizer, one.arguments[0], answer, stops)
    worth, nothing = _values(part, texts), _values(part, [""] * len(items))
    return [pair if one > least else None for pair, one, least in zip(pairs, worth, nothing, strict=True)]


def _ends(tokenizer: Any, asked: Any) -> tuple[list[str], int]:
    """What ends an answer, the end token's text among it, and the most tokens that it may have."""
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    options = normalize_gen_kwargs(asked.arguments[1], MOST_TOKENS)
    end = None if tokenizer.eos_token_id is None else tokenizer.decode(tokenizer.eos_token_id)
    return [one for one in handle_stop_sequences(options["until"], end) if one], options["max_gen_toks"]


def _ended(request: Any, stops: Sequence[str]) -> Any:
    """A reference up to the first stop in it and with it; where none is in it, with a line break that is one."""
    prompt, answer = request.arguments
    places = [(answer.find(stop), stop) for stop in stops if stop in answer]
    place, stop = min(places, default=(len(answer), next((one for one in stops if one.isspace()), "")))
    return forced(request, prompt, f"{answer[:place]}{stop}")


def _as_written(tokenizer: Any, prompt: str, answer: Sequence[int], stops: list[str]) -> str:
    """What lm-eval's model class makes of an answer's tokens."""
    from lm_eval.models.utils import postprocess_generated_text

    space = prompt[len(prompt.rstrip()) :]  # encoded with the answer
    text = tokenizer.decode(answer, skip_special_tokens=True).removeprefix(space)
    return str(postprocess_generated_text(text, stops, None))


def _values(part: TaskPart, texts: Sequence[str]) -> list[float]:
    """Value of each item that is answered so; NaN where the task can't say it."""
    answers = [
        [[text] * repeats(request) for request in item] for text, item in zip(texts, part.built.requests, strict=False)
    ]
    try:
        return part.metric.values([one[part.metric.key] for one in part.built.metrics(answers)])
    except Exception:  # noqa: BLE001 (a task brings functions of its own, and these texts no model wrote)
        return [math.nan] * len(texts)
