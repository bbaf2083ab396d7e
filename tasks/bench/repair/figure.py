"""The figure of `repair`: losses by layers left out, and by the tokens of the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from tasks.bench.repair.summary import DEPTH_ARMS, TARGETS, Measured, curve
from tasks.report.style import BASE, EXPERTS, INK, canvas

COLOURS = dict(
    zip(DEPTH_ARMS, (BASE, EXPERTS[3], EXPERTS[5], EXPERTS[0], EXPERTS[4], EXPERTS[2], EXPERTS[1]), strict=True)
)


def repair_figure(families: Sequence[Measured]) -> Figure:
    """Two axes a family."""
    with canvas(len(families), 2, 3.2 * len(families)) as (figure, axes):
        for (left, right), one in zip(axes, families, strict=True):
            by_depth(left, one)
            by_tokens(right, one)
    return figure


def by_depth(axes: Axes, measured: Measured) -> None:
    """What the chosen cuts lose, with intervals."""
    for arm in DEPTH_ARMS:
        found = curve(measured, arm)
        if found:
            y = [one.value for one in found.values()]
            errors = [[one.value - one.low for one in found.values()], [one.high - one.value for one in found.values()]]
            axes.errorbar(list(found), y, errors, marker="o", markersize=4, capsize=2, color=COLOURS[arm], label=arm)
    if measured.family == "smollm2":
        axes.plot(
            list(TARGETS), [bound for bound, _ in TARGETS.values()], "_", color=INK, markersize=14, label="target"
        )
    axes.set(yscale="log", xlabel="layers left out", ylabel="rise of the worst task", title=measured.family)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def by_tokens(axes: Axes, measured: Measured) -> None:
    """One cut, calibrated on more and more tokens; nothing where that was not measured."""
    found = measured.rises("tokens", split="test")
    if not found:
        axes.set_axis_off()
        return
    for number, arm in enumerate(dict.fromkeys(arm for arm, _ in found)):
        sized = {int(what): one for (name, what), one in found.items() if name == arm and what.isdigit()}
        x = sorted(sized)
        axes.plot(x, [sized[one].value for one in x], "o-", color=EXPERTS[number], markersize=4, label=arm)
    axes.set(xscale="log", xlabel="tokens of the calibration", ylabel="rise of the worst task", title=measured.family)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend()
