"""The gates of a promotion as checks with a value, a bound and an outcome, and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from models.text import markdown
from tasks.schema.services import Promotion

REGISTERED, REPRODUCED, KEPT, FLOOR = "registered", "reproduced", "against the holder", "floor"
"""The gates in order: the version is there; it scores as recorded; it loses nothing; it is good enough at all."""

ROUNDING = 1e-12
"""What sums of a few doubles may be off by."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    gate: str
    what: str
    """An objective, or what else is looked at."""
    value: str
    bound: str
    passed: bool | None
    """None: it could not be looked at, because a check before it failed."""
    note: str = ""

    @property
    def outcome(self) -> str:
        """In a word."""
        return {True: "pass", False: "fail", None: "not run"}[self.passed]

    def __str__(self) -> str:
        words = f"{self.what} {self.value or self.outcome}".strip()
        against = f", bound {self.bound}" if self.bound else ""
        return f"{self.gate}: {words}{against}{f' ({self.note})' if self.note else ''}"


def reproduced(
    again: Mapping[str, float], recorded: Mapping[str, float], objectives: Iterable[str], allowed: float
) -> list[Check]:
    """Whether scores that were computed again are the recorded ones.

    Args:
        again: objective → score of the version that was fetched.
        recorded: objective → score in the registry.
        objectives: the profile's.
        allowed: greatest difference, relative where a score is above 1.
    """
    checks = []
    for name in objectives:
        if name not in recorded:
            checks.append(Check(REPRODUCED, name, number(again[name]), "", False, "the registry has no such score"))
            continue
        margin = allowed * max(1.0, abs(recorded[name]))
        sound = abs(again[name] - recorded[name]) <= margin + ROUNDING
        bound = f"{number(recorded[name])} ± {margin:.0e}"
        checks.append(Check(REPRODUCED, name, number(again[name]), bound, bool(sound)))
    return checks


def kept(
    scores: Mapping[str, float], present: Mapping[str, float] | None, objectives: Iterable[str], rules: Promotion
) -> list[Check]:
    """Whether a member falls below the present holder of the alias, or below a floor.

    Args:
        scores: objective → score on `selection` of the member.
        present: the same of the alias's present holder; None where the alias is new.
        objectives: the profile's; ``layers`` is better when lower, and has no floor.
        rules: the profile's tolerance and floors.
    """
    checks = []
    for name in objectives if present is not None else ():
        value, now = scores.get(name), (present or {}).get(name)
        if value is None or now is None:
            missing = "it has no such score" if value is None else "the holder has no such score"
            checks.append(Check(KEPT, name, "" if value is None else number(value), "", value is not None, missing))
            continue
        sign, better = ("≤", -1) if name == "layers" else ("≥", 1)
        bound = now - better * rules.tolerance
        sound = better * value >= better * bound - ROUNDING
        checks.append(Check(KEPT, name, number(value), f"{sign} {number(bound)}", sound, f"now {number(now)}"))
    for name, floor in rules.floors.items():
        value = scores.get(name)
        sound = value is not None and value >= floor - ROUNDING
        checks.append(Check(FLOOR, name, "" if value is None else number(value), f"≥ {number(floor)}", sound))
    return checks


def sound(checks: Iterable[Check]) -> bool:
    """Whether every check passed."""
    return all(one.passed for one in checks)


def failures(checks: Iterable[Check]) -> list[str]:
    """What failed, a line each."""
    return [str(one) for one in checks if one.passed is False]


HEADINGS = ("gate", "what", "value", "bound", "outcome", "")
COLOURS = {True: "green", False: "red", None: "dim"}


def gate_table(title: str, checks: Sequence[Check]) -> Table:
    """The checks for a terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for number_of, one in enumerate(checks):
        gate = one.gate if number_of == 0 or checks[number_of - 1].gate != one.gate else ""
        outcome = Text(one.outcome, COLOURS[one.passed])
        table.add_row(gate, Text(one.what), Text(one.value), Text(one.bound), outcome, Text(one.note))
    return table


def gate_markdown(title: str, checks: Sequence[Check]) -> str:
    """The same table in Markdown."""
    rows = [(*HEADINGS[:-1], "note"), ("---",) * len(HEADINGS)]
    for one in checks:
        said, note = map(markdown, (one.what, one.value, one.bound)), markdown(one.note)
        rows.append((one.gate, *said, f"**{one.outcome}**", note))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"**{markdown(title)}**", "", *lines])


def as_data(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """The checks in the form that ``--json`` prints."""
    return [asdict(one) | {"outcome": one.outcome} for one in checks]


def number(value: float) -> str:
    """A score to four digits."""
    return f"{value:.4f}"
