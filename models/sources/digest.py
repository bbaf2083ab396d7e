"""The content of a tensor group as a digest: what names a layer wherever it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from models.sources.architecture import Architecture


def group_digest(architecture: Architecture, names: Iterable[str], tensor: Callable[[str], Tensor], group: str) -> str:
    """Hex sha256 over names inside the block, dtypes, shapes and bytes of a group's tensors.

    Args:
        architecture: of the model.
        names: of all its tensors, sorted.
        tensor: the tensor of a name, on the CPU.
        group: ``layer.3`` or ``ends``.
    """
    digest = hashlib.sha256()
    for name in names:
        if architecture.group(name) == group:
            content = tensor(name).contiguous()
            digest.update(f"{architecture.split(name)[1]} {content.dtype} {list(content.shape)}\n".encode())
            digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()
