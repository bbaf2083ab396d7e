"""What the rows of a benchmark say, measure by measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text
from scipy.stats import linregress

from tasks.bench.engine.registry import Benchmark, Measure, Statistic

FROM = 3.0
"""The x from which growth counts."""


@dataclass(frozen=True)
class Verdict:
    """One measure of one case."""

    case: str
    quantity: str
    unit: str
    statistic: Statistic
    ours: float | None
    """Median over the repetitions; none where x is varied."""
    theirs: float | None
    value: float
    """Of the medians over the repetitions."""
    low: float
    """Least of the repetitions taken one by one."""
    high: float
    error: float | None
    """Standard error of a slope."""
    repetitions: int
    target: str
    bound: float | None
    checked: bool
    """Whether every result was compared and found right."""
    reached: bool | None
    """None where there is no target."""

    @property
    def outcome(self) -> str:
        """In words."""
        if not self.checked:
            return "results differ"
        return {None: "", True: "reached", False: "not reached"}[self.reached]

    def shown(self, number: float | None = None) -> str:
        """The value, or another of its kind, as people read it."""
        value = self.value if number is None else number
        if self.statistic != "ratio":
            return f"{value:.2f}"
        return f"{value:.0f}×" if value >= 99.5 else f"{value:.1f}×" if value >= 9.95 else f"{value:.2f}×"

    @property
    def spread(self) -> str:
        """Least and greatest repetition, and the standard error of a slope."""
        span = f"{self.shown(self.low)} – {self.shown(self.high)}"
        return span if self.error is None else f"{span}, s.e. {self.error:.2f}"


@dataclass(frozen=True)
class Step:
    """What was measured at one x, medians over the repetitions."""

    case: str
    x: float
    values: dict[str, str]
    """Quantity → value with its unit."""


def steps(rows: pd.DataFrame) -> list[Step]:
    """The steps of all cases in which x is varied."""
    found = []
    varied = rows[rows["x"].notna()]
    for case, x in varied[["case", "x"]].drop_duplicates().to_numpy():
        own = varied[(varied["case"] == case) & (varied["x"] == x)]
        medians = own.groupby("quantity", sort=False).agg({"ours": "median", "unit": "first"})
        values = {str(one.Index): f"{one.ours:.4g} {one.unit}" for one in medians.itertuples()}
        found.append(Step(str(case), float(x), values))
    return found


def summarise(benchmark: Benchmark, rows: pd.DataFrame) -> list[Verdict]:
    """A verdict for each case and measure of which there are rows, in the order of the cases."""
    verdicts = []
    for case in dict.fromkeys(rows["case"]):
        for measure in benchmark.measures:
            own = rows[(rows["case"] == case) & (rows["quantity"] == measure.quantity)]
            if len(own) and fnmatchcase(case, measure.cases):
                verdicts.append(_verdict(str(case), measure, own))
    return verdicts


def _verdict(case: str, measure: Measure, rows: pd.DataFrame) -> Verdict:
    single = [_value(measure.statistic, one)[0] for _, one in rows.groupby("repetition")]
    medians = rows.assign(x=rows["x"].fillna(0)).groupby("x", as_index=False)[["ours", "theirs"]].median()
    value, error = _value(measure.statistic, medians)
    checked = bool(rows["checked"].all())
    reached = None
    if measure.bound is not None:
        better = value >= measure.bound if measure.statistic == "ratio" else value <= measure.bound
        reached = checked and bool(better)
    whole = measure.statistic == "ratio"
    return Verdict(
        case,
        measure.quantity,
        str(rows["unit"].iloc[0]),
        measure.statistic,
        float(medians["ours"].iloc[0]) if whole else None,
        float(medians["theirs"].iloc[0]) if whole else None,
        value,
        min(single),
        max(single),
        error,
        len(single),
        measure.target,
        measure.bound,
        checked,
        reached,
    )


def _value(statistic: Statistic, rows: pd.DataFrame) -> tuple[float, float | None]:
    """The statistic of some rows, and its standard error where it has one."""
    if statistic == "ratio":
        return float(rows["theirs"].median() / rows["ours"].median()), None
    by_x = rows.sort_values("x")
    if statistic == "slope":
        fit = linregress(np.log(by_x["x"].to_numpy(float)), np.log(by_x["ours"].to_numpy(float)))
        return float(fit.slope), float(fit.stderr)
    from_on = by_x[by_x["x"] >= FROM]
    gains = from_on[["ours", "theirs"]].iloc[-1] - from_on[["ours", "theirs"]].iloc[0]
    return float(gains["ours"] / gains["theirs"]), None


def verdict_table(benchmark: Benchmark, verdicts: list[Verdict]) -> Table:
    """For a terminal."""
    table = Table(title=f"{benchmark.name}: {benchmark.title}", title_justify="left", box=None, pad_edge=False)
    for name in ("case", "measure"):
        table.add_column(name)
    for name in ("ours", "theirs", "result", "least – greatest", "n", "target"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in verdicts:
        style = {None: "", True: "green", False: "red"}[one.reached if one.checked else False]
        table.add_row(
            one.case,
            one.quantity,
            *(f"{number:.3g} {one.unit}".strip() if number is not None else "" for number in (one.ours, one.theirs)),
            one.shown(),
            one.spread,
            str(one.repetitions),
            one.target,
            Text(one.outcome, style=style),
        )
    return table


def steps_table(found: list[Step]) -> Table:
    """Likewise."""
    table = Table(box=None, pad_edge=False)
    for name in ("case", "x", *found[0].values):
        table.add_column(name, justify="left" if name == "case" else "right")
    for one in found:
        table.add_row(one.case, f"{one.x:.7g}", *one.values.values())
    return table


def verdict_data(benchmark: Benchmark, verdicts: list[Verdict], found: list[Step]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "benchmark": benchmark.name,
        "reach": benchmark.reach,
        "measures": [asdict(one) | {"outcome": one.outcome} for one in verdicts],
        "steps": [asdict(one) for one in found],
    }
