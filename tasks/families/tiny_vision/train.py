"""Trains one model of `tiny-vision` in a process of its own, with one thread: see ``tasks.families.training``.

All models share one classifier, which holds the classes of all tasks. The base learns it with all tasks at once; the
experts leave it as it is and tune the encoder alone, as fine-tunes of CLIP do with their texts. So a merge of them is a
whole classifier, and the head of a task is the rows of its classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from models.sources.heads import SEPARATOR
from tasks.families.tiny_vision.pictures import SIZE
from tasks.families.training import Training, base_plan, descend, distance, do, draw_path, expert_plan
from tasks.schema.params import ZooParams

TRAINING, HELD_OUT = "training", "held_out"

PATCH = 4
"""Pixels of a side of a patch."""

BATCH = 64
"""Images of a step."""

SHARES = {"digits": 0.04, "letters": 0.9, "photos": 0.06}
"""Of the base's images by task: what is learnt fast is shown seldom, so that each expert has something to add."""

TURNED = ("photos",)
"""Tasks whose images may be turned and mirrored; those of the others are moved by a pixel."""

EMBEDDING_DEVIATION, PATCH_DEVIATION, MATRIX_DEVIATION = 0.3, 0.2, 0.05
"""Initial standard deviations. With 0.02 throughout, the base learns nothing in as many steps."""


@dataclass(frozen=True)
class Job(Training):
    """What to train, and on what."""

    data: str
    """File with ``TASK.training.images``, ``TASK.training.labels``, and the same of what is held out."""
    classes: dict[str, list[str]]
    """Names of each task's classes."""


def train(job: Job) -> dict[str, Any]:
    """Train the model, score it and write it.

    Returns:
        ``scores``: accuracy by task; ``distance``: ‖Θ − Θ₀‖ / ‖Θ₀‖ of an expert.
    """
    params = ZooParams.model_validate(job.params)
    data = load_file(job.data)
    rows = rows_of(job.classes)
    generator = np.random.default_rng([job.seed, 1 + list(rows).index(job.task) if job.task else 0])
    if job.task is None or job.base is None:
        model = new_model(params, job.classes, job.seed)
        inner = {name for name, one in model.named_parameters() if one.ndim == 2 and "classifier" not in name}
        shares, plan = SHARES, base_plan(model, inner, params, job.steps)
    else:
        model = ViTForImageClassification.from_pretrained(job.base, dtype=torch.float32)
        shares = {task: 1.0 if task == job.task else params.replay for task in rows}
        model.classifier.requires_grad_(False)
        plan = expert_plan(model, params, job.steps)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def loss(strength: float) -> Tensor:
        images, labels, tasks = batch_of(data, shares, generator)
        path = draw_path(params, strength, generator)
        return task_loss(logits_of(model, images, path), labels, tasks, rows)

    descend(model, plan, job.steps, loss)
    result: dict[str, Any] = {"scores": accuracies(model, data, rows)}
    if job.task is not None:
        result["distance"] = distance(list(model.parameters()), before)
    model.requires_grad_(True)
    model.save_pretrained(Path(job.out))
    return result


def rows_of(classes: Mapping[str, Sequence[str]]) -> dict[str, slice]:
    """The rows of the classifier that are each task's, one task behind the other."""
    ends = np.cumsum([0, *map(len, classes.values())]).tolist()
    return {task: slice(*span) for task, span in zip(classes, pairwise(ends), strict=True)}


def new_model(params: ZooParams, classes: Mapping[str, Sequence[str]], seed: int) -> ViTForImageClassification:
    """A ViT with normally distributed weights, whose classes are called ``TASK/CLASS``."""
    labels = [f"{task}{SEPARATOR}{name}" for task, names in classes.items() for name in names]
    config = ViTConfig(
        hidden_size=params.width,
        intermediate_size=params.feed_forward,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)),
        label2id={name: row for row, name in enumerate(labels)},
        dtype="float32",
    )
    model = ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "cls_token" in name or "position" in name:
            nn.init.normal_(parameter, std=EMBEDDING_DEVIATION, generator=generator)
        elif parameter.ndim > 1:
            deviation = PATCH_DEVIATION if parameter.ndim == 4 else MATRIX_DEVIATION
            nn.init.normal_(parameter, std=deviation, generator=generator)
    return model


def batch_of(
    data: Mapping[str, Tensor], shares: Mapping[str, float], generator: np.random.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """Images ``(B, 3, H, W)`` drawn by the tasks' shares and varied a little, their labels ``(B,)`` and tasks."""
    weights = np.array(list(shares.values())) / sum(shares.values())
    tasks = [list(shares)[index] for index in generator.choice(len(shares), BATCH, p=weights)]
    chosen = [int(generator.integers(len(data[f"{task}.{TRAINING}.labels"]))) for task in tasks]
    images = [
        varied(data[f"{task}.{TRAINING}.images"][index], task, generator)
        for task, index in zip(tasks, chosen, strict=True)
    ]
    labels = [data[f"{task}.{TRAINING}.labels"][index] for task, index in zip(tasks, chosen, strict=True)]
    return pixels(torch.stack(images)), torch.stack(labels), tasks


def varied(image: Tensor, task: str, generator: np.random.Generator) -> Tensor:
    """An image ``(H, W)`` turned and mirrored, or moved by a pixel."""
    turns, flip, down, right = (int(generator.integers(low, high)) for low, high in ((0, 4), (0, 2), (-1, 2), (-1, 2)))
    if task in TURNED:
        turned = torch.rot90(image, turns)
        return turned.flip(0) if flip else turned
    return torch.roll(image, (down, right), (0, 1))


def pixels(grey: Tensor) -> Tensor:
    """What the family's image processor makes of grey values ``(B, H, W)``: ``(B, 3, H, W)`` in [−1, 1]."""
    return (grey.float() / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)


def logits_of(model: ViTForImageClassification, images: Tensor, path: Sequence[int]) -> Tensor:
    """Logits ``(B, K)`` of all classes, from a model whose layers are passed in the order of ``path``."""
    states = model.vit.embeddings(images)
    for layer in path:
        states = model.vit.layers[layer](states)
    logits: Tensor = model.classifier(model.vit.layernorm(states)[:, 0])
    return logits


def task_loss(logits: Tensor, labels: Tensor, tasks: Sequence[str], rows: Mapping[str, slice]) -> Tensor:
    """Mean cross entropy of each image among the classes of its own task."""
    losses = []
    for task, own in rows.items():
        mine = torch.tensor([one == task for one in tasks])
        losses.append(cross_entropy(logits[mine, own], labels[mine], reduction="sum"))
    return torch.stack(losses).sum() / len(labels)


@torch.inference_mode()
def accuracies(
    model: ViTForImageClassification, data: Mapping[str, Tensor], rows: Mapping[str, slice]
) -> dict[str, float]:
    """Share of the held-out images of each task whose likeliest class is the right one."""
    path = range(model.config.num_hidden_layers)
    found = {}
    for task, own in rows.items():
        logits = logits_of(model, pixels(data[f"{task}.{HELD_OUT}.images"]), path)[:, own]
        found[task] = float((logits.argmax(-1) == data[f"{task}.{HELD_OUT}.labels"]).float().mean())
    return found


if __name__ == "__main__":
    do(Job, train)
