"""Items with their answers from rows that are in no split, on which models are calibrated (method.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import BadInput
from models.files import reading
from models.paths.calibration import Calibration
from models.paths.pool import Pool
from models.paths.vision import image_tokens
from models.sources.lora import open_model
from tasks.objectives.built_task import BuiltTask, Wanted, build
from tasks.objectives.images.heads import models_named
from tasks.objectives.images.items import open_processor, read_images, unused_images
from tasks.objectives.images.objective import processor_folder
from tasks.objectives.items import CALIBRATION, SPLITS, digest
from tasks.objectives.objectives import count_of, wanted_of
from tasks.objectives.right_answers import Text, right_answers
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


class TooFewRows(BadInput):
    """A profile's tasks leave too few rows for calibration."""


def counted(workspace: Workspace, found: Calibration) -> str:
    """How many tokens there are, in a line.

    Raises:
        BadInput: they are too few.
    """
    of_tasks = ", ".join(f"{task} {tokens:,}" for task, tokens in found.per_task.items())
    said = f"{found.total:,} tokens of rows in no split ({of_tasks})"
    if found.total < LEAST:
        raise TooFewRows(f"profiles/{workspace.name}.yaml: calibration: {said}, fewer than {LEAST:,}; {REMEDY}")
    return said


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
    names, sizes = list(found), [[len(text) - 1 for text, _ in one] for one in found.values()]
    order = [(names[one], *found[names[one]][item]) for one, item in fairly(sizes)]
    tasks, read, answers = zip(*order, strict=True)
    return Calibration(tasks, answers, read).first(tokens)


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
    found: list[tuple[Tensor, tuple[int, ...]]] = []
    for _, images, label in asked:
        taken = unused_images(workspace, images, used, -(-tokens // size), label)
        if not taken.ids:
            raise TooFewRows(f"{label}: {NO_IMAGE}")
        found.append((taken.pixels(processor, label).half(), taken.labels))
    order = list(fairly([[size] * len(labels) for _, labels in found]))
    pixels = torch.stack([found[one][0][item] for one, item in order])
    labels = tuple(found[one][1][item] for one, item in order)
    return Calibration(tuple(asked[one][0].name for one, _ in order), labels, None, pixels, size)


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

    def of(self, objective: Objective, tokens: int) -> list[Text]:
        """Items of an objective with so many tokens, those of its tasks mixed by their weights.

        Raises:
            BadInput: there is none.
        """
        wanted = [one for _, one in wanted_of(self.workspace, objective, SPLITS[0])[0]]
        parts = [self._part(one, -(-tokens * one.count // sum(each.count for each in wanted))) for one in wanted]
        order = fairly([[len(text) - 1 for text, _ in part] for part in parts], [one.count for one in wanted])
        found: list[Text] = [parts[part][item] for part, item in order]
        if not found:
            raise TooFewRows(f"{task_label(self.workspace, objective.name)}: {NONE_FREE}")
        return found

    def _part(self, wanted: Wanted, tokens: int) -> list[Text]:
        """Items of one task with so many tokens, or all that there are."""
        count = FIRST
        while True:
            built = build(self.workspace, replace(wanted, split=CALIBRATION, count=count, used=self.used), self.chat)
            free = [number for number, one in enumerate(asked_by(built)) if one not in self.asked]
            requests = [built.requests[number] for number in free]
            with reading(f"{wanted.label}: task {built.name}", "mend the rows that it reads", "has no answers"):
                texts = right_answers(self.tokenizer, built.task, requests, self.chat is not None, self.max_length)
            held = list(accumulate((len(text) - 1 for text, _ in texts), initial=0))
            if held[-1] >= tokens or len(built.docs) < count:
                return texts[: sum(before < tokens for before in held[:-1])]
            count *= 4
