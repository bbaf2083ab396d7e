"""Heads of image encoders: each task has its own, so none of them is part of what is merged.

A fine-tune of an image classifier brings the head of its own classes, and one of CLIP's vision tower none at all. Among
models whose heads differ, each is presented with the base's; tasks are scored with theirs (``models.paths.vision``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import linear

from models.errors import BadInput
from models.sources.architecture import Architecture, architecture_of
from models.sources.checkpoint import Source
from models.sources.tensors import open_tensors, require_finite

LABELS = ("num_labels", "id2label", "label2id")
"""Keys of a config that describe the head."""

SEPARATOR = "/"
"""Between task and class in the label of a head that holds the classes of several tasks."""

PARTS = ("weight", "bias", "scale")
"""What a file of heads holds of each: ``TASK.weight``, ``TASK.bias``, ``TASK.scale``."""


HEADS, CLASSES = "heads.safetensors", "heads.json"
"""Files beside a checkpoint: the heads of its tasks, and the names of their classes."""


@dataclass(frozen=True)
class Head:
    """What makes logits of an image's features: ``scale · (features · weightᵀ) + bias``."""

    weight: Tensor
    """A row a class, ``(K, D)``, single precision."""
    bias: Tensor | None = None
    """``(K,)``."""
    scale: float = 1.0

    def to(self, device: torch.device) -> Head:
        """The same head on a device."""
        return Head(self.weight.to(device), None if self.bias is None else self.bias.to(device), self.scale)

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(B, K)`` of features ``(B, D)``, in single precision at least."""
        wide = features if features.dtype == torch.float64 else features.float()
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        return self.scale * linear(wide, self.weight.to(wide.dtype)) + (0 if bias is None else bias)


class HeadSource:
    """A model with another one's head. Implements :class:`models.sources.checkpoint.Source`."""

    def __init__(self, source: Source, head: Source, label: str) -> None:
        """Nothing is read; ``head`` is the model whose head this one is given, if that has one."""
        self.source = source
        self.head = head
        self.label = label
        kept = {key: value for key, value in source.config.items() if key not in LABELS}
        self.config: dict[str, Any] = kept | {key: head.config[key] for key in LABELS if key in head.config}
        self._architecture = architecture_of(self.config, label)

    def names(self) -> list[str]:
        """See ``Source``."""
        own = set(self.source.names()) - set(head_shapes(self.source, self._architecture))
        return sorted(own | set(head_shapes(self.head, self._architecture)))

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        return (self.head if is_head(name, self._architecture) else self.source).tensor(name)

    def digest(self, group: str) -> str:
        """See ``Source``."""
        digests = [self.source.digest(group)]
        if any(self._architecture.group(name) == group for name in head_shapes(self.head, self._architecture)):
            digests.append(self.head.digest(group))
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def is_head(name: str, architecture: Architecture) -> bool:
    """Whether a tensor belongs to the head."""
    return bool(architecture.head) and name.startswith(str(architecture.head).removesuffix("weight"))


def head_shapes(source: Source, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Tensors of a model's head, and their shapes; none where it has no head."""
    return {name: tuple(source.tensor(name).shape) for name in source.names() if is_head(name, architecture)}


def share_heads(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Image encoders, the base first, with its head; each as it is where it has that already, or reads no images."""
    base = next(iter(sources.values()))
    architecture = architecture_of(base.config)
    if not architecture.classes:
        return dict(sources)
    wanted = head_shapes(base, architecture)

    def differs(source: Source) -> bool:
        own = (source.config.get("architectures") or ["none"])[0]
        return own == base.config["architectures"][0] and head_shapes(source, architecture) != wanted

    return {key: HeadSource(source, base, key) if differs(source) else source for key, source in sources.items()}


def own_head(source: Source, task: str, classes: tuple[str, ...], label: str) -> Head:
    """A classifier's own head for a task: the rows that its labels name ``CLASS`` or ``TASK/CLASS``.

    Where no label has such a name, and there are as many as classes, they are taken in their order.

    Args:
        classes: names of its classes, in the order of the items' labels.
        label: the expert's name in messages.

    Raises:
        BadInput: it has no head, or a class has no row in it.
    """
    architecture = architecture_of(source.config, label)
    held = sorted(head_shapes(source, architecture))
    if not held or architecture.classes != "head":
        raise BadInput(f"{label}: has no head that names classes; name a file of heads under objectives.{task}.images")
    names = {str(name): int(row) for row, name in (source.config.get("id2label") or {}).items()}
    rows = [names.get(f"{task}{SEPARATOR}{one}", names.get(one)) for one in classes]
    count = source.tensor(str(architecture.head)).shape[0]
    if all(row is None for row in rows) and count == len(classes):
        rows = list(range(count))
    if None in rows:
        missing = classes[rows.index(None)]
        raise BadInput(f"{label}: config.json: id2label: has no class {missing!r} of {task}; it has {count} classes")
    tensors = {name.rpartition(".")[2]: source.tensor(name)[torch.tensor(rows)].float() for name in held}
    return Head(tensors["weight"], tensors.get("bias"))


@dataclass(frozen=True)
class TaskHead:
    """The head of one task, and what its rows are called."""

    head: Head
    classes: tuple[str, ...]


class JoinedHeads:
    """The heads of all tasks, one behind the other, as one classifier: a :class:`models.sources.checkpoint.Source`."""

    def __init__(self, config: dict[str, Any], heads: Mapping[str, TaskHead]) -> None:
        """The config is that of the model that is given the classifier, whose rows are called ``TASK/CLASS``."""
        labels = [f"{task}{SEPARATOR}{name}" for task, one in heads.items() for name in one.classes]
        rows = {"id2label": {str(row): name for row, name in enumerate(labels)}}
        kept = {key: value for key, value in config.items() if key not in LABELS}
        self.config: dict[str, Any] = kept | rows | {"label2id": {name: row for row, name in enumerate(labels)}}
        name = str(architecture_of(config).head)
        biases = [torch.zeros(len(one.classes)) if one.head.bias is None else one.head.bias for one in heads.values()]
        self._tensors = {
            name: torch.cat([one.head.scale * one.head.weight for one in heads.values()]),
            f"{name.removesuffix('weight')}bias": torch.cat(biases),
        }

    def names(self) -> list[str]:
        """See ``Source``."""
        return sorted(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        return self._tensors[name]

    def digest(self, group: str) -> str:
        """See ``Source``."""
        digest = hashlib.sha256(group.encode())
        for name in self.names():
            digest.update(self._tensors[name].contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Heads:
    """The heads of a family: what an encoder is given when it leaves the pool."""

    tasks: Mapping[str, TaskHead]
    base: Source
    """The base, whose projection towards texts all models share where classes are texts."""

    def on(self, source: Source) -> Source:
        """An encoder with the classifier of all tasks, or with the base's projection."""
        if architecture_of(source.config).classes == "head":
            return HeadSource(source, JoinedHeads(source.config, self.tasks), "heads")
        return share_heads({"base": self.base, "encoder": source})["encoder"]

    @property
    def files(self) -> dict[str, str | bytes]:
        """What lies beside its checkpoint, by name."""
        classes = {task: list(one.classes) for task, one in self.tasks.items()}
        described = json.dumps(classes, indent=1, ensure_ascii=False) + "\n"
        return {HEADS: heads_bytes({task: one.head for task, one in self.tasks.items()}), CLASSES: described}


def heads_bytes(heads: Mapping[str, Head]) -> bytes:
    """The heads of tasks as a safetensors file."""
    tensors = {}
    for task, head in heads.items():
        tensors[f"{task}.weight"] = head.weight.contiguous()
        tensors[f"{task}.scale"] = torch.tensor(head.scale, dtype=torch.float64)
        if head.bias is not None:
            tensors[f"{task}.bias"] = head.bias.contiguous()
    data: bytes = save(tensors, {"format": "pt"})
    return data


def read_head(path: Path, task: str, classes: int, label: str) -> Head:
    """The head of a task from a file of heads, or from one that holds ``weight`` and perhaps ``bias`` alone.

    Raises:
        BadInput: the file is missing or damaged, or has no head of so many classes for the task.
    """
    if not path.is_file():
        raise BadInput(f"{label}: {path.name}: not readable: no such file")
    opened = open_tensors(path.parent, path.name)
    held = set(opened.keys())
    names = [next((one for one in (f"{task}.{part}", part) if one in held), None) for part in PARTS]
    weight, bias, scale = (None if name is None else opened.get_tensor(name) for name in names)
    if weight is None or weight.ndim != 2 or len(weight) != classes:
        raise BadInput(f"{label}: {path.name}: has no head of {classes} classes for {task}")
    if (bias is not None and bias.shape != (classes,)) or (scale is not None and scale.numel() != 1):
        raise BadInput(f"{label}: {path.name}: bias or scale of {task} doesn't fit its {classes} classes")
    for part in (weight, bias, scale):
        if part is not None:
            require_finite(part.float(), f"{label}: {path.name}: {task}")
    return Head(weight.float(), None if bias is None else bias.float(), 1.0 if scale is None else float(scale))
