"""Paired comparisons over families and seeds (method.md, section 3): scipy and statsmodels, no formula of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from models.front import Array

LEVEL = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Comparison:
    """Ours against one other arm, over paired runs; differences are ours less theirs."""

    arm: str
    pairs: int
    ours: float
    """Median."""
    theirs: float
    difference: float
    """Median of the paired differences."""
    low: float
    high: float
    """Of its bootstrap interval."""
    p: float
    """Wilcoxon's signed-rank test, two-sided."""
    a12: float
    """Vargha and Delaney's effect size: how often ours is the greater, ties half."""
    corrected: float = np.nan
    """p after Holm, over the family of tests."""

    @property
    def significant(self) -> bool:
        """At the level that intervals have too."""
        return bool(self.corrected < 1 - LEVEL)


def compare(arm: str, ours: Array, theirs: Array) -> Comparison:
    """Compare paired results (N,)."""
    difference = ours - theirs
    low, high = median_interval(difference)
    return Comparison(
        arm,
        len(ours),
        float(np.median(ours)),
        float(np.median(theirs)),
        float(np.median(difference)),
        low,
        high,
        signed_rank(difference),
        effect(ours, theirs),
    )


def holm(family: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with their p-values corrected for how many there are; those without pairs don't count."""
    sound = [one for one in family if np.isfinite(one.p)]
    if not sound:
        return list(family)
    corrected = dict(
        zip((one.arm for one in sound), multipletests([o.p for o in sound], method="holm")[1], strict=True)
    )
    return [replace(one, corrected=float(corrected.get(one.arm, np.nan))) for one in family]


def median_interval(values: Array) -> tuple[float, float]:
    """Percentile bootstrap interval of the median of values (N,); the same values give the same interval."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.min()), float(values.max())
    found = stats.bootstrap(
        (values,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def signed_rank(difference: Array, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """p of Wilcoxon's test that the differences (N,) lie around zero; 1 where none differs."""
    if not len(difference) or not np.any(difference):
        return 1.0
    return float(stats.wilcoxon(difference, alternative=alternative).pvalue)


def effect(ours: Array, theirs: Array) -> float:
    """Vargha and Delaney's A12 from the statistic of Mann and Whitney."""
    return float(stats.mannwhitneyu(ours, theirs).statistic / (len(ours) * len(theirs)))


@dataclass(frozen=True)
class NonInferiority:
    """Ours against the best baseline at one tenth of the budget."""

    tenth: int
    arm: str
    """The baseline of the highest median there."""
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    p: float
    """One-sided, that ours is worse by the margin or more."""
    holds: bool
    better: bool
    """Whether it holds and the interval lies above zero: one pair has an interval too, and shows nothing."""


def noninferior(tenth: int, ours: Array, baselines: dict[str, Array], margin: float) -> NonInferiority:
    """Test paired results (N,) against those of the baseline that is best at this tenth."""
    best = max(baselines, key=lambda name: (float(np.median(baselines[name])), name))
    difference = ours - baselines[best]
    low, high = median_interval(difference)
    p = signed_rank(difference + margin, "greater")
    theirs = float(np.median(baselines[best]))
    holds = bool(p < 1 - LEVEL and low > -margin)
    return NonInferiority(
        tenth,
        best,
        float(np.median(ours)),
        theirs,
        float(np.median(difference)),
        low,
        high,
        p,
        holds,
        holds and low > 0,
    )
