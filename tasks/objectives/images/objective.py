"""Objectives of images, and the kind that scores those of a profile together, in one trie over the paths."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.candidate import Candidate
from models.paths.pool import Pool
from models.paths.prefix import PathLikelihoods, Requests
from models.paths.vision import ImageItems, image_requests
from models.sources.heads import Head
from models.sources.lora import open_model
from tasks.objectives.images.heads import head_of, models_named
from tasks.objectives.images.items import ImageSet, open_processor, read_images
from tasks.objectives.parts import Failure, OnScored, Span
from tasks.objectives.task_files import task_label
from tasks.project.references import finder
from tasks.project.workspace import Workspace
from tasks.schema.profile import Objective


@dataclass(frozen=True)
class ImageObjective:
    """A part of an objective: images of one split of a task, with the task's own head."""

    name: str
    metric: str
    """``acc`` or ``ll``."""
    scale: float
    found: ImageSet
    items: ImageItems
    definition: Any
    """All that decides the scores beside the candidate."""

    @property
    def count(self) -> int:
        """Number of items."""
        return len(self.found.ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the items, in order."""
        return self.found.ids

    def values(self, likelihoods: Sequence[float], right: Sequence[bool], start: int) -> list[float] | Failure:
        """Value of each item from ``start`` on, higher is better."""
        for item, one in zip(self.ids[start:], likelihoods, strict=False):
            if one != one:
                return Failure(f"{self.name}: item {item}: its log-likelihood is not finite")
        return [self.scale * float(one) for one in (right if self.metric == "acc" else likelihoods)]

    def span(self, start: int, stop: int) -> ImageItems:
        """Some of the items."""
        return ImageItems(self.items.pixels[start:stop], self.items.labels[start:stop], self.items.head)


class ImageKind:
    """Scores images of several objectives in the same batches. Implements :class:`tasks.objectives.parts.Kind`."""

    def __init__(self, parts: Sequence[ImageObjective]) -> None:
        self.parts: Sequence[Any] = parts
        self._jobs: dict[tuple[tuple[Span, ...], str, torch.dtype], PathLikelihoods] = {}

    def part_values(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[list[float]] | Failure]:
        """For each candidate and part the values of the items in the part's span, higher is better."""
        job = self._job(pool, spans)
        if not job.requests.count:
            on_scored(len(candidates))
            return [[[] for _ in self.parts] for _ in candidates]
        return [
            self._values(likelihoods.tolist(), right.tolist(), spans)
            for likelihoods, right in pool.run(job, candidates, on_scored)
        ]

    def requests(self, pool: Pool, spans: Sequence[Span]) -> Requests:
        """The images of those items in batches."""
        return self._job(pool, spans).requests

    def _job(self, pool: Pool, spans: Sequence[Span]) -> PathLikelihoods:
        key = tuple(spans), pool.device.type, pool.dtype
        if key not in self._jobs:
            asked = [part.span(*span) for part, span in zip(self.parts, spans, strict=True)]
            self._jobs[key] = PathLikelihoods(image_requests(pool, asked))
        return self._jobs[key]

    def _values(
        self, likelihoods: list[float], right: list[bool], spans: Sequence[Span]
    ) -> list[list[float]] | Failure:
        found: list[list[float]] = []
        for part, (start, stop) in zip(self.parts, spans, strict=True):
            size = stop - start
            values = part.values(likelihoods[:size], right[:size], start)
            if isinstance(values, Failure):
                return values
            found.append(values)
            likelihoods, right = likelihoods[size:], right[size:]
        return found


def image_objective(workspace: Workspace, objective: Objective, split: str, count: int) -> ImageObjective:
    """The one part of an objective of images; the family's models can be opened.

    Raises:
        BadInput: the images, the head or the base's image processor can't be used.
    """
    assert objective.images is not None  # noqa: S101 (who calls has looked)
    label = task_label(workspace, objective.name)
    found = read_images(workspace, objective.images, split, count, label)
    head = head_of(workspace, objective, found.classes)
    processor = open_processor(processor_folder(workspace))
    items = ImageItems(found.pixels(processor, label), torch.tensor(found.labels), head)
    definition = [
        *(objective.name, objective.metric, objective.scale, found.ids, found.labels, digest(head)),
        *(processor.to_json_string(), importlib.metadata.version("pillow")),
    ]
    return ImageObjective(objective.name, objective.metric, objective.scale, found, items, definition)


def processor_folder(workspace: Workspace) -> Path:
    """Folder of the base, whose image processor all models of the family share."""
    return open_model(models_named(workspace)["base"], finder(workspace)).tokenizer


def digest(head: Head) -> str:
    """Hex sha256 of a head's content."""
    described = hashlib.sha256(json.dumps([list(head.weight.shape), head.scale]).encode())
    for tensor in (head.weight, head.bias):
        if tensor is not None:
            described.update(tensor.float().contiguous().numpy().tobytes())
    return described.hexdigest()
