"""Figures of a run, for the report, for MLflow and for Prefect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, cycle, pairwise
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from models.text import line
from tasks.front.composition import Composition
from tasks.front.front import Front, Member, Reference
from tasks.project.records import read_table
from tasks.project.workspace import Workspace
from tasks.report.style import EXPERTS, FAINT, GRID, INK, canvas, expert_colours, on

TRAINED, HELD_OUT = EXPERTS[0], EXPERTS[3]
JUMP = EXPERTS[3]
SEARCH = {
    "hv": ("Hypervolume of the archive, search split", "fraction"),
    "utility": ("Best utility, mean over the preferences", "utility"),
    "surrogate_error": ("Error of the surrogate on new candidates", "mean absolute error"),
}
"""Columns of ``search.csv`` that are drawn, with title and unit."""
PAIRS = 9
"""Most pairs of objectives that are drawn."""
POINTS = 1_000
"""Most candidates that are drawn: no browser opens a page with a million."""
MEMBERS = 24
"""Most members that are drawn: more cover each other."""


def of_stage(workspace: Workspace, stage: str) -> dict[str, Figure]:
    """Curves of the stages that have any, by name."""
    if stage == "train":
        return {"training": training(pd.read_csv(workspace.run / "train.csv"))}
    if stage == "search":
        return {"search": search(pd.read_csv(workspace.run / "search.csv"))}
    return {}


def of_front(workspace: Workspace) -> dict[str, Figure]:
    """The figures of the front, by name."""
    whole = Front.read(workspace.run)
    front, archive = drawn(whole), candidates(workspace, whole)
    made = {"front": fronts(front, archive), "paths": paths(front, Composition.read(workspace, whole, front.members))}
    return made | ({"depth": depths(front)} if "layers" in front.objectives else {})


def drawn(front: Front) -> Front:
    """The front with the members that are drawn: those that have an alias, and as many of the others, evenly."""
    if len(front.members) <= MEMBERS:
        return front
    named = {one.id for one in front.aliases().values()}
    others = [one.id for one in front.members if one.id not in named]
    count = max(0, MEMBERS - len(named))
    kept = named | {others[place * len(others) // count] for place in range(count)}
    return replace(front, members=tuple(one for one in front.members if one.id in kept))


def candidates(workspace: Workspace, front: Front) -> pd.DataFrame | None:
    """Task scores of the candidates in ``archive.parquet`` that were scored on all items; None where there is none.

    Raises:
        BadInput: it can't be read, or is none of this front.
    """
    if not (workspace.run / "archive.parquet").is_file():
        return None
    found = read_table(workspace.run, "archive.parquet", "search", (), ("items", *front.tasks), only=True)
    whole: pd.DataFrame = found.loc[found["items"] == found["items"].max(), list(front.tasks)]
    return whole


def thinned(archive: pd.DataFrame) -> pd.DataFrame:
    """Evenly many of the candidates, ``POINTS`` at most."""
    return archive.iloc[:: max(1, -(-len(archive) // POINTS))]


def fronts(front: Front, archive: pd.DataFrame | None) -> Figure:
    """Every two task objectives against each other, on `selection` and on `test`; see :func:`candidates`."""
    pairs = conflicts(front, archive)
    columns = min(3, len(pairs))
    blocks = -(-len(pairs) // columns)
    splits = [split for split in ("selection", "test") if split in front.splits]
    shown = None if archive is None else thinned(archive)
    with canvas(len(splits) * blocks, columns, 0.6 + 3.0 * len(splits) * blocks) as (figure, grid):
        for axes in grid.flat:
            axes.set_visible(False)
        for row, split in enumerate(splits):
            for index, (x, y) in enumerate(pairs):
                axes = grid[row * blocks + index // columns, index % columns]
                axes.set_visible(True)
                if shown is not None:
                    axes.scatter(shown[x], shown[y], s=8, color=FAINT, alpha=0.4, linewidths=0, zorder=2)
                for reference, mark in reference_marks(front):
                    axes.plot(reference.scores[split][x], reference.scores[split][y], zorder=3, **mark)
                for number, member, colour in numbered(front):
                    disc(axes, member.scores[split][x], member.scores[split][y], number, colour)
                axes.set(
                    xlabel=label(f"{x} (score)"), ylabel=label(f"{y} (score)"), title=label(f"{split}: {y} by {x}")
                )
        dot = Line2D([], [], marker=".", color=FAINT, linestyle="none", label="archive, search split")
        legend(figure, front, *([] if shown is None else [dot]))
    return figure


def conflicts(front: Front, archive: pd.DataFrame | None) -> list[tuple[str, str]]:
    """Pairs of task objectives; where there are more than ``PAIRS``, those that conflict most in the archive."""
    pairs = list(combinations(front.tasks, 2)) or [(front.tasks[0], front.tasks[0])]
    if len(pairs) > PAIRS and archive is not None:
        correlation = archive[list(front.tasks)].corr().to_numpy()
        place = {name: index for index, name in enumerate(front.tasks)}
        pairs = sorted(pairs, key=lambda pair: (correlation[place[pair[0]], place[pair[1]]], pair))
    return pairs[:PAIRS]


def depths(front: Front) -> Figure:
    """Each task's score on the reported split against the layers that a token passes."""
    split = front.splits[-1]
    columns = min(3, len(front.tasks))
    rows = -(-len(front.tasks) // columns)
    with canvas(rows, columns, 0.6 + 2.9 * rows) as (figure, grid):
        for axes in grid.flat[len(front.tasks) :]:
            axes.set_visible(False)
        for task, axes in zip(front.tasks, grid.flat, strict=False):
            for reference, mark in reference_marks(front):
                axes.plot(front.layers, reference.scores[split][task], zorder=3, **mark)
            ranks = Counter[int]()
            for number, member, colour in sorted(numbered(front), key=lambda one: one[1].scores[split][task]):
                aside = 0.13 * (0, -1, 1)[ranks[member.layers] % 3]  # so that equal depths don't hide each other
                ranks[member.layers] += 1
                disc(axes, member.layers + aside, member.scores[split][task], number, colour)
            axes.set(xlabel="layers that a token passes", ylabel=label(f"{task} (score)"))
            axes.set_title(label(f"{split}: {task} by depth"))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.12)
        legend(figure, front)
    return figure


def paths(front: Front, composition: Composition) -> Figure:
    """The layers that a token passes in each member, coloured by the experts that they come from."""
    colours = expert_colours([one.name for one in front.references if one.kind == "expert"])
    longest = max(one.layers for one in front.members)
    with canvas(1, 1, 0.9 + 0.46 * len(front.members)) as (figure, grid):
        axes = grid[0, 0]
        for row, member in enumerate(front.members):
            ends = composition.shares(member.host, 0)
            cell(axes, -1.2, row, ends, colours, "E")
            cell(axes, member.layers + 0.2, row, ends, colours, "H")
            for position, (model, layer) in enumerate(member.path):
                cell(axes, position, row, composition.shares(model, layer), colours, str(layer))
            for position, (before, after) in enumerate(pairwise(layer for _, layer in member.path), start=1):
                if after != before + 1:
                    jump = f"+{after - before - 1}" if after > before else f"−{before - after + 1}"
                    text(axes, position, row - 0.24, jump, JUMP, fontweight="bold")
                    axes.plot([position] * 2, [row - 0.1, row + 0.4], color=INK, linewidth=1.8, zorder=4)
        axes.set(
            xlim=(-1.3, longest + 1.3),
            ylim=(len(front.members) - 0.4, -0.7),
            xlabel="position on the path",
            ylabel="member",
            title="Layers on the path of each member",
        )
        axes.set_xticks([one + 0.5 for one in range(longest)], [str(one + 1) for one in range(longest)])
        axes.set_yticks(range(len(front.members)), [str(one + 1) for one in range(len(front.members))])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        handles: list[Any] = [Patch(color=colour, label=label(name)) for name, colour in colours.items()]
        for sign, colour, size, meaning in (
            ("$0$", INK, 6, "index of the layer"),
            ("$+k$", JUMP, 12, "skips k layers"),
            ("$−k$", JUMP, 12, "goes back k layers"),
        ):
            handles.append(Line2D([], [], marker=sign, color=colour, linestyle="none", markersize=size, label=meaning))
        handles.append(Line2D([], [], linestyle="none", label="E, H: embedding and head of the host"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.2)
    return figure


def search(table: pd.DataFrame) -> Figure:
    """How the search went, by item evaluations: what it found, and how the surrogate fared."""
    found = [(name, label) for name, label in SEARCH.items() if name in table and table[name].notna().any()]
    rows = -(-len(found) // 2)
    with canvas(rows, 2, 2.7 * rows) as (figure, grid):
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)
        for (name, label), axes in zip(found, grid.flat, strict=False):
            known = table[["evaluations", name]].dropna()
            axes.plot(known["evaluations"] / 1000, known[name], color=EXPERTS[0], linewidth=1.6, drawstyle="steps-post")
            axes.set(xlabel="item evaluations (thousands)", ylabel=label[1], title=label[0])
    return figure


def training(table: pd.DataFrame) -> Figure:
    """Losses in stage `train`, a panel for each thing that is trained."""
    titles = list(dict.fromkeys(table["network"]))
    with canvas(1, len(titles), 3.0) as (figure, grid):
        for title, axes in zip(titles, grid.flat, strict=True):
            own = table[table["network"] == title]
            axes.plot(own["step"], own["loss"], color=TRAINED, linewidth=1.2)
            axes.plot(own["step"], own["held_out"], "--", color=HELD_OUT, linewidth=1.2)
            axes.set(xlabel="optimiser step", ylabel="loss", title=label(title.capitalize()))
        trained = Line2D([], [], color=TRAINED, label="training")
        held_out = Line2D([], [], color=HELD_OUT, linestyle="--", label="held-out candidates")
        figure.legend(handles=[trained, held_out], loc="outside upper center", ncols=2)
    return figure


def reference_marks(front: Front) -> Iterator[tuple[Reference, dict[str, Any]]]:
    """What the front is held against, each with its marker."""
    colours = expert_colours([one.name for one in front.references if one.kind == "expert"])
    shapes = cycle("^v<>ph")
    for one in front.references:
        shape = {"base": "s", "expert": "D"}.get(one.kind) or next(shapes)
        fill = colours.get(one.name, "none") if one.kind in ("base", "expert") else "none"
        mark = {"marker": shape, "markerfacecolor": fill, "markeredgecolor": INK, "markersize": 7, "linestyle": "none"}
        yield one, mark


def depth_colour(front: Front) -> Callable[[int], Any]:
    """A colour for a number of layers, the darker the deeper."""
    found = sorted({one.layers for one in front.members})
    scale = mpl.colormaps["Purples"]
    return lambda layers: scale(0.3 + 0.65 * found.index(layers) / max(1, len(found) - 1))


def numbered(front: Front) -> Iterator[tuple[int, Member, Any]]:
    """Members with their number from 1 and the colour of their depth; the first comes last, to be drawn on top."""
    colour = depth_colour(front)
    for number, member in reversed(list(enumerate(front.members, start=1))):
        yield number, member, colour(member.layers)


def label(name: str) -> str:
    """A name as matplotlib draws it as it is: it takes what stands between dollars for a formula."""
    return line(name).replace("$", r"\$")


def text(axes: Axes, x: float, y: float, words: str, colour: Any, **style: Any) -> None:
    """A few characters, centred."""
    axes.text(x, y, words, ha="center", va="center_baseline", fontsize=7, color=colour, zorder=6, **style)


def disc(axes: Axes, x: float, y: float, number: int, colour: Any) -> None:
    """A member."""
    axes.plot(x, y, "o", markersize=11.5, markerfacecolor=colour, markeredgecolor=INK, markeredgewidth=0.6, zorder=5)
    text(axes, x, y, str(number), on(colour))


def cell(axes: Axes, x: float, row: int, shares: dict[str, float], colours: dict[str, str], words: str) -> None:
    """A layer: its number over the stacked colours of what it was merged from."""
    text(axes, x + 0.5, row - 0.24, words, INK)
    top = row - 0.08
    for name, share in shares.items():
        axes.add_artist(Rectangle((x + 0.03, top), 0.94, 0.46 * share, facecolor=colours.get(name, GRID), linewidth=0))
        top += 0.46 * share


def legend(figure: Figure, front: Front, *more: Line2D) -> None:
    """References by marker, members by depth."""
    handles = [*more, *(Line2D([], [], label=label(one.name), **mark) for one, mark in reference_marks(front))]
    colour = depth_colour(front)
    mark: dict[str, Any] = {"marker": "o", "markersize": 9, "markeredgecolor": INK, "linestyle": "none"}
    for layers in sorted({one.layers for one in front.members}):
        handles.append(Line2D([], [], label=f"member, {layers} layers", markerfacecolor=colour(layers), **mark))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
