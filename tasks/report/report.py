"""The report of a front: one HTML file that needs nothing else, in the colours of light and dark screens."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from models.files import reading, require_regular
from models.text import plain
from tasks.front.composition import Composition, recipe_text
from tasks.front.front import Front, Member, Reference
from tasks.front.running_costs import RunningCosts, running_costs
from tasks.front.table import by_member, given_up
from tasks.project.progress import Progress
from tasks.project.records import read_json, write_text
from tasks.project.workspace import Workspace
from tasks.report import figures
from tasks.report.style import inline_svg

KINDS = {"base": "base", "expert": "expert", "baseline": "plain merge"}


@dataclass(frozen=True)
class Score:
    """One number of the table."""

    text: str
    other: str
    """The same on `selection`."""
    share: int
    """Where it lies between the worst and the best of its column, in percent."""
    best: bool
    leads: bool
    """No member has more."""


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    number: int | None
    name: str
    kind: str
    layers: int
    costs: tuple[str, ...]
    """What it takes to run, a value a column."""
    scores: tuple[Score, ...]
    reported: tuple[str, ...]
    gives_up: str
    """What it loses at most on a task against the balanced model of full depth."""
    serves: tuple[tuple[str, int], ...] = ()
    """Objective and weight in percent, the greatest first."""
    preference: str = ""
    mergekit: str = ""
    aliases: tuple[str, ...] = ()
    made_of: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class Bar:
    """Hypervolume of a set of models, on `selection` and on the reported split."""

    name: str
    selection: float
    reported: float
    own: bool
    """The front itself."""


@dataclass(frozen=True)
class Section:
    """A figure with what it shows, or what is missing for it."""

    title: str
    text: str
    svg: Markup | None
    missing: str = ""


def write_report(workspace: Workspace, progress: Progress | None = None) -> Path:
    """Write ``runs/PROFILE/report.html``; returns its path. What models take to run is measured if it isn't known yet.

    Raises:
        BadInput: there is no front, or a recipe of a member is missing.
    """
    front = Front.read(workspace.run)
    shown = figures.drawn(front)
    composition = Composition.read(workspace, front, shown.members)
    costs = running_costs(workspace, front, progress)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        front=front,
        profile=workspace.profile,
        split=front.splits[-1],
        bars=hypervolumes(front),
        rows=rows(workspace, front, shown.members, composition, costs),
        costs=costs,
        shown=len(shown.members),
        reported=reported_names(front),
        merges={name: words for one in shown.members for name, words in composition.merges(one).items()},
        sections=sections(workspace, shown, composition),
        spent=read_json(workspace.run / "metrics.json").get("item_evaluations"),
        noise=noise(workspace, front),
        version=importlib.metadata.version("hm3"),
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    path = workspace.run / "report.html"
    write_text(path, page)
    return path


def hypervolumes(front: Front) -> list[Bar]:
    """The front, and what it is held against."""
    found = [one for one in front.members if one.kind not in KINDS]
    sets: dict[str, list[Member] | list[Reference]] = {
        "front": list(front.members),
        "front without base, experts and plain merges": found,
        "base, experts and plain merges": list(front.references),
        "base and experts": [one for one in front.references if one.kind != "baseline"],
        "plain merges": [one for one in front.references if one.kind == "baseline"],
    }
    return [
        Bar(name, front.hypervolume(own, "selection"), front.hypervolume(own, front.splits[-1]), name == "front")
        for name, own in sets.items()
        if own
    ]


def reported_names(front: Front) -> list[str]:
    """The further metrics that members carry."""
    return list(dict.fromkeys(name for one in front.members for name in one.reported))


def rows(
    workspace: Workspace, front: Front, members: Sequence[Member], composition: Composition, costs: RunningCosts
) -> list[Row]:
    """Some members of the front, then base, experts and plain merges, held against the whole front."""
    models: list[Member | Reference] = [*front.members, *front.references]
    split = front.splits[-1]
    columns = {name: [one.scores[split][name] for one in models] for name in front.tasks}
    lows, highs = ({name: pick(column) for name, column in columns.items()} for pick in (min, max))
    leaders = {name: max(column[: len(front.members)]) for name, column in columns.items()}
    aliases, further = by_member(front), reported_names(front)

    def score(one: Member | Reference, name: str) -> Score:
        value, low, high = one.scores[split][name], lows[name], highs[name]
        share = round(100 * (value - low) / (high - low)) if high > low else 100
        leads = isinstance(one, Member) and value == leaders[name]
        return Score(f"{value:.3f}", f"{one.scores['selection'][name]:.3f}", share, value == high, leads)

    def row(number: int, one: Member) -> Row:
        weights = [(name, round(100 * weight)) for name, weight in one.serves.items()]
        role = "corner" if one.corner else "member"
        return Row(
            number=number,
            name=one.id,
            kind=role if one.kind not in KINDS else f"{role}: {KINDS[one.kind]} {one.name}",
            layers=one.layers,
            costs=costs.cells(one.candidate.depth),
            scores=tuple(score(one, name) for name in front.tasks),
            reported=tuple(f"{one.reported[name]:.3g}" if name in one.reported else "" for name in further),
            gives_up=given_up(front, one, split),
            serves=tuple(pair for pair in sorted(weights, key=lambda pair: -pair[1]) if pair[1] > 0),
            preference=one.preference,
            mergekit=one.mergekit,
            aliases=tuple(aliases[one.id]),
            made_of=composition.describe(one),
            recipe=recipe_text(workspace.run, one),
        )

    def reference(one: Reference) -> Row:
        scores = tuple(score(one, name) for name in front.tasks)
        taken = costs.cells(front.layers)
        lost = given_up(front, one, split)
        return Row(None, one.name, KINDS[one.kind], front.layers, taken, scores, ("",) * len(further), lost)

    return [*(row(*pair) for pair in enumerate(members, start=1)), *(reference(one) for one in front.references)]


def noise(workspace: Workspace, front: Front) -> str:
    """How far a score on the reported split may be off; empty if the front doesn't say."""
    counts = {one.name: int(getattr(one.items, front.splits[-1])) for one in workspace.profile.objectives}
    errors = [f"{name} ±{error:.3f} ({counts[name]} items)" for name, error in front.errors.items() if name in counts]
    return ", ".join(errors)


def sections(workspace: Workspace, front: Front, composition: Composition) -> list[Section]:
    """The figures."""
    run = workspace.run
    found = figures.candidates(workspace, front)
    return [
        Section(
            "Trade-offs",
            "Each panel sets two objectives against each other; better is up and to the right. The upper rows show the "
            "split by which the members were chosen, the lower rows the one that nobody looked at before. A member "
            "that looks dominated in one panel is better in another, or shallower." + told(found),
            inline_svg(figures.fronts(front, found), "Members and references, by pairs of objectives"),
        ),
        *(
            [
                Section(
                    "Scores and depth",
                    "What a member scores, by the number of layers that a token passes: fewer layers cost less to run.",
                    inline_svg(figures.depths(front), "Scores by number of layers"),
                )
            ]
            if "layers" in front.objectives
            else []
        ),
        Section(
            "Paths",
            "The layers that a token passes in each member, from left to right. A layer of one colour is an expert's "
            "own; stripes show the experts that were merged into it, in proportion to their weights.",
            inline_svg(figures.paths(front, composition), "Inference path of each member"),
        ),
        curve(run / "search.csv", "Search", SEARCH, figures.search),
        curve(run / "train.csv", "Training", TRAINING, figures.training),
    ]


def told(archive: pd.DataFrame | None) -> str:
    """What is to be said of the dots."""
    if archive is None:
        return " archive.parquet is missing, so that the candidates aren't shown."
    if len(archive) <= figures.POINTS:
        return ""
    shown = len(figures.thinned(archive))
    return f" The dots are {shown:,} of the {len(archive):,} candidates that were scored on all items, evenly spread."


SEARCH = (
    "How the hypervolume of the archive grew with the item evaluations that were spent (one candidate scored on one "
    "item), on the search split."
)
TRAINING = (
    "The actor's loss by step, each under a preference of its own; and how the surrogate was fitted to what was scored "
    "before the search: negative log likelihood where it is fitted, "
    "and the share of the variance that it leaves unexplained on candidates that were held out."
)


def curve(path: Path, title: str, words: str, draw: Callable[[pd.DataFrame], Figure]) -> Section:
    """A figure from a table, or a word on what is missing."""
    if not path.is_file():
        missing = f"{path.name} is missing: stage `{path.stem}` writes it, or `dvc pull` fetches it."
        return Section(title, words, None, missing)
    require_regular(path, path.name, TABLE_BYTES)
    with reading(path.name, f"run stage `{path.stem}` again"):
        return Section(title, words, inline_svg(draw(pd.read_csv(path)), title))


TABLE_BYTES = 2**26
"""Largest table that is drawn."""
