"""The figure of the engine's benchmarks: ratios against their targets, memory by anchors, time by size."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from tasks.bench.engine.summary import Verdict
from tasks.report.style import EXPERTS, FAINT, INK, canvas

OURS, THEIRS, TARGET = EXPERTS[0], FAINT, EXPERTS[3]
MARKS = "osD^v"

Measured = Mapping[str, tuple[pd.DataFrame, list[Verdict]]]
"""Rows and verdicts of each benchmark that has any."""


def engine_figure(measured: Measured) -> Figure:
    """Ratios on the left, memory and scale beside them; what has no rows is left empty."""
    ratios = [
        (name, one)
        for name, (_, verdicts) in measured.items()
        for one in verdicts
        if one.statistic == "ratio" and not one.quantity.startswith("cpu")
    ]
    height = max(5.4, 1.2 + 0.24 * len(ratios))
    with canvas(2, 2, height) as (figure, grid):
        places = grid[0, 0].get_gridspec()
        for axes in grid[:, 0]:
            axes.remove()
        left = figure.add_subplot(places[:, 0])
        _ratios(left, ratios)
        _memory(grid[0, 1], measured)
        _scale(grid[1, 1], measured)
    return figure


def _ratios(axes: Axes, ratios: list[tuple[str, Verdict]]) -> None:
    """The median ratio of each measure with its least and greatest repetition, and the target as a tick."""
    for row, (_, one) in enumerate(ratios):
        colour = OURS if one.bound is not None else THEIRS
        axes.plot([one.low, one.high], [row, row], color=colour, linewidth=1.4, zorder=2)
        axes.plot(one.value, row, "o", color=colour, markersize=5, zorder=3)
        if one.bound is not None:
            axes.plot([one.bound] * 2, [row - 0.38, row + 0.38], color=TARGET, linewidth=2.2, zorder=4)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set(
        xscale="log",
        ylim=(len(ratios) - 0.4, -0.6),
        xlabel="theirs over ours: right of 1 we are better",
        title="Ratios in one run, and their targets",
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(ratios)), [f"{name}: {one.case}, {one.quantity}" for name, one in ratios])
    axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=OURS, marker="o", label="median, least and greatest"),
        Line2D([], [], color=THEIRS, marker="o", label="without a target"),
        Line2D([], [], color=TARGET, marker="|", markersize=10, markeredgewidth=2.2, linestyle="none", label="target"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3, columnspacing=1.0)


def _memory(axes: Axes, measured: Measured) -> None:
    axes.set(xlabel="anchors in the pool", ylabel="megabytes", title="Memory as the pool grows")
    if "memory" not in measured:
        return
    rows = measured["memory"][0]
    curves = (("resident memory", "ours", OURS, "resident"), ("held", "ours", EXPERTS[2], "held by the LRU"))
    for quantity, column, colour, label in (*curves, ("held", "theirs", THEIRS, "all anchors, if kept")):
        by_x = rows[rows["quantity"] == quantity].groupby("x")[column].median()
        axes.plot(by_x.index, by_x, "o-", color=colour, markersize=3.5, linewidth=1.4, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _scale(axes: Axes, measured: Measured) -> None:
    """Time against size, both over their least, so that a slope of 1 is linear."""
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="size over the least",
        ylabel="time over the least",
        title="Time a candidate as it grows",
    )
    if "scale" not in measured:
        return
    rows, verdicts = measured["scale"]
    rows = rows[rows["quantity"] == "wall"]
    slopes = {one.case: one.value for one in verdicts if one.quantity == "wall"}
    furthest = 1.0
    for number, case in enumerate(slopes):
        by_x = rows[rows["case"] == case].groupby("x")["ours"].median()
        label = f"{'parameters' if case == 'width' else case}: exponent {slopes[case]:.2f}"
        x, y = by_x.index / by_x.index[0], by_x / by_x.iloc[0]
        axes.plot(x, y, f"{MARKS[number]}-", color=EXPERTS[number], markersize=4, linewidth=1.4, label=label)
        furthest = max(furthest, float(x.max()))
    axes.plot([1, furthest], [1, furthest], "--", color=INK, linewidth=0.8, label="linear")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    axes.legend()
