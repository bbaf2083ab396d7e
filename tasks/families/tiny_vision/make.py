"""Makes the family `tiny-vision`: items here, each model in a process of its own, experts two at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTImageProcessorPil

from models.errors import BadInput
from tasks.families.made import GATED_SPLIT, check_profile, trained
from tasks.families.tiny_vision.pictures import SIZE, TASKS, Pictures
from tasks.families.tiny_vision.train import HELD_OUT, TRAINING, Job
from tasks.objectives.images.items import write_images
from tasks.objectives.items import SPLITS
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace
from tasks.schema.profile import Items

LANES = (("letters",), ("photos", "digits"))
"""What is trained at the same time: experts of one lane follow each other."""

STEPS_SHARE = {"digits": 0.4, "letters": 1.0, "photos": 1.4}
"""Optimiser steps of an expert over ``expert_steps``."""

CALIBRATING = 512
"""Training pictures of a task that are written beside the items: more than 8,000 tokens."""

TRAINED = 0.5
"""Least share of the groups of pictures that are for training."""


@dataclass(frozen=True)
class Divided:
    """The pictures of a task: which are for training, and which are the items of each split."""

    pictures: Pictures
    training: np.ndarray
    items: dict[str, np.ndarray]

    def calibrating(self, seed: int) -> np.ndarray:
        """Some of those for training, in random order."""
        return np.random.default_rng(seed).permutation(self.training)[:CALIBRATING]


def make_family(workspace: Workspace, zoo: Path, items: Path, progress: Progress) -> dict[str, Any]:
    """Write models to ``zoo/{base,EXPERT}`` and items to ``items/TASK.SPLIT.parquet``; both folders are empty.

    Some training pictures lie beside them, as split ``train``.

    Returns:
        What the gates saw; see :func:`trained`, also for what is raised.

    Raises:
        BadInput: the profile has other experts than the tasks, or asks for more items than there are.
    """
    counts = {one.images.data: one.items for one in workspace.profile.objectives if one.images}
    check_profile(workspace, TASKS, counts, "images ")
    divided = divide(counts, workspace.params.seed)
    for task, own in divided.items():
        for split, chosen in {**own.items, "train": own.calibrating(workspace.params.seed)}.items():
            pictures = [Image.fromarray(own.pictures.images[index]) for index in chosen]
            labels = own.pictures.labels[chosen].tolist()
            write_images(items / f"{task}.{split}.parquet", pictures, labels, own.pictures.classes)
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    for name in ("base", *TASKS):
        processor.save_pretrained(zoo / name)
    classes = {task: list(own.pictures.classes) for task, own in divided.items()}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "pictures.safetensors"
        save_file(tensors(divided), data)
        return trained(workspace, zoo, Job, {"data": str(data), "classes": classes}, STEPS_SHARE, LANES, progress)


def divide(items: Mapping[str, Items], seed: int) -> dict[str, Divided]:
    """Training pictures and items of each task: all classes in proportion, and what shows much the same never divided.

    Args:
        items: how many of each split, by task.
        seed: of the order in which groups of pictures become items; what is left is for training.

    Raises:
        BadInput: a task has too few pictures to leave some for training.
    """
    found = {}
    for number, (task, read) in enumerate(TASKS.items()):
        pictures = read()
        generator = np.random.default_rng([seed, number])
        names, first = np.unique(pictures.groups, return_index=True)
        left = list(names[stratified(pictures.labels[first], generator)])
        chosen: dict[str, np.ndarray] = {}
        for split in SPLITS:
            count, indices = getattr(items[task], split), np.empty(0, dtype=np.int64)
            while len(indices) < count:
                if len(left) <= len(names) * TRAINED:
                    raise BadInput(f"items of {task}: the made family has too few pictures; ask for fewer")
                indices = np.append(indices, np.flatnonzero(pictures.groups == left.pop()))
            chosen[split] = generator.permutation(indices)[:count]
        found[task] = Divided(pictures, np.flatnonzero(np.isin(pictures.groups, left)), chosen)
    return found


def stratified(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random order ``(N,)`` of things with labels ``(N,)``: any stretch of it has all labels in proportion."""
    order = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = (np.arange(len(own)) + generator.random()) / len(own)
    return np.argsort(place, kind="stable")


def tensors(divided: Mapping[str, Divided]) -> dict[str, torch.Tensor]:
    """What a training reads: grey values and labels of each task, for training and for the gates."""
    found = {}
    for task, own in divided.items():
        for part, indices in ((TRAINING, own.training), (HELD_OUT, own.items[GATED_SPLIT])):
            found[f"{task}.{part}.images"] = torch.from_numpy(own.pictures.images[indices])
            found[f"{task}.{part}.labels"] = torch.from_numpy(own.pictures.labels[indices])
    return found
