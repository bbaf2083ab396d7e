"""What a path takes to run, measured as its user runs it: time a token, parameters, and bytes of the KV cache."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from models.candidate import Candidate

if TYPE_CHECKING:  # they import transformers, and costs that are known are read without it
    from transformers import PreTrainedModel

    from models.paths.pool import Pool

BATCH = 32
PROMPT = 64
"""Tokens of the text that is continued; fewer where the model takes, or an attention window spans, no more."""
ROUNDS = 3
"""Paths, and batches of either size, take turns so often; the quickest turn counts: others only make it slower."""
STEPS = 16
"""Steps of a round that are timed at most."""
SECONDS = 0.3
"""Time after which no further step of a round is timed."""


@dataclass(frozen=True)
class RunningCost:
    """What a model takes to run on one machine."""

    layers: PositiveInt
    """Layers that a token, or an image, passes."""
    parameters: PositiveInt
    """Of its checkpoint: a tied head counts once, and a layer that is passed twice counts twice, as it is stored."""
    ms_1: PositiveFloat
    """Milliseconds of wall time a token that is generated, or an image, one at a time."""
    ms_32: PositiveFloat
    """The same with 32 texts, or images, at a time: the time of a step, over 32."""
    cache_bytes: PositiveFloat | None
    """Bytes of keys and values a token of a text that is shorter than every attention window; images need none."""
    unit: Literal["token", "image"]


def running_costs(
    pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None] = lambda _: None
) -> list[RunningCost]:
    """Build the models on some paths and run them in the pool's dtype and on its device.

    A causal language model reads a random prompt, then decodes greedily with a KV cache; only decoding is timed. An
    encoder takes random images. A time is the median over the steps of the quickest round, after a warm-up; on a GPU it
    ends when that is done.
    ``on_done`` is told how many more paths are done, in parts of them.

    Raises:
        BadInput: a candidate can't be built from this pool.
    """
    from models.paths.path import path_model

    models = [path_model(pool, one) for one in candidates]
    blocks = pool.architecture.live(pool.architecture.blocks)
    sizes = [parameter_count(one, one.get_submodule(blocks)) for one in models]
    layers = [one.depth for one in candidates]
    with torch.inference_mode():
        if pool.architecture.classes:
            times = milliseconds([Encoding(one).begin for one in models], STEPS, pool.device, on_done)
            return [RunningCost(*one, None, "image") for one in zip(layers, sizes, *times, strict=True)]
        texts = [Decoding(one, pool.max_length) for one in models]
        times = milliseconds([one.begin for one in texts], texts[0].steps, pool.device, on_done)
        held = [one.cache_bytes for one in texts]
        return [RunningCost(*one, "token") for one in zip(layers, sizes, *times, held, strict=True)]


class Decoding:
    """Greedy decoding with a KV cache, behind a random prompt."""

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        window = getattr(model.config, "sliding_window", None) or max_length
        length = max(1, min(PROMPT, window - 1, max_length // 2))
        generator = torch.Generator().manual_seed(0)
        self.model = model
        self.prompt = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(model.device)
        self.steps = min(STEPS, max_length - length - 1)
        """Tokens for which there is room, after one that is not timed."""

    @property
    def cache_bytes(self) -> float:
        """Of keys and values, a token of the prompt."""
        layers = self.model(self.prompt, use_cache=True).past_key_values.layers
        held: int = sum(one.keys.nbytes + one.values.nbytes for one in layers)
        return held / self.prompt.shape[1]

    def begin(self, batch: int) -> Callable[[], None]:
        """Read the prompt; gives what decodes one more token of each text."""
        read = self.model(self.prompt, use_cache=True)
        cache, token = read.past_key_values, read.logits[:, -1:].argmax(dim=-1).repeat(batch, 1)
        cache.batch_repeat_interleave(batch)  # all texts begin alike: reading each by itself would take longest of all

        def step() -> None:
            nonlocal token
            token = self.model(token, past_key_values=cache, use_cache=True).logits.argmax(dim=-1)

        return step


class Encoding:
    """Random images through an encoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        shape = (BATCH, config.num_channels, config.image_size, config.image_size)
        generator = torch.Generator().manual_seed(0)
        self.model = model
        self.pixels = torch.randn(shape, generator=generator).to(model.device, model.dtype)

    def begin(self, batch: int) -> Callable[[], object]:
        """What encodes so many images."""
        return partial(self.model, self.pixels[:batch])


def milliseconds(
    runs: Sequence[Callable[[int], Callable[[], object]]],
    most: int,
    device: torch.device,
    on_done: Callable[[float], None] = lambda _: None,
) -> tuple[list[float], list[float]]:
    """Time of a step over its batch, at batch 1 and at ``BATCH``, of each of the runs.

    Args:
        runs: each gives its step for a batch of so many, anew in each round.
        most: steps of a round, after one that is not timed; fewer where they take longer than ``SECONDS``.
        device: is waited for.
        on_done: is told how many more runs are done, in parts of them.
    """
    times: dict[int, list[float]] = {batch: [math.inf] * len(runs) for batch in (1, BATCH)}
    for _ in range(ROUNDS):
        for run, begin in enumerate(runs):
            for batch, quickest in times.items():
                step, taken = begin(batch), list[float]()
                seconds(step, device)
                while len(taken) < most and sum(taken) < SECONDS:
                    taken.append(seconds(step, device))
                quickest[run] = min(quickest[run], 1000 * median(taken) / batch)
            on_done(1 / ROUNDS)
    return times[1], times[BATCH]


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """How long a step takes, until the device is done."""
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def parameter_count(model: nn.Module, blocks: nn.Module) -> int:
    """Parameters of the model's checkpoint, which stores each block by itself, whatever they share in memory."""
    inside = {id(parameter) for parameter in blocks.parameters()}
    ends = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
    return ends + sum(parameter.numel() for block in blocks.children() for parameter in block.parameters())
