"""What doctor found: its checks, a line each, and the plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.errors import without_secrets
from tasks.doctor.plan import Plan

Status = Literal["good", "later", "bad"]
"""``later``: can't be known before a stage has run."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    status: Status
    text: str

    def __post_init__(self) -> None:
        """Addresses of servers and buckets are shown without passwords."""
        object.__setattr__(self, "text", without_secrets(self.text))

    def show(self, console: Console) -> None:
        """A line of its own."""
        colours: dict[Status, str] = {"good": "green", "later": "yellow", "bad": "red"}
        mark = Text(f"{self.status:5}", colours[self.status])
        console.print(Text.assemble(mark, f" {self.what:12} {self.text}"), highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and the plan."""

    profile: str
    checks: tuple[Check, ...]
    plan: Plan

    @property
    def sound(self) -> bool:
        """Whether a run can start."""
        return all(check.status != "bad" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return asdict(self) | {"sound": self.sound, "seconds": self.plan.seconds}

    def show(self, console: Console) -> None:
        """What follows from all checks, which have shown themselves."""
        table = Table(title=Text(f"\nplan of {self.profile}"), title_justify="left", title_style="bold", box=None)
        for heading in ("stage", "candidates", "item evaluations", "expected time"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for cost in self.plan.costs:
            numbers = [f"{number:,}" if number else "" for number in (cost.candidates, cost.item_evaluations)]
            table.add_row(cost.stage, *numbers, in_time(cost.seconds))
        console.print(table)
        for name, value in (("memory", self.plan.memory), ("weights to be registered", self.plan.registered)):
            console.print(f"{name}: {'known when the models are there' if value is None else in_bytes(value)}")
        least = "" if self.plan.timed else "at least "
        expected = f"{least}{in_time(self.plan.seconds)}" if self.plan.seconds else "known when the models are there"
        console.print(f"expected time: {expected}", highlight=False)


def in_bytes(number: int) -> str:
    """Bytes as people read them."""
    if number < 1024:
        return f"{number} B"
    power = min(4, (number.bit_length() - 1) // 10)
    return f"{number / 1024**power:.3g} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def in_time(seconds: float | None) -> str:
    """Seconds as people read them; nothing if they are not known."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
