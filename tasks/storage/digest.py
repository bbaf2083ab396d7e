"""The digest of a file, as a whole and as S3 says it of a file that came in parts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 32 * 2**20
"""Files of this size and more go up in parts of it: below 10,000 parts up to 312 GiB."""
READ_BYTES = 2**20


@dataclass(frozen=True)
class Digest:
    """What a file is, as far as S3 can say it."""

    size: int
    whole: bytes
    """sha256 of the file."""
    parts: bytes
    """sha256 of the sha256 of its parts, which is what S3 says of a file that came in parts."""
    count: int

    @classmethod
    def of(cls, path: Path, on_bytes: Callable[[int], None] | None = None) -> Digest:
        """Read a file once."""
        size, whole, parts, part = 0, hashlib.sha256(), list[bytes](), hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                if size and size % PART_BYTES == 0:
                    parts.append(part.digest())
                    part = hashlib.sha256()
                size += len(block)
                whole.update(block)
                part.update(block)
                if on_bytes is not None:
                    on_bytes(len(block))
        parts.append(part.digest())
        return cls(size, whole.digest(), hashlib.sha256(b"".join(parts)).digest(), len(parts))

    @property
    def as_s3_says(self) -> set[str]:
        """What ``ChecksumSHA256`` may be."""
        return {base64.b64encode(self.whole).decode(), f"{base64.b64encode(self.parts).decode()}-{self.count}"}
