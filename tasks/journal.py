"""The journal: every item score that was ever computed, so that nothing is computed twice and a kill loses one chunk.

Segments are numbered, immutable JSON-lines files in the state folder. A chunk of scores is written beside its place and
linked to it in one step, so a segment is whole or absent. The key of a score says everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import BadInput

FORMAT = 1
"""Version of the files; another one is refused."""


@dataclass(frozen=True)
class Entry:
    """Scores of one candidate on the items ``[start, stop)`` of every objective, or why there are none."""

    key: str
    start: int
    stop: int
    scores: Mapping[str, tuple[float, ...]]
    failed: str | None = None

    def to_json(self) -> str:
        """One line of a segment."""
        record = {"key": self.key, "start": self.start, "stop": self.stop, "scores": self.scores, "failed": self.failed}
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """Inverse of :meth:`to_json`."""
        data = json.loads(line)
        scores = {name: tuple(values) for name, values in data["scores"].items()}
        return cls(data["key"], data["start"], data["stop"], scores, data["failed"])


def key_of(**parts: object) -> str:
    """Digest of everything that a score depends on, beside the items' range."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Journal:
    """All segments of a folder, in memory, and the only writer to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._entries: dict[str, list[Entry]] = {}
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        segments = sorted(folder.glob("*.jsonl"))
        self._next = int(segments[-1].stem) + 1 if segments else 1
        for segment in segments:
            header, *lines = segment.read_text(encoding="utf-8").splitlines()
            if json.loads(header).get("format") != FORMAT:
                raise BadInput(
                    f"{segment.name}: a journal of another version; move {folder.name}/ away or use `hm3 run --fresh`"
                )
            self._take(Entry.from_json(line) for line in lines)

    def __len__(self) -> int:
        return self._count

    def keys(self) -> set[str]:
        """All that have entries."""
        return set(self._entries)

    def find(self, key: str) -> list[Entry]:
        """Entries of a key, in order of their items."""
        return self._entries.get(key, [])

    def append(self, entries: Iterable[Entry]) -> None:
        """Make a chunk durable as one new segment."""
        entries = list(entries)
        lines = [json.dumps({"format": FORMAT}), *(entry.to_json() for entry in entries)]
        beside = self.folder / f".{os.getpid()}.tmp"
        with beside.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link refuses to replace a segment that another process wrote meanwhile; a rename would not.
        os.link(beside, self.folder / f"{self._next:08d}.jsonl")
        beside.unlink()
        self._next += 1
        self._take(entries)

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            known = self._entries.setdefault(entry.key, [])
            known.append(entry)
            known.sort(key=lambda one: one.start)
            self._count += 1
