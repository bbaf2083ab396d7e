"""Progress of a stage, as events in a file, and told to whoever looks on.

A stage knows nothing of who watches. It appends one JSON object a line to ``HM3_STATE/progress/PROFILE/STAGE.jsonl``;
the flow tails that file. On a terminal the same events become bars (``flows/screen/watch.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

MIN_SECONDS = 0.2
"""Shortest time between two events of one bar."""


@dataclass
class Bar:
    """One task with a known or unknown total."""

    owner: Progress
    description: str
    total: float | None
    unit: str
    completed: float = 0
    note: str = ""
    last: float = 0

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Some more is done; ``note`` is a short word on how it goes."""
        self.completed = round(self.completed + amount, 6)  # parts add up to the whole
        self.note = self.note if note is None else note
        self.owner.show(self)


@dataclass
class Progress:
    """Where a stage reports to. ``Progress()`` reports to nobody."""

    path: Path | None = None
    tell: Callable[[dict[str, Any]], None] | None = None
    """Gets each event."""
    _file: IO[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Progress:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @contextmanager
    def bar(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
        """A bar for the time of the block."""
        bar = Bar(self, description, total, unit)
        self.show(bar, force=True)
        yield bar
        self.show(bar, force=True)

    def message(self, text: str) -> None:
        """A line that stays."""
        self._write({"event": "message", "text": text})

    def show(self, bar: Bar, force: bool = False) -> None:
        """Write the bar's state, at most every ``MIN_SECONDS``."""
        now = time.monotonic()
        if not force and now - bar.last < MIN_SECONDS and bar.completed != bar.total:
            return
        bar.last = now
        said = ("description", "completed", "total", "unit", "note")
        self._write({"event": "bar"} | {name: getattr(bar, name) for name in said})

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(event) + "\n")
        if self.tell is not None:
            self.tell(event)
