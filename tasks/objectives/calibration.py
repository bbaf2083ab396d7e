"""Items with their answers from rows that are in no split, on which models are calibrated (method.md, section 4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.errors import BadInput
from models.files import Foreign, parse_object, reading, require_regular
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, GPU_TOKENS, Requests
from models.paths.vision import ImageItems, image_requests, image_tokens
from models.sources.heads import Head
from models.sources.lora import open_model
from models.sources.tensors import open_tensors
from tasks.objectives.built_task import BuiltTask, Wanted, build
from tasks.objectives.images.heads import models_named
from tasks.objectives.images.items import open_processor, read_images, unused_images
from tasks.objectives.images.objective import processor_folder
from tasks.objectives.items import CALIBRATION, SPLITS, digest
from tasks.objectives.objectives import count_of, wanted_of
from tasks.objectives.right_answers import right_answers
from tasks.objectives.task_files import task_label
from tasks.objectives.tokens import chat_template, open_tokenizer
from tasks.project.references import finder
from tasks.project.workspace import Workspace
from tasks.schema.profile import Objective

LEAST = 2_000
"""Tokens without which nothing can be calibrated."""

MOST = 24_000
"""Tokens that are ever wanted."""

FIRST = 256
"""Rows of a task that are tried first; four times as many, as long as they hold too few tokens."""

REMEDY = "ask for fewer `items.search`, or switch repair off by `paths: {repair: false}`"

NONE_FREE = f"no row is left for calibration: name rows for training under `data.files: {{train: FILE}}`, {REMEDY}"

NO_IMAGE = f"no image is left for calibration: take a data set with a split `train`, {REMEDY}"

FILE_BYTES = 2**30
"""Largest file that is read: 3,000 images of 224 × 224 pixels, which are many times as many tokens as are wanted."""

DESCRIPTION = "calibration"
"""Key of a file's metadata; with a single one its bytes depend on nothing but the content."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Items with their answers, from rows that are in no split: texts or images."""

    tasks: tuple[str, ...]
    """Objective of each item."""
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
        described = hashlib.sha256(json.dumps([self.tasks, self.tokens, self.image_tokens]).encode())
        if self.pixels is not None:
            described.update(json.dumps(list(self.pixels.shape)).encode())
            described.update(self.pixels.contiguous().numpy().tobytes())
        return described.hexdigest()

    def first(self, tokens: int) -> Calibration:
        """The first items that hold so many tokens together; all, if they hold fewer."""
        count = sum(before < tokens for before in accumulate(self.sizes[:-1], initial=0)) if self.tasks else 0
        texts = None if self.tokens is None else self.tokens[:count]
        pixels = None if self.pixels is None else self.pixels[:count]
        return Calibration(self.tasks[:count], texts, pixels, self.image_tokens)

    def requests(self, pool: Pool) -> Requests:
        """The items in batches as scoring has them; every token that is read counts as real, prompts' too.

        The likelihood of a text is that of all its tokens but the first. Images have none: they have no labels here.

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
        size = CPU_TOKENS if pool.device.type == "cpu" else GPU_TOKENS
        return Requests.from_pairs([(one[:1], one[1:]) for one in self.tokens], pool.max_length, size)

    def write(self, path: Path) -> None:
        """Write a safetensors file, whose bytes depend on nothing but the content."""
        names = tuple(dict.fromkeys(self.tasks))
        tensors = {"task": torch.tensor([names.index(one) for one in self.tasks], dtype=torch.int32)}
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
    task = _whole(held["task"], 0, len(about.tasks))
    tasks = tuple(about.tasks[one] for one in task)
    if "pixels" in held:
        pixels = held["pixels"]
        if pixels.dtype != torch.float16 or pixels.ndim != 4 or len(pixels) != len(tasks) or about.image_tokens < 1:
            raise ValueError(f"pixels {pixels.dtype} of shape {tuple(pixels.shape)} for {len(tasks)} images")
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError("pixels hold NaN or Inf")
        return Calibration(tasks, None, pixels, about.image_tokens)
    tokens, lengths = _whole(held["token"], 0, 2**31), _whole(held["length"], 2, 2**31)
    ends = list(accumulate(lengths, initial=0))
    if len(lengths) != len(tasks) or ends[-1] != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(lengths)} lengths, {len(tasks)} items")
    texts = tuple(tuple(tokens[end - length : end]) for length, end in zip(lengths, ends[1:], strict=True))
    return Calibration(tasks, texts)


def _whole(tensor: Tensor, low: int, high: int) -> list[int]:
    """Numbers ``(N,)`` in ``[low, high)``."""
    if tensor.dtype != torch.int32 or tensor.ndim != 1:
        raise ValueError(f"a list of {tensor.dtype} in {tensor.ndim} dimensions")
    found: list[int] = tensor.tolist()
    if found and not low <= min(found) <= max(found) < high:
        raise ValueError(f"numbers from {min(found)} to {max(found)}")
    return found


def asked_by(built: BuiltTask) -> list[str]:
    """Digest of each item's question and answer, whatever else its row holds."""
    task = built.task
    return [digest({"text": task.doc_to_text(doc), "target": task.doc_to_target(doc)}) for doc in built.docs]


def fairly(sizes: Sequence[Sequence[int]], weights: Sequence[float] | None = None) -> Iterator[tuple[int, int]]:
    """Items of several lists in one order: next comes that of the list that has the fewest tokens so far.

    Args:
        sizes: tokens of each item of each list.
        weights: what a list's tokens are divided by; 1 if left out.

    Returns:
        Number of the list, and of its item. A list that has no more is passed over.
    """
    shares = weights or [1.0] * len(sizes)
    taken, tokens = [0] * len(sizes), [0.0] * len(sizes)
    while left := [one for one in range(len(sizes)) if taken[one] < len(sizes[one])]:
        due = min(left, key=lambda one: (tokens[one], one))
        yield due, taken[due]
        tokens[due] += sizes[due][taken[due]] / shares[due]
        taken[due] += 1


def calibration_of(workspace: Workspace, tokenizer_folder: Path, tokens: int = MOST) -> Calibration:
    """Items of so many tokens, of each objective nearly as many, from rows that are items of no split.

    Rows for training come first, then those of the search split's share that are no items.

    Args:
        workspace: project and profile; the family's models can be opened.
        tokenizer_folder: folder whose tokenizer the models share.
        tokens: of all objectives together; an objective with fewer rows gives what it has.

    Raises:
        BadInput: an objective has no such rows, or its data can't be read.
    """
    objectives = workspace.profile.objectives
    pool = Pool(open_model(models_named(workspace)["base"], finder(workspace)).config)
    share = -(-tokens // len(objectives))
    if any(one.images for one in objectives):
        return _of_images(workspace, image_tokens(pool), share).first(tokens)
    texts = Texts(workspace, open_tokenizer(tokenizer_folder), pool.max_length)
    found = {one.name: texts.of(one, share) for one in objectives}
    names, sizes = list(found), [[len(text) - 1 for text in one] for one in found.values()]
    order = list(fairly(sizes))
    tasks = tuple(names[one] for one, _ in order)
    return Calibration(tasks, tuple(found[names[one]][item] for one, item in order)).first(tokens)


def _of_images(workspace: Workspace, size: int, tokens: int) -> Calibration:
    """Images of every objective that have so many tokens, ``size`` each."""
    asked = [(one, one.images, task_label(workspace, one.name)) for one in workspace.profile.objectives if one.images]
    used = {
        content
        for split in SPLITS
        for one, images, label in asked
        for content in read_images(workspace, images, split, count_of(one, split), label).ids
    }
    processor = open_processor(processor_folder(workspace))
    found: list[Tensor] = []
    for _, images, label in asked:
        taken = unused_images(workspace, images, used, -(-tokens // size), label)
        if not taken.ids:
            raise BadInput(f"{label}: {NO_IMAGE}")
        found.append(taken.pixels(processor, label).half())
    order = list(fairly([[size] * len(one) for one in found]))
    pixels = torch.stack([found[one][item] for one, item in order])
    return Calibration(tuple(asked[one][0].name for one, _ in order), None, pixels, size)


class Texts:
    """Takes items with their answers from the lm-eval tasks of a profile."""

    def __init__(self, workspace: Workspace, tokenizer: Any, max_length: int) -> None:
        """Read the items of all splits, which are not to be taken."""
        self.workspace = workspace
        self.tokenizer = tokenizer
        self.max_length = max_length
        label = f"profiles/{workspace.name}.yaml"
        self.chat = chat_template(tokenizer, label) if workspace.profile.chat_template else None
        items = [
            build(workspace, wanted, self.chat)
            for split in SPLITS
            for objective in workspace.profile.objectives
            for _, wanted in wanted_of(workspace, objective, split)[0]
        ]
        self.used = frozenset(digest(doc) for built in items for doc in built.docs)
        self.asked = {one for built in items for one in asked_by(built)}

    def of(self, objective: Objective, tokens: int) -> list[tuple[int, ...]]:
        """Items of an objective with so many tokens, those of its tasks mixed by their weights.

        Raises:
            BadInput: there is none.
        """
        wanted = [one for _, one in wanted_of(self.workspace, objective, SPLITS[0])[0]]
        parts = [self._part(one, -(-tokens * one.count // sum(each.count for each in wanted))) for one in wanted]
        order = fairly([[len(text) - 1 for text in part] for part in parts], [one.count for one in wanted])
        found: list[tuple[int, ...]] = [parts[part][item] for part, item in order]
        if not found:
            raise BadInput(f"{task_label(self.workspace, objective.name)}: {NONE_FREE}")
        return found

    def _part(self, wanted: Wanted, tokens: int) -> list[tuple[int, ...]]:
        """Items of one task with so many tokens, or all that there are."""
        count = FIRST
        while True:
            built = build(self.workspace, replace(wanted, split=CALIBRATION, count=count, used=self.used), self.chat)
            free = [number for number, one in enumerate(asked_by(built)) if one not in self.asked]
            requests = [built.requests[number] for number in free]
            with reading(f"{wanted.label}: task {built.name}", "mend the rows that it reads", "has no answers"):
                texts = right_answers(self.tokenizer, built.task, requests, self.chat is not None, self.max_length)
            held = list(accumulate((len(one) - 1 for one in texts), initial=0))
            if held[-1] >= tokens or len(built.docs) < count:
                return texts[: sum(before < tokens for before in held[:-1])]
            count *= 4
