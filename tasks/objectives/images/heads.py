"""The head of each image task: a classifier's own, or the texts that name the classes, made by CLIP's text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from models.errors import BadInput, one_line
from models.sources.checkpoint import Model
from models.sources.heads import HEADS, Head, Heads, TaskHead, heads_bytes, own_head, read_head
from models.sources.loadable import OFFLINE, load_tokenizer
from models.sources.lora import open_model
from tasks.objectives.images.items import read_classes
from tasks.objectives.task_files import task_label
from tasks.project.family import load_family
from tasks.project.references import expand, finder, models_of
from tasks.project.workspace import Workspace
from tasks.schema.profile import Objective

TEXTS = 256
"""Texts that are embedded together."""


def models_named(workspace: Workspace) -> dict[str, str]:
    """References of base and experts, whether they are given or made."""
    if not workspace.profile.made:
        return models_of(workspace.profile)
    family = load_family(workspace)
    return {"base": family.base, **family.experts}


def head_of(workspace: Workspace, objective: Objective, classes: tuple[str, ...]) -> Head:
    """The head with which an objective of images is scored.

    It is that of the file under ``images.head``; else of the expert, where experts are classifiers; else made of texts.

    Raises:
        BadInput: there is none, or it has other classes.
    """
    label = task_label(workspace, objective.name)
    assert objective.images is not None  # noqa: S101 (who calls has looked)
    if objective.images.head is not None:
        path = workspace.root / expand(objective.images.head)
        return read_head(path, objective.name, len(classes), label)
    references = models_named(workspace)
    base = open_model(references["base"], finder(workspace))
    if base.architecture.classes == "head":
        name = objective.expert or objective.name
        if name not in references:
            raise BadInput(f"{label}: no expert is called {name}; name one under expert, or a file under images.head")
        return own_head(open_model(references[name], finder(workspace)), objective.name, classes, f"expert {name}")
    if base.architecture.classes != "texts":
        raise BadInput(f"{label}: images: the base is a {base.config['architectures'][0]}, which reads no images")
    made = workspace.items / HEADS
    if made.is_file():
        return read_head(made, objective.name, len(classes), label)
    return TextTower(base).head(classes, objective.images.templates)


def classes_of(workspace: Workspace, objective: Objective) -> tuple[str, ...]:
    """Names of the classes of an objective of images, in the order of the items' labels.

    Raises:
        BadInput: the profile doesn't name them, and the data set is missing or doesn't either.
    """
    assert objective.images is not None  # noqa: S101 (who calls has looked)
    return read_classes(workspace, objective.images, task_label(workspace, objective.name))


def family_heads(workspace: Workspace) -> Heads:
    """The heads of all objectives of images.

    Raises:
        BadInput: one can't be had.
    """
    found = {}
    for one in workspace.profile.objectives:
        if one.images:
            classes = classes_of(workspace, one)
            found[one.name] = TaskHead(head_of(workspace, one, classes), classes)
    return Heads(found, open_model(models_named(workspace)["base"], finder(workspace)))


def write_text_heads(workspace: Workspace, folder: Path) -> bool:
    """Make the file of the heads that are named by texts, where the base has a text tower; gives whether there are any.

    Raises:
        BadInput: a data set is missing, or the base has no text tower.
    """
    wanted = [one for one in workspace.profile.objectives if one.images and not one.images.head]
    if not wanted or workspace.profile.made:
        return False
    base = open_model(str(workspace.profile.base), finder(workspace))
    if base.architecture.classes != "texts":
        return False
    tower, heads = TextTower(base), {}
    for one in wanted:
        assert one.images is not None  # noqa: S101 (chosen above)
        heads[one.name] = tower.head(classes_of(workspace, one), one.images.templates)
    (folder / HEADS).write_bytes(heads_bytes(heads))
    return True


class TextTower:
    """CLIP's text tower, which turns names of classes into a head (Radford et al. 2021, section 3.1)."""

    def __init__(self, base: Model) -> None:
        """Load it from the base's folder.

        Raises:
            BadInput: there is none, or its tokenizer is missing.
        """
        from transformers import AutoConfig, CLIPModel

        folder = base.tokenizer
        try:
            kind = AutoConfig.from_pretrained(str(folder), **OFFLINE).model_type
            if kind != "clip":
                raise ValueError(f"it is a {kind} alone")
            whole = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **OFFLINE)
            self.model = whole.eval()  # the module's inference mode
            self.scale = float(self.model.logit_scale.detach().double().exp())
            self.tokenizer: Any = load_tokenizer(folder, base.label)
        except Exception as error:  # noqa: BLE001 (the folder is anyone's)
            reason = one_line(error, 200)
            raise BadInput(
                f"{base.label}: its text tower, which names the classes, can't be loaded ({reason}); take a whole CLIP"
                " model as base, or name a file of heads under images.head"
            ) from None

    def head(self, classes: Sequence[str], templates: Sequence[str]) -> Head:
        """The head of some classes: of each the normalised mean of the normalised texts of all templates.

        Templates have ``{}`` for the name of the class, whose underscores become spaces.
        """
        texts = [template.replace("{}", name.replace("_", " ")) for name in classes for template in templates]
        with torch.inference_mode():
            rows = [self._embedded(texts[first : first + TEXTS]) for first in range(0, len(texts), TEXTS)]
        found = torch.cat(rows).view(len(classes), len(templates), -1)
        return Head(normalize(found.mean(dim=1), dim=-1).clone(), None, self.scale)

    def _embedded(self, texts: list[str]) -> torch.Tensor:
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)
