"""Figures of a study: anytime curves with bands, fronts, and how the searches went."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tasks.bench.searches.points import TENTHS
from tasks.bench.searches.summary import LAST, OURS, Study
from tasks.report.style import BASE, EXPERTS, KINDS, canvas, on

SHOWN = 5
"""Arms beside HM3 that have a colour: the best."""
MERGED = "a merge"
"""What layers of recipes are called in a diagram of paths."""
FACETS = 3
"""Task objectives of which fronts are drawn."""


def figures(study: Study) -> dict[str, Callable[[Study], Figure]]:
    """What can be drawn of a study, by name."""
    found: dict[str, Callable[[Study], Figure]] = {"curves": curves, "fronts": fronts}
    if OURS in study.arms:
        found["paths"] = paths
    if _of_several_kinds(study):
        found["kinds"] = kinds
    if _with_episodes(study):
        found["episodes"] = episodes
    return found


def colours(study: Study) -> dict[str, str]:
    """HM3 and the drawn arms of the highest medians in the end; the others are grey."""
    medians = study.final.groupby("arm")[study.measure].median().sort_values(ascending=False)
    best = [str(arm) for arm in medians.index if arm != OURS and arm in study.drawn][:SHOWN]
    chosen = [*([OURS] if OURS in medians.index else []), *best]
    return dict(zip(chosen, EXPERTS, strict=False))


def curves(study: Study) -> Figure:
    """Median hypervolume by share of the budget, with the quartiles as a band."""
    panels = {"hv": "all objectives", "hv_tasks": "the task objectives"} if study.depth else {"hv_tasks": "all tasks"}
    coloured = colours(study)
    with canvas(1, len(panels), 4.6) as (figure, grid):
        for axes, (column, title) in zip(grid[0], panels.items(), strict=True):
            for arm in sorted(study.drawn, key=lambda name: name in coloured):
                by_tenth = study.rows[study.rows["arm"] == arm].groupby("tenth")[column]
                low, middle, high = (by_tenth.quantile(share) for share in (0.25, 0.5, 0.75))
                x = middle.index.to_numpy() / LAST
                colour = coloured.get(arm, BASE)
                style = {"linewidth": 2.2 if arm == OURS else 1.3 if arm in coloured else 0.8}
                axes.plot(x, middle, "o-", color=colour, markersize=2.6, label=arm, **style)
                if arm in coloured:
                    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.set(xlabel="item evaluations, of the budget", title=f"Hypervolume of {title}, on test")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        grid[0, 0].set_ylabel("fraction of the box")
        _legend(figure, grid[0, 0])
    return figure


def fronts(study: Study) -> Figure:
    """Final members in one family with one seed: task against task, and each task against depth."""
    family, seed = typical(study)
    coloured = colours(study)
    own = study.members[(study.members["family"] == family) & (study.members["seed"] == seed)]
    own = own[(own["tenths"].str[-1] == "1") & own["arm"].isin(coloured)]
    tasks = study.tasks[:FACETS]
    pairs = [*combinations(tasks, 2)][:FACETS] or [(tasks[0], tasks[0])]
    facets = [*pairs, *([("depth_layers", task) for task in tasks] if study.depth else [])]
    columns = min(FACETS, len(facets))
    lines = -(-len(facets) // columns)
    with canvas(lines, columns, 3.2 * lines + 0.6) as (figure, grid):
        for axes, (x, y) in zip(grid.flat, facets, strict=False):
            for arm in reversed(list(coloured)):
                points = own[own["arm"] == arm].sort_values([x, y])
                axes.plot(
                    points[x],
                    points[y],
                    "o",
                    color=coloured[arm],
                    markersize=5 if arm == OURS else 3.5,
                    alpha=0.85,
                    label=arm,
                )
                if x == "depth_layers" and len(points):
                    best = points.groupby(x)[y].max().cummax()
                    axes.step(best.index, best, where="post", color=coloured[arm], linewidth=0.9)
            axes.set(xlabel="layers" if x == "depth_layers" else x, ylabel=y)
            if x == "depth_layers":
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid.flat[len(facets) :]:
            axes.remove()
        where = f"family {family}, " if family else ""
        figure.suptitle(f"Fronts on test: {where}seed {seed}", fontsize=9.5, fontweight="bold")
        _legend(figure, grid[0, 0])
    return figure


def typical(study: Study) -> tuple[int, int]:
    """Family and seed of the run of HM3, or of the first arm, whose final hypervolume is the (lower) median."""
    arm = OURS if OURS in study.arms else study.arms[0]
    ordered = study.values(arm, study.measure).sort_index().sort_values(kind="stable")
    family, seed = ordered.index[(len(ordered) - 1) // 2]
    return int(family), int(seed)


def paths(study: Study) -> Figure:
    """Layers on the path of each final member of HM3's typical run, by the model that they are taken from."""
    family, seed = typical(study)
    own = study.members[(study.members["family"] == family) & (study.members["seed"] == seed)]
    own = own[(own["tenths"].str[-1] == "1") & (own["arm"] == OURS)].sort_values(["depth_layers", "id"])
    layers = study.base_layers(family)
    steps = [steps_of(str(row.path), str(row.kind), layers) for row in own.itertuples()]
    experts = sorted({model for path in steps for model, _ in path if model not in (MERGED, "base")})
    colour = {MERGED: "#d9d9d9", "base": BASE} | dict(zip(experts, EXPERTS, strict=False))
    with canvas(1, 1, 0.7 + 0.3 * len(steps)) as (figure, grid):
        axes = grid[0, 0]
        for row, path in enumerate(steps):
            for place, (model, layer) in enumerate(path):
                fill = colour.get(model, BASE)
                axes.barh(row, 0.94, left=place, height=0.8, color=fill, label=model)
                axes.text(place + 0.47, row, str(layer), ha="center", va="center", fontsize=6.5, color=on(fill))
        axes.set(xlabel="position on the path", yticks=range(len(steps)), yticklabels=list(own["kind"]))
        axes.invert_yaxis()
        where = f"family {family}, " if family else ""
        figure.suptitle(f"Paths of HM3's members: {where}seed {seed}", fontsize=9.5, fontweight="bold")
        _legend(figure, axes)
    return figure


def steps_of(path: str, kind: str, layers: int) -> list[tuple[str, int]]:
    """The layers of a path as ``points.short_path`` writes it; empty stands for a whole model."""
    if not path:
        return [("an expert" if kind == "expert" else "base" if kind == "base" else MERGED, i) for i in range(layers)]
    found = []
    for part in path.partition(": ")[2].split(", "):
        model, *spans = part.split()
        for span in spans:
            first, _, last = span.partition("-")
            named = MERGED if model.startswith("r-") else model
            found += [(named, layer) for layer in range(int(first), int(last or first) + 1)]
    return found


def kinds(study: Study) -> Figure:
    """Share of the item evaluations by kind of proposal, as the budget is spent."""
    arms = _of_several_kinds(study)[: 2 * FACETS]
    names = sorted(set(study.kinds.loc[study.kinds["arm"].isin(arms), "kind"]))
    columns = min(FACETS, len(arms))
    lines = -(-len(arms) // columns)
    with canvas(lines, columns, 2.8 * lines + 0.6) as (figure, grid):
        for axes, arm in zip(grid.flat, arms, strict=False):
            own = study.kinds[study.kinds["arm"] == arm]
            table = own.pivot_table(index="tenth", columns="kind", values="charged", aggfunc="sum", fill_value=0)
            table = table.reindex(index=list(TENTHS), columns=names, fill_value=0)
            shares = table.div(table.sum(axis=1).replace(0, 1), axis=0)
            below = np.zeros(len(shares))
            for number, kind in enumerate(names):
                axes.bar(
                    shares.index,
                    shares[kind],
                    bottom=below,
                    width=0.9,
                    color=KINDS[number % len(KINDS)],
                    label=kind,
                )
                below += shares[kind].to_numpy()
            axes.set(title=arm, xlabel="tenth of the budget", ylabel="share of the evaluations", ylim=(0, 1))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid.flat[len(arms) :]:
            axes.remove()
        _legend(figure, grid[0, 0])
    return figure


def episodes(study: Study) -> Figure:
    """What arms tell of their own course: every number by item evaluations, a thin line a run, the median thick."""
    skipped = {"version", "family", "instance", "seed", "arm", "depth", "budget", "evaluations"}
    numbers = study.episodes.apply(pd.to_numeric, errors="coerce")
    names = [name for name in numbers if name not in skipped and numbers[name].notna().any()][: 2 * FACETS]
    arms = _with_episodes(study)[: len(EXPERTS)]
    columns = max(1, min(FACETS, len(names)))
    lines = max(1, -(-len(names) // columns))
    with canvas(lines, columns, 2.8 * lines + 0.6) as (figure, grid):
        for axes, name in zip(grid.flat, names, strict=False):
            for colour, arm in zip(EXPERTS, arms, strict=False):
                own = study.episodes["arm"] == arm
                table = numbers[own].dropna(subset=[name])
                for _, run in table.groupby(["family", "seed"]):
                    axes.plot(run["evaluations"], run[name], color=colour, linewidth=0.5, alpha=0.35)
                bins = (table["evaluations"] / table["budget"] * 2 * LAST).round()
                middle = table.groupby(bins)[["evaluations", name]].median()
                axes.plot(middle["evaluations"], middle[name], color=colour, linewidth=1.8, label=arm)
            axes.set(title=name, xlabel="item evaluations")
        for axes in grid.flat[len(names) :]:
            axes.remove()
        _legend(figure, grid[0, 0])
    return figure


def _of_several_kinds(study: Study) -> list[str]:
    """Arms that propose in more than one way."""
    several = study.kinds.groupby("arm")["kind"].nunique()
    return _drawn(study, set(several[several > 1].index))


def _with_episodes(study: Study) -> list[str]:
    """Arms that tell of their own course, by item evaluations."""
    return _drawn(study, set(study.episodes["arm"]) if "evaluations" in study.episodes else set())


def _drawn(study: Study, arms: set[str]) -> list[str]:
    """Those of some arms that figures show; all of them where ablations are the only ones."""
    return [arm for arm in study.drawn if arm in arms] or [arm for arm in study.arms if arm in arms]


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(6, max(1, len(shown))))
