"""Lines of a text file of JSON lines, gzipped or not: none is read whole that is longer than any row should be."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from models.errors import BadInput
from models.files import reading, require_regular

MOST_MEGABYTES = 4
"""Longest line, in MiB: about a million tokens of text."""


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, one at a time.

    Raises:
        BadInput: the file can't be read, or a line is longer than ``MOST_MEGABYTES`` or no UTF-8.
    """
    most, number = MOST_MEGABYTES * 2**20, 0
    with reading(str(path), "mend it", "not readable as JSON lines"):
        require_regular(path, str(path))
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(most + 1):
                number += 1
                if len(line) > most:
                    raise BadInput(f"{path}: line {number}: longer than {MOST_MEGABYTES} MiB; write one item a line")
                with reading(f"{path}: line {number}", "store it as UTF-8", "no UTF-8"):
                    text = line.decode("utf-8")
                yield number, text
