"""The journal: every item score that was ever computed, so that nothing is computed twice and a kill loses one chunk.

Segments are numbered, immutable JSON-lines files in the state folder. A chunk of scores is written beside its place and
linked to it in one step, so a segment is whole or absent; its name and its first line carry the digest of its content,
so that several writers never meet and damage is seen. The key of a score says everything that it depends on. Where the
state is in a bucket, segments go there as they come, and come from there before anything is scored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ConfigDict, FiniteFloat, NonNegativeInt, TypeAdapter

from models.errors import BadInput
from models.files import JSON_BYTES, inside, parse_object, reading, require_regular
from tasks.project.processes import is_alive, uncollected
from tasks.project.workspace import Workspace, remote_state
from tasks.scoring.remote_segments import SEGMENT, RemoteSegments

FORMAT = 1
"""Version of the files; another one is refused."""


@dataclass(frozen=True)
class Entry:
    """Scores of one candidate on the items ``[start, stop)`` of every objective, or why there are none."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    key: str
    start: NonNegativeInt
    stop: NonNegativeInt
    scores: dict[str, tuple[FiniteFloat, ...]]
    failed: str | None = None

    def to_json(self) -> str:
        """One line of a segment."""
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Entry:
        """Inverse of :meth:`to_json`; raises ValueError where the line is none of an entry."""
        found = _ENTRY.validate_json(line)
        most = max(map(len, found.scores.values()), default=0)  # there may be fewer items: the engine knows how many
        if not found.failed and not 0 < most <= found.stop - found.start:
            raise ValueError(f"{found.key}: no scores, or more than the items {found.start} to {found.stop}")
        return found

    def part(self, start: int, stop: int) -> Entry:
        """The same for some of its items."""
        if (start, stop) == (self.start, self.stop):
            return self
        low, high = start - self.start, stop - self.start
        scores = {name: tuple(values[low:high]) for name, values in self.scores.items()}
        return Entry(self.key, start, stop, scores, self.failed)


_ENTRY = TypeAdapter(Entry)
"""Reads and checks a line in a third of the time that :mod:`json` takes to read it."""


def key_of(**parts: object) -> str:
    """Digest of everything that a score depends on, beside the items' range."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Journal:
    """All segments of a folder, in memory, and a writer to it."""

    def __init__(self, folder: Path, remote: RemoteSegments | None = None):
        """Read what is there.

        Args:
            folder: of the segments; made if it is missing.
            remote: where they are kept beside this machine.

        Raises:
            BadInput: a segment is of another version, or damaged; or the bucket can't be used.
            Failed: the bucket does not answer.
        """
        self.folder = folder
        self._remote = remote
        self._entries: dict[str, list[Entry]] = {}
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".[0-9]*.tmp"):
            if left.name[1:-4].isdecimal() and not is_alive(int(left.name.split(".")[1])):
                left.unlink(missing_ok=True)
        if remote is not None:
            remote.fetch(folder)
        segments = sorted(path for path in folder.glob("*.jsonl") if SEGMENT.fullmatch(path.name))
        self._next = int(segments[-1].name[:8]) + 1 if segments else 1
        with uncollected():
            for segment in segments:
                self._take(read_segment(inside(folder, segment.name)))
        if remote is not None:
            remote.send(segments)

    def __len__(self) -> int:
        return self._count

    def keys(self) -> set[str]:
        """All that have entries."""
        return set(self._entries)

    def find(self, key: str) -> list[Entry]:
        """Entries of a key, in order of their items, of which none is in two of them."""
        return self._entries.get(key, [])

    def append(self, entries: Iterable[Entry]) -> None:
        """Make a chunk durable as one new segment.

        Raises:
            OSError: it can't be written; then nothing of it is there.
        """
        entries = list(entries)
        lines = "".join(f"{entry.to_json()}\n" for entry in entries)
        digest = hashlib.sha256(lines.encode()).hexdigest()
        segment = self.folder / f"{self._next:08d}-{digest[:8]}.jsonl"
        beside = self.folder / f".{os.getpid()}.tmp"
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(json.dumps({"format": FORMAT, "sha256": digest}) + "\n" + lines)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # the same scores, by another process
                os.link(beside, segment)
        finally:
            beside.unlink(missing_ok=True)
        self._next += 1
        self._take(entries)
        if self._remote is not None:
            self._remote.send([segment])

    def _take(self, entries: Iterable[Entry]) -> None:
        """Keep entries; of items that another process has scored too, the first ones."""
        for entry in entries:
            known = self._entries.setdefault(entry.key, [])
            if entry.failed:
                known.append(entry)
                self._count += 1
            for start, stop in missing([one for one in known if not one.failed], entry.start, entry.stop):
                if not entry.failed:
                    known.append(entry.part(start, stop))
                    self._count += 1
            known.sort(key=lambda one: one.start)


def read_segment(path: Path) -> Iterator[Entry]:
    """The entries of a segment.

    Raises:
        BadInput: it is of another version, or not as it was written.
    """
    remedy = "remove it, and its scores are computed again"
    with reading(path.name, remedy, "damaged"):
        require_regular(path, path.name, JSON_BYTES)
        header, _, lines = path.read_bytes().partition(b"\n")
        about = parse_object(header, path.name)
        if about.get("format") != FORMAT:
            raise BadInput(
                f"{path.name}: a journal of another version; move {path.parent.name}/ away or use `hm3 run --fresh`"
            )
        if about.get("sha256", digest := hashlib.sha256(lines).hexdigest()) != digest:
            raise ValueError("the checksum differs")
        return iter([Entry.from_json(line) for line in lines.splitlines()])


def missing(entries: Iterable[Entry], start: int, stop: int) -> list[tuple[int, int]]:
    """The parts of ``[start, stop)`` that no entry covers; a failed candidate needs none."""
    spans = []
    for entry in entries:
        if entry.failed and entry.start < stop and entry.stop > start:
            return []
        if entry.start > start:
            spans.append((start, min(entry.start, stop)))
        start = max(start, entry.stop)
        if start >= stop:
            break
    if start < stop:
        spans.append((start, stop))
    return [(low, high) for low, high in spans if low < high]


def set_aside(workspace: Workspace) -> None:
    """Move the journal of a profile, from which a run would resume, to a folder beside it; in a bucket too."""
    folder = workspace.state / "journal" / workspace.name
    if folder.is_dir():
        aside = workspace.state / "journal-aside"
        aside.mkdir(exist_ok=True)
        taken = len(list(aside.glob(f"{workspace.name}-*")))
        folder.rename(aside / f"{workspace.name}-{taken + 1}")
    if remote := remote_state():
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        there = RemoteSegments(f"{remote}/journal/{workspace.name}")
        there.set_aside(f"{remote}/journal-aside/{workspace.name}-{now}")
