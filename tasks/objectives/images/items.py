"""The images of a task: where they lie, which of them belong to a split, and how a model sees them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.errors import BadInput, one_line
from models.sources import hub
from models.sources.loadable import OFFLINE
from tasks.objectives.items import SPLITS, chosen
from tasks.project.references import expand
from tasks.project.workspace import Workspace
from tasks.schema.images import Images

PROCESSOR = "preprocessor_config.json"

TRAINING = "train"
"""In place of a split: images on which models may have been trained."""

CANDIDATES = 4096
"""Images of a set of any size among which unused ones are looked for."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one task and split, as they are stored."""

    ids: tuple[str, ...]
    """Digest of each image's content."""
    encoded: tuple[bytes, ...]
    """Files of the images."""
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def pixels(self, processor: Any, label: str) -> Tensor:
        """What an encoder reads, ``(N, C, H, W)`` in single precision, by the processor of :func:`open_processor`.

        Raises:
            BadInput: an image can't be decoded.
        """
        found = []
        for name, data in zip(self.ids, self.encoded, strict=True):
            try:
                with Image.open(io.BytesIO(data)) as opened:
                    picture = opened.convert("RGB")
            except (OSError, UnidentifiedImageError, ValueError) as error:
                raise BadInput(f"{label}: image {name}: can't be decoded ({error}); take it out") from None
            found.append(processor(picture, return_tensors="pt").pixel_values)
        return torch.cat(found)


def read_images(workspace: Workspace, images: Images, split: str, count: int, label: str) -> ImageSet:
    """The first ``count`` images of a split.

    A set whose splits have our names is taken as it is. Of any other the images of one split are divided by the hash of
    their content, by the profile's shares, and taken in the order of their hashes: any first n are a fair sample.

    Raises:
        BadInput: the set is missing, lacks a column, or has too few images.
    """
    rows, ours = _rows(workspace, images, split, label)
    classes = _classes(rows, images, label)
    rows, contents = _digested(rows, images)
    order = range(len(rows)) if ours else chosen(contents, split, workspace.profile.splits)
    if len(order) < count:
        raise BadInput(f"{label}: items.{split}: {count}, but {images.data} has {len(order)} there; ask for fewer")
    taken = rows.select(list(order[:count]))
    labels = [int(one) for one in taken[images.label]]
    if labels and not 0 <= min(labels) <= max(labels) < len(classes):
        raise BadInput(
            f"{label}: {images.data}: label {max(labels)}: there are {len(classes)} classes; mend images.classes"
        )
    names = tuple(contents[index] for index in order[:count])
    return ImageSet(names, tuple(map(_bytes, taken[images.image])), tuple(labels), classes)


def unused_images(workspace: Workspace, images: Images, used: Set[str], count: int, label: str) -> ImageSet:
    """So many images that are items of no split, or as many as there are.

    Those for training come first, then those of the search split's share; each in the order of their hashes, and once.

    Args:
        workspace: the profile's.
        images: what the profile says of them.
        used: digests of the items of all splits.
        count: of images.
        label: how errors name the place.

    Raises:
        BadInput: the set is missing or lacks a column.
    """
    found: dict[str, tuple[bytes, int]] = {}
    classes: tuple[str, ...] = ()
    for split in (TRAINING, SPLITS[0]):
        rows, ours = _rows(workspace, images, split, label)
        if rows is None or len(found) >= count:
            continue
        classes = _classes(rows, images, label)
        if split == TRAINING:  # labels lie together in many sets
            rows = rows.select(range(0, len(rows), max(1, len(rows) // CANDIDATES)))
        rows, contents = _digested(rows, images)
        order = range(len(rows)) if ours else chosen(contents, split, workspace.profile.splits)
        known = {*used, *found}
        free = sorted({contents[index]: index for index in order if contents[index] not in known}.items())
        taken = rows.select([index for _, index in free[: count - len(found)]])
        new = zip(free, taken[images.image], taken[images.label], strict=False)
        found |= {content: (_bytes(one), int(number)) for (content, _), one, number in new}
    return ImageSet(
        tuple(found), tuple(one for one, _ in found.values()), tuple(one for _, one in found.values()), classes
    )


def _digested(rows: Any, images: Images) -> tuple[Any, list[str]]:
    """The rows with their images as they are stored, and the digest of each image."""
    from datasets import Image as Encoded

    rows = rows.cast_column(images.image, Encoded(decode=False))
    return rows, [hashlib.sha256(_bytes(one)).hexdigest() for one in rows[images.image]]


def read_classes(workspace: Workspace, images: Images, label: str) -> tuple[str, ...]:
    """Names of the classes, in the order of the labels; no image is read.

    Raises:
        BadInput: the set is missing, lacks a column, or doesn't name its classes.
    """
    return images.classes or _classes(_rows(workspace, images, SPLITS[0], label)[0], images, label)


def _classes(rows: Any, images: Images, label: str) -> tuple[str, ...]:
    for column in (images.image, images.label):
        if column not in rows.column_names:
            raise BadInput(
                f"{label}: {images.data}: has no column {column!r}; there are {', '.join(rows.column_names)}"
            )
    classes = images.classes or tuple(getattr(rows.features[images.label], "names", None) or ())
    if not classes:
        raise BadInput(f"{label}: {images.data}: doesn't name its classes; list them under images.classes")
    return classes


def _bytes(stored: dict[str, Any]) -> bytes:
    """An image's file, wherever the data set keeps it."""
    data: bytes | None = stored["bytes"]
    return data if data is not None else Path(stored["path"]).read_bytes()


def _rows(workspace: Workspace, images: Images, split: str, label: str) -> tuple[Any, bool]:
    """The images among which the split's are, and whether they all are its; None where a set has none for training."""
    from datasets import Dataset, DownloadConfig, get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if workspace.profile.made and "/" not in images.data:
        path = workspace.items / f"{images.data}.{split}.parquet"
        if not path.is_file():
            raise BadInput(f"{label}: images: {images.data}: no file {path.name} in tasks/; run stage zoo")
        return Dataset.from_parquet(str(path), cache_dir=str(workspace.state / "datasets")), True
    source = expand(images.data)
    known = hub.REFERENCE.fullmatch(source)
    if known:
        where: dict[str, Any] = {"path": known["repo"], "revision": known["revision"]}
    elif (workspace.root / source).is_dir():
        where = {"path": str(workspace.root / source)}
    else:
        raise BadInput(f"{label}: images: {images.data}: no such folder; name one, or hub:ORG/NAME@REVISION")
    where |= {"cache_dir": str(workspace.state / "datasets")} if not known else {}
    try:
        settings = {"download_config": DownloadConfig(max_retries=2)} if known else {}
        names = get_dataset_split_names(where["path"], images.config, revision=where.get("revision"))
        ours = set(SPLITS) <= set(names)
        if split == TRAINING:
            ours = TRAINING in names and images.split != TRAINING
            if not ours:
                return None, False
        return load_dataset(name=images.config, split=split if ours else images.split, **where, **settings), ours
    except (DatasetNotFoundError, OSError, ValueError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        raise BadInput(f"{label}: images: {images.data}: can't be read ({reason})") from None


@cache
def open_processor(folder: Path) -> Any:
    """What makes a model's input of an image; always by pillow, whatever else is installed.

    Raises:
        BadInput: the model doesn't say how it wants its images.
    """
    from transformers import AutoImageProcessor

    if not (folder / PROCESSOR).is_file():
        raise BadInput(f"{folder}: {PROCESSOR}: missing; copy the base model's")
    try:
        return AutoImageProcessor.from_pretrained(str(folder), backend="pil", **OFFLINE)
    except Exception as error:  # noqa: BLE001 (the folder is anyone's)
        raise BadInput(f"{folder}: {PROCESSOR}: does not load ({one_line(error, 200)})") from None


def write_images(path: Path, pictures: Sequence[Image.Image], labels: Sequence[int], classes: Sequence[str]) -> None:
    """Write images as the parquet file of a data set, whose bytes depend on nothing but the arguments."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Encoded

    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, format="PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    features = Features({"image": Encoded(), "label": ClassLabel(names=list(classes))})
    Dataset.from_dict({"image": encoded, "label": list(labels)}, features=features).to_parquet(str(path))
