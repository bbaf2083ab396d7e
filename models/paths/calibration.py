"""Calibration items: what models read to have their seams repaired, as a file and as batches of requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from models.errors import BadInput
from models.files import Foreign, parse_object, reading, require_regular
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, Requests
from models.paths.vision import ImageItems, image_requests
from models.sources.heads import Head
from models.sources.tensors import open_tensors

HELD_OUT = 32
"""Items on which it is seen whether a repair gains."""

FILE_BYTES = 2**30
"""Largest file that is read: 3,000 images of 224 × 224 pixels, which are many times as many tokens as are wanted."""

DESCRIPTION = "calibration"
"""Key of a file's metadata; with a single one its bytes depend on nothing but the content."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Items with their answers, from rows that are in no split: texts or images."""

    tasks: tuple[str, ...]
    """Objective of each item."""
    answers: tuple[int, ...]
    """How many of a text's last tokens are the answer; of an image the index of its class."""
    tokens: tuple[tuple[int, ...], ...] | None = None
    """Token ids of each text: prompt and right answer."""
    pixels: Tensor | None = None
    """``(N, C, H, W)`` in float16."""
    image_tokens: int = 0
    """Tokens that an encoder makes of an image."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each item that pass through the layers: of a text all but the last, which is only predicted."""
        if self.tokens is None:
            return (self.image_tokens,) * len(self.tasks)
        return tuple(len(one) - 1 for one in self.tokens)

    @property
    def total(self) -> int:
        """Tokens of all items."""
        return sum(self.sizes)

    @property
    def per_task(self) -> dict[str, int]:
        """Tokens of each objective."""
        found = dict.fromkeys(self.tasks, 0)
        for task, size in zip(self.tasks, self.sizes, strict=True):
            found[task] += size
        return found

    @property
    def digest(self) -> str:
        """Hex sha256 of the content."""
        described = hashlib.sha256(json.dumps([self.tasks, self.answers, self.tokens, self.image_tokens]).encode())
        if self.pixels is not None:
            described.update(json.dumps(list(self.pixels.shape)).encode())
            described.update(self.pixels.contiguous().numpy().tobytes())
        return described.hexdigest()

    def first(self, tokens: int) -> Calibration:
        """The first items that hold so many tokens together; all, if they hold fewer."""
        return self.part(0, sum(before < tokens for before in accumulate(self.sizes[:-1], initial=0)))

    def part(self, start: int, stop: int) -> Calibration:
        """Some of the items."""
        texts = None if self.tokens is None else self.tokens[start:stop]
        pixels = None if self.pixels is None else self.pixels[start:stop]
        return Calibration(self.tasks[start:stop], self.answers[start:stop], texts, pixels, self.image_tokens)

    def requests(self, pool: Pool) -> Requests:
        """The items in batches as scoring has them; every token that is read counts as real, prompts' too.

        The likelihood of a text is that of its answer. Images have none here: it takes the heads of their tasks.

        Raises:
            BadInput: a token is unknown to the models.
        """
        if self.tokens is None:
            assert self.pixels is not None  # noqa: S101 (one of the two is there)
            labels, head = torch.zeros(len(self.pixels), dtype=torch.long), Head(torch.zeros(1, 1))
            return image_requests(pool, [ImageItems(self.pixels, labels, head)])
        known, highest = int(pool.skeleton.config.vocab_size), max(map(max, self.tokens), default=0)
        if highest >= known:
            raise BadInput(f"calibration: token {highest}: the models have {known}; take the rows of this profile")
        pairs = [(one[:-answer], one[-answer:]) for one, answer in zip(self.tokens, self.answers, strict=True)]
        return Requests.from_pairs(pairs, pool.max_length, CPU_TOKENS)  # what is summed up is the same everywhere

    def held_out(self) -> Calibration:
        """The last items, which no repair is fitted to: a few dozen, at most a fifth."""
        return self.part(self._fitting, len(self.tasks))

    def fitted(self, tokens: int) -> Calibration:
        """The first of the others that hold so many tokens."""
        return self.part(0, self._fitting).first(tokens)

    @property
    def _fitting(self) -> int:
        return len(self.tasks) - min(HELD_OUT, len(self.tasks) // 5)

    def write(self, path: Path) -> None:
        """Write a safetensors file, whose bytes depend on nothing but the content."""
        names = tuple(dict.fromkeys(self.tasks))
        tensors = {
            "task": torch.tensor([names.index(one) for one in self.tasks], dtype=torch.int32),
            "answer": torch.tensor(self.answers, dtype=torch.int32),
        }
        if self.tokens is not None:
            tensors["length"] = torch.tensor(list(map(len, self.tokens)), dtype=torch.int32)
            tensors["token"] = torch.tensor([token for one in self.tokens for token in one], dtype=torch.int32)
        if self.pixels is not None:
            tensors["pixels"] = self.pixels.contiguous()
        described = json.dumps({"tasks": names, "image_tokens": self.image_tokens}, ensure_ascii=False)
        beside = path.with_name(f".{path.name}.tmp")
        beside.write_bytes(save(tensors, {DESCRIPTION: described}))
        beside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file of :meth:`write`.

        Raises:
            BadInput: it is missing, damaged, or something else.
        """
        require_regular(path, str(path), FILE_BYTES)
        with reading(str(path), what="holds no calibration"):
            opened = open_tensors(path.parent, path.name)
            text = (opened.metadata() or {}).get(DESCRIPTION, "{}")
            about = Description.model_validate(parse_object(text, str(path)))
            return _checked(about, {name: opened.get_tensor(name) for name in list(opened.keys())})


class Description(Foreign):
    """What a file says of its items."""

    tasks: list[str]
    image_tokens: int


def _checked(about: Description, held: Mapping[str, Tensor]) -> Calibration:
    """Raises ValueError or KeyError where tensors and description don't fit."""
    task, answers = _whole(held["task"], 0, len(about.tasks)), tuple(_whole(held["answer"], 0, 2**31))
    if len(answers) != len(task):
        raise ValueError(f"{len(answers)} answers of {len(task)} items")
    tasks = tuple(about.tasks[one] for one in task)
    if "pixels" in held:
        pixels = held["pixels"]
        if pixels.dtype != torch.float16 or pixels.ndim != 4 or len(pixels) != len(tasks) or about.image_tokens < 1:
            raise ValueError(f"pixels {pixels.dtype} of shape {tuple(pixels.shape)} for {len(tasks)} images")
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError("pixels hold NaN or Inf")
        return Calibration(tasks, answers, None, pixels, about.image_tokens)
    tokens, lengths = _whole(held["token"], 0, 2**31), _whole(held["length"], 2, 2**31)
    ends = list(accumulate(lengths, initial=0))
    if len(lengths) != len(tasks) or ends[-1] != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(lengths)} lengths, {len(tasks)} items")
    texts = tuple(tuple(tokens[end - length : end]) for length, end in zip(lengths, ends[1:], strict=True))
    if not all(0 < answer < len(text) for text, answer in zip(texts, answers, strict=True)):
        raise ValueError("an answer is empty, or longer than its text")
    return Calibration(tasks, answers, texts)


def _whole(tensor: Tensor, low: int, high: int) -> list[int]:
    """Numbers ``(N,)`` in ``[low, high)``."""
    if tensor.dtype != torch.int32 or tensor.ndim != 1:
        raise ValueError(f"a list of {tensor.dtype} in {tensor.ndim} dimensions")
    found: list[int] = tensor.tolist()
    if found and not low <= min(found) <= max(found) < high:
        raise ValueError(f"numbers from {min(found)} to {max(found)}")
    return found
