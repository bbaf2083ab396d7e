"""Safetensors files that are written tensor by tensor, so that none of them is held in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

HEADER_BYTES = 2**16
"""Room at the head of a file for the list of its tensors, which is known when the last is written.

The format lets spaces follow the list. A file whose list would grow longer is closed, and the next begun.
"""

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
START = '{"__metadata__":{"format":"pt"}'


class Shard:
    """One file that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self._list = START
        self.bytes = 0
        self._file = path.open("wb")
        self._file.write(b" " * HEADER_BYTES)

    def add(self, name: str, tensor: Tensor, limit: int) -> bool:
        """Write a tensor, unless the file is full: then False. The first is always taken.

        A file is full when it would hold more than ``limit`` bytes of tensors, when its list would leave the header, or
        when the tensor wouldn't start at a multiple of its item size, which readers rely on.
        """
        end = self.bytes + tensor.nbytes
        described = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [self.bytes, end]}
        entry = f",{json.dumps(name)}:{json.dumps(described, separators=(',', ':'))}"
        full = end > limit or self.bytes % tensor.itemsize or len(self._list) + len(entry) + 9 > HEADER_BYTES
        if self.names and full:
            return False
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._file.flush()
        self._list += entry
        self.bytes = end
        self.names.append(name)
        return True

    def close(self) -> None:
        """Write the list of tensors; only now is the file one of safetensors."""
        with self._file as file:
            file.seek(0)
            file.write((HEADER_BYTES - 8).to_bytes(8, "little"))
            file.write(f"{self._list}}}".ljust(HEADER_BYTES - 8).encode("ascii"))


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> tuple[list[Shard], str]:
    """Write tensors into the files ``0.part``, ``1.part``, … of a folder.

    Args:
        tensors: names and floating-point tensors in the order in which they are stored.
        shard_bytes: a file holds at most so many bytes of tensors, or one tensor.

    Returns:
        The files, and the name of the widest dtype that was written.
    """
    shards = [Shard(folder / "0.part")]
    dtype: torch.dtype | None = None
    for name, tensor in tensors:
        if not shards[-1].add(name, tensor, shard_bytes):
            shards[-1].close()
            shards.append(Shard(folder / f"{len(shards)}.part"))
            shards[-1].add(name, tensor, shard_bytes)
        dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
        del tensor  # or it would lie in memory while the next is made
    shards[-1].close()
    return shards, str(dtype).removeprefix("torch.")
