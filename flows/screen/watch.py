"""What a user sees while the pipeline runs: bars on a terminal, a line now and then elsewhere.

The stages append events to ``HM3_STATE/progress/PROFILE/STAGE.jsonl``; this follows them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from models.errors import without_secrets
from models.text import plain
from tasks.project.progress import Progress as StageProgress

PLAIN_WIDTH = 180
"""Columns of output that goes to a file or a pipe."""

LINE_SECONDS = 15.0
"""Time between two lines on the same bar where there is no terminal."""


class Terminal(Console):
    """A console on which all text is text: no markup in it, and no character that acts on a terminal."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See ``Console``; rich's own control codes stay."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(plain(one.text), one.style)


def output(*, stderr: bool = False) -> Terminal:
    """A terminal; where nobody looks on, lines are long enough for tables."""
    stream = sys.stderr if stderr else sys.stdout
    return Terminal(stderr=stderr, width=None if stream.isatty() else PLAIN_WIDTH)


class Tail:
    """The events that were added to a file since the last look."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """New events; a line that is still being written is left for the next look."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


class Screen:
    """The terminal, or whatever stands for it.

    Args:
        console: where lines and bars go.
        log: also gets every line that stays, as plain text.
    """

    def __init__(self, console: Console, log: Callable[[str], None] | None = None):
        self.console = console
        self.log = log
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._whole: TaskID | None = None
        self._said: dict[str, tuple[float, bool]] = {}

    def __enter__(self) -> Screen:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def line(self, text: str, style: str = "") -> None:
        """A line that stays; passwords of addresses are left out."""
        text = without_secrets(text)
        self.console.print(Text(text, style), highlight=False)
        if self.log is not None:
            self.log(plain(text))

    def of_all(self, done: int, total: int, unit: str) -> None:
        """Show how much of everything is done; this bar stays when others are cleared."""
        said = f"{done}/{total} {unit}"
        if self._whole is None:
            self._whole = self._bars.add_task("pipeline", total=total, said=said)
        self._bars.update(self._whole, completed=done, said=said)

    def spin(self, text: str) -> None:
        """Show instead of the other bars that something without a measure goes on."""
        self.clear()
        self._tasks[text] = self._bars.add_task(text, total=None, said="")

    def event(self, stage: str, event: dict[str, Any]) -> None:
        """Show one event of a stage, or of what goes on without a name."""
        whose = f"{stage}: " if stage else ""
        if event["event"] == "message":
            self.line(f"  {whose}{event['text']}", style="dim")
            return
        name = f"{whose}{event['description']}"
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=event["total"], said="")
        said = measure(event)
        self._bars.update(self._tasks[name], completed=event["completed"], total=event["total"], said=said)
        if not self.console.is_terminal:
            self._say(name, said, whole=event["completed"] == event["total"])

    def clear(self) -> None:
        """Take all bars of single things away."""
        for one in self._tasks.values():
            self._bars.remove_task(one)
        self._tasks.clear()
        self._said.clear()

    def _say(self, name: str, said: str, *, whole: bool) -> None:
        """A line instead of a bar, now and then and when it is complete."""
        now = time.monotonic()
        last, last_whole = self._said.get(name, (-LINE_SECONDS, False))
        if now - last >= LINE_SECONDS or (whole and not last_whole):
            self._said[name] = (now, whole)
            self.line(f"  {name} {said}")


@contextmanager
def shown(console: Console, path: Path | None = None) -> Iterator[StageProgress]:
    """Progress of work in this process: bars on a terminal, messages as lines anywhere; events in a file, too."""
    with Screen(console) as screen:

        def tell(event: dict[str, Any]) -> None:
            if console.is_terminal or event["event"] == "message":
                screen.event("", event)

        with StageProgress(path, tell) as progress:
            yield progress


def measure(event: dict[str, Any]) -> str:
    """A bar's state in words, such as ``12/40 rounds, hv 0.41``."""
    bytes_of = event["unit"] == "bytes"
    parts = [event["completed"], *([event["total"]] if event["total"] else [])]
    amount = "/".join(decimal(int(one)) if bytes_of else f"{one:g}" for one in parts)
    words = amount if bytes_of else f"{amount} {event['unit']}".strip()
    return f"{words}, {event['note']}" if event["note"] else words


def percent(event: dict[str, Any]) -> float | None:
    """How much of a bar is done, 0 to 100, if that is known."""
    if event["event"] != "bar" or not event["total"]:
        return None
    return float(min(100.0, 100 * event["completed"] / event["total"]))


def duration(seconds: float) -> str:
    """Seconds as people read them: ``8 s``, ``2:05 min``, ``1:02:03 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"
