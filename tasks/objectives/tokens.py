"""Texts as token ids, by lm-eval's own code for Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import BadInput
from models.paths.prefix import Pair
from models.sources.loadable import load_tokenizer


@cache
def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with a padding token as lm-eval picks it.

    Raises:
        BadInput: there is none that loads.
    """
    from lm_eval.models.utils import configure_pad_token

    return configure_pad_token(load_tokenizer(folder, str(folder), "fetch or copy it again"))


def encode(tokenizer: Any, instances: Sequence[Any]) -> tuple[Pair, ...]:
    """Contexts and continuations of log-likelihood requests, lm-eval's ``instances``."""
    model = _without_model(tokenizer)
    model._loglikelihood_tokens = lambda requests, **_: requests
    requests = model.loglikelihood(list(instances), disable_tqdm=True)
    return tuple((tuple(context), tuple(continuation)) for _, context, continuation in requests)


def windows(tokenizer: Any, instances: Sequence[Any], max_length: int) -> tuple[tuple[Pair, ...], ...]:
    """The windows of rolling log-likelihood requests: each token of a text is predicted in one of them.

    They hold ``max_length`` tokens at most, the longest sequence that the model takes.
    """
    model = _without_model(tokenizer)
    model._max_length = max_length
    found: list[tuple[Pair, ...]] = []
    for instance in instances:
        seen: list[Pair] = []

        def note(requests: Sequence[Any], seen: list[Pair] = seen, **_: Any) -> list[tuple[float, bool]]:
            seen += [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
            return [(0.0, False)] * len(requests)

        model._loglikelihood_tokens = note
        model.loglikelihood_rolling([instance], disable_tqdm=True)
        found.append(tuple(seen))
    return tuple(found)


def chat_template(tokenizer: Any, label: str) -> Callable[..., str]:
    """What puts messages into the tokenizer's chat template, as lm-eval does.

    Raises:
        BadInput: it has none.
    """
    if not tokenizer.chat_template:
        raise BadInput(f"{label}: chat_template: the base's tokenizer has none; leave it out")
    template: Callable[..., str] = _without_model(tokenizer).apply_chat_template
    return template


def _without_model(tokenizer: Any) -> Any:
    """lm-eval's class for Hugging Face models with a tokenizer alone: its constructor wants a model."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    model = HFLM.__new__(HFLM)
    model.tokenizer, model.backend = tokenizer, "causal"
    model.add_bos_token = model.custom_prefix_token_id = model.enable_thinking = None
    model.chat_template_args, model.cache_hook = {}, CacheHook(None)
    model._rank, model._world_size, model.batch_size_per_gpu = 0, 1, 1
    return model
