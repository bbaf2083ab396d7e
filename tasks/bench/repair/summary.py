"""What the rows say: rises of the worst task with bootstrap intervals over items, and the tables of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from models.front import Array
from tasks.bench.markdown import Sheet
from tasks.bench.repair.rows import Case, losses_of, tasks_of

LEVEL, RESAMPLES = 0.95, 2000

TARGETS = {1: (0.035, 0.05), 2: (0.06, 0.08), 4: (0.10, 0.13), 6: (0.18, np.inf)}
"""By layers left out of SmolLM2: the rise to reach, and the upper end of its interval."""


@dataclass(frozen=True)
class Rise:
    """By how much the worst task's loss is above the uncut merge's, relative to it, with its interval."""

    value: float
    low: float
    high: float
    by_task: Mapping[str, float]
    right: float
    """Share of the answers that greedy decoding gives whole, mean over tasks."""

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class Measured:
    """The rows of one family."""

    family: str
    rows: pd.DataFrame
    items: pd.DataFrame

    @cached_property
    def by_id(self) -> dict[str, pd.DataFrame]:
        """The items' rows by the case that they belong to."""
        return {str(name): own for name, own in self.items.groupby("id")}

    def rise(self, row: Mapping[str, object]) -> Rise:
        """Of one row, against the uncut merge on the same items."""
        split = str(row["split"])
        case = str(row["id"])
        base = Case(self.family, "uncut", "uncut", "", split).id
        tasks = tasks_of(self.by_id[case], case)
        cut, uncut = losses_of(self.by_id[case], case), losses_of(self.by_id[base], base)
        return rise(cut.loss, uncut.loss, tasks, cut.right)

    def of(self, study: str, arm: str | None = None, split: str | None = None) -> pd.DataFrame:
        """Rows of a study, perhaps of one arm or split."""
        own = self.rows[self.rows["study"] == study]
        own = own if arm is None else own[own["arm"] == arm]
        return own if split is None else own[own["split"] == split]

    def rises(self, study: str, arm: str | None = None, split: str | None = None) -> dict[tuple[str, str], Rise]:
        """By arm and what was changed."""
        own = self.of(study, arm, split)
        return {(str(row["arm"]), str(row["what"])): self.rise(dict(row)) for _, row in own.iterrows()}


def rise(cut: Array, uncut: Array, tasks: Array, right: Array) -> Rise:
    """The worst task's rise, from losses of the same items ``(N,)``; items are drawn anew within each task."""
    rng = np.random.default_rng(0)
    values, drawn = {}, []
    for task in dict.fromkeys(tasks.tolist()):
        ours, theirs = cut[tasks == task], uncut[tasks == task]
        values[task] = float(ours.mean() / theirs.mean() - 1)
        rows = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
        drawn.append(ours[rows].mean(axis=1) / theirs[rows].mean(axis=1) - 1)
    low, high = np.quantile(np.max(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    shares = [right[tasks == task].mean() for task in values]
    return Rise(max(values.values()), float(low), float(high), values, float(np.mean(shares)))


def families(rows: pd.DataFrame, items: pd.DataFrame) -> list[Measured]:
    """Those that have rows."""
    if not len(rows):
        return []
    names = dict.fromkeys(rows["family"])
    return [
        Measured(str(one), rows[rows["family"] == one], items[items["id"].isin(rows.loc[rows["family"] == one, "id"])])
        for one in names
    ]


def grid(
    measured: Measured, study: str, heads: Sequence[str], title: str, note: str, first: str, split: str = "test"
) -> Sheet | None:
    """A row a change, a column an arm: the worst task's rise with its interval."""
    found = measured.rises(study, split=split)
    if not found:
        return None
    arms = [one for one in heads if any(arm == one for arm, _ in found)]
    whats = list(dict.fromkeys(what for _, what in found))
    rows = [(what, *(str(found[arm, what]) if (arm, what) in found else "" for arm in arms)) for what in whats]
    return Sheet(title, note, (first, *arms), tuple(rows))


MEMBERS = "ours, solved again"
ALL_BEHIND = "every later layer, solved again"
DEPTH_ARMS = ("naive", "ReplaceMe, least squares", "ReplaceMe, cosine", "ours", "ours, in turn", MEMBERS, ALL_BEHIND)


def depth_sheet(measured: Measured) -> Sheet | None:
    """Losses by cut."""
    found = grid(measured, "depth", DEPTH_ARMS, "Layers left out", "", "layers")
    if found is None:
        return None
    order = sorted(found.rows, key=lambda row: (len(row[0].split()), row[0]))
    return Sheet(found.title, found.note, found.columns, tuple(order))


def right_sheet(measured: Measured) -> Sheet | None:
    """Whole answers by cut, where models give any."""
    found = measured.rises("depth", split="test")
    (uncut,) = measured.rises("uncut", split="test").values()
    if not found or uncut.right < 0.1:
        return None
    arms = [one for one in DEPTH_ARMS if any(arm == one for arm, _ in found)]
    whats = sorted({what for _, what in found}, key=lambda what: (len(what.split()), what))
    rows = [
        (what, *(f"{found[arm, what].right:.3f}" if (arm, what) in found else "" for arm in arms)) for what in whats
    ]
    note = f"Share of right answers, mean over tasks; the uncut merge gives {uncut.right:.3f}."
    return Sheet("Right answers", note, ("layers", *arms), tuple(rows))


def correlation(measured: Measured) -> tuple[float, int] | None:
    """Spearman's correlation of what each single layer costs, naive and repaired, and of how many layers.

    Layer 0 has nothing before it to be repaired, and is no part of it.
    """
    found = {
        arm: {what: one.value for (_, what), one in measured.rises("choice", arm).items() if len(what.split()) == 1}
        for arm in ("naive", "ours")
    }
    both = sorted(set(found["naive"]) & set(found["ours"]) - {"0"})
    if len(both) < 3:
        return None
    naive, ours = ([found[arm][one] for one in both] for arm in ("naive", "ours"))
    return float(spearmanr(naive, ours).statistic), len(both)


def values(measured: Measured, study: str) -> dict[tuple[str, str], float]:
    """What was measured that is no loss, by arm and what was changed."""
    own = measured.of(study)
    return {(str(row["arm"]), str(row["what"])): float(row["value"]) for _, row in own.iterrows()}


def cost_sheet(measured: Measured) -> Sheet | None:
    """What a calibration and a repair take."""
    found = values(measured, "cost")
    if not found:
        return None
    by_arm = {arm: value for (arm, _), value in found.items()}
    rows = [(arm, f"{value:.3g}") for arm, value in by_arm.items()]
    share = by_arm["seconds to repair"] / by_arm["seconds to score"]
    rows.append(("a repair over its scoring; to reach: 5 %", f"{share:.2%}"))
    return Sheet(
        "What it costs",
        "Medians of several; the calibration is one of all runs of up to three layers, the candidate lacks four.",
        ("measure", ""),
        tuple(rows),
    )


def tokens_sheet(measured: Measured) -> Sheet | None:
    """Losses of one cut by what it was calibrated on."""
    own = measured.of("tokens")
    if not len(own):
        return None
    heads, note = list(dict.fromkeys(own["arm"])), f"Without the layers {own['note'].iloc[0]}."
    return grid(measured, "tokens", heads, "What it is calibrated on", note, "tokens, or texts")


def moves_sheet(measured: Measured) -> Sheet | None:
    """Further moves: a row each, a column a cut."""
    moved = measured.rises("moves", split="test")
    if not moved:
        return None
    cuts = list(dict.fromkeys(what for _, what in moved))
    found = {key: one for key, one in measured.rises("depth", split="test").items() if key[1] in cuts} | moved
    arms = [one for one in DEPTH_ARMS if any(arm == one for arm, _ in found)]
    arms += dict.fromkeys(arm for arm, _ in moved)
    rows = [(arm, *(str(found[arm, cut]) if (arm, cut) in found else "" for cut in cuts)) for arm in arms]
    note = "The first rows are those of the table above."
    return Sheet("Further moves", note, ("move", *(f"without {cut}" for cut in cuts)), tuple(rows))


def foreign_sheet(measured: Measured) -> Sheet | None:
    """Paths that change over."""
    note = "`A 9 B`: model B goes on behind A's layer 9; `repeat 9` passes layer 9 twice, `back 9` layers 8 and 9."
    note += " On the items to choose by."
    return grid(measured, "foreign", ("left alone", "refitted"), "Foreign seams", note, "path", "search")


def halves_sheet(measured: Measured) -> Sheet | None:
    """Attention and MLPs left out alone."""
    return grid(measured, "halves", ("naive", "repaired"), "Attention or MLP alone", "", "left out")


def savings_sheet(measured: Measured) -> Sheet | None:
    """What it saves."""
    found = values(measured, "savings")
    if not found:
        return None
    arms, whats = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    base = {arm: found[arm, whats[0]] for arm in arms}
    rows = [
        (what, *(f"{found[arm, what]:.4g} ({found[arm, what] / base[arm] - 1:+.0%})" for arm in arms)) for what in whats
    ]
    return Sheet(
        "What it saves",
        "Greedy decoding of 16 tokens behind 16; the quickest of several. Other programs ran on the machine.",
        ("left out", *arms),
        tuple(rows),
    )


def sheets(measured: Measured) -> list[Sheet]:
    """The tables of a family."""
    made = (depth_sheet, right_sheet, cost_sheet, tokens_sheet, moves_sheet, foreign_sheet, halves_sheet, savings_sheet)
    return [sheet for one in made if (sheet := one(measured)) is not None]


def chosen(measured: Measured, arm: str) -> dict[int, str]:
    """By their number the layers that greedy deletion left out, ``naive`` or with ``ours``, of reported cuts."""
    reported = set(measured.of("depth")["what"])
    best: dict[int, tuple[float, str]] = {}
    for (_, what), one in measured.rises("choice", arm).items():
        if what in reported:
            layers = len(what.split())
            best[layers] = min(best.get(layers, (np.inf, "")), (one.value, what))
    return {layers: best[layers][1] for layers in sorted(best)}


def curve(measured: Measured, arm: str) -> dict[int, Rise]:
    """What the chosen cuts lose when an arm repairs them; without repair, those that were chosen without it."""
    found = measured.rises("depth", arm, "test")
    cuts = chosen(measured, "naive" if arm == "naive" else "ours")
    return {layers: found[arm, what] for layers, what in cuts.items() if (arm, what) in found}


def verdicts(measured: Measured) -> list[tuple[str, ...]]:
    """Of SmolLM2, for each target what members reach: number of layers, which, target, and what each way reaches."""
    cuts, ways = chosen(measured, "ours"), [curve(measured, arm) for arm in (MEMBERS, ALL_BEHIND)]
    lines: list[tuple[str, ...]] = []
    for layers, (bound, upper) in TARGETS.items():
        if layers not in cuts:
            continue
        reached = []
        for one in (way.get(layers) for way in ways):
            holds = one is not None and one.value <= bound and one.high <= upper
            reached.append("" if one is None else f"{one}: {'yes' if holds else 'no'}")
        wanted = f"{bound:.1%}" + (f" ({upper:.0%})" if np.isfinite(upper) else "")
        lines.append((str(layers), cuts[layers], wanted, *reached))
    return lines
