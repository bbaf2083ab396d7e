"""Files of tensors: safetensors alone, each looked at before it is mapped into memory."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import BadInput, one_line
from models.files import inside

LIST_BYTES = 2**21
"""Longest list of tensors at the head of a file that is read: room for 20,000, where large models have 1,500."""

FLOATING = ("F64", "F32", "F16", "BF16")


def open_tensors(folder: Path, name: str) -> Any:
    """The memory map of a file of a folder.

    Raises:
        BadInput: it is missing, leads out of the folder, or is no whole safetensors file.
    """
    path = inside(folder, name)
    try:
        with path.open("rb") as file:
            start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if LIST_BYTES < length <= path.stat().st_size:
            raise BadInput(f"{folder}: {name}: its list of tensors has {length} bytes, more than {LIST_BYTES}")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = f"truncated or no safetensors file ({one_line(error, 200)})"
        raise BadInput(f"{folder}: {name}: {reason}; fetch or copy it again") from None


def require_floating(opened: Any, names: list[str], label: str) -> None:
    """Refuse tensors that can't be merged.

    Args:
        opened: as :func:`open_tensors` gives it.
        names: those of the file that are looked at.
        label: what messages call the file.

    Raises:
        BadInput: one is quantised, or of no elements.
    """
    for name in names:
        part = opened.get_slice(name)
        if (dtype := part.get_dtype()) not in FLOATING:
            raise BadInput(f"{label}: {name}: stored as {dtype}; merging needs a checkpoint that is not quantised")
        if 0 in part.get_shape():
            raise BadInput(f"{label}: {name}: is empty ({part.get_shape()}); fetch or copy it again")


def require_finite(tensor: Tensor, label: str) -> Tensor:
    """The tensor itself.

    Raises:
        BadInput: it holds NaN or infinity.
    """
    ends = torch.stack(torch.aminmax(tensor))  # NaN spreads into both, and nothing of the tensor's size is made
    if not bool(torch.isfinite(ends).all()):
        raise BadInput(f"{label}: holds NaN or Inf; this checkpoint is broken, take another one")
    return tensor
