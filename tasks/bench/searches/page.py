"""``search.md``, a page a study and their figures, from all raw rows there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from tasks.bench.markdown import notes, render, write_pages
from tasks.bench.searches.arms import ARMS
from tasks.bench.searches.figures import figures
from tasks.bench.searches.rows import SETTINGS, Files, profiles
from tasks.bench.searches.sheets import cuts_overview_sheet, overview_sheet, sheets
from tasks.bench.searches.summary import CONFIRM, FRONT, Study, studies
from tasks.bench.setup import setups
from tasks.report.style import save_png

PAGE = "search.md"
SETUP = ("commit", "hm3", "torch", "tools", "cores", "threads", "cpu")
CAPTIONS = {
    "curves": "Hypervolume of the anytime front by item evaluations",
    "fronts": "Fronts in one family, with the seed of the median run",
    "paths": "Layers on the paths of HM3's members",
    "kinds": "Kinds of proposals by share of the item evaluations",
    "episodes": "What the searches tell of their own course",
}


@dataclass(frozen=True)
class StudyPage:
    """The page of one profile, with depth as an objective or without."""

    study: Study
    results: Path

    @property
    def of(self) -> str:
        """Profile and objectives."""
        return f"{self.study.profile}-{SETTINGS[self.study.depth]}"

    @property
    def stem(self) -> str:
        """What it and its figures are called."""
        return f"{'search' if self.study.bench == FRONT else self.study.bench}-{self.of}"

    @property
    def command(self) -> str:
        """What makes its rows."""
        rows = self.study.rows
        options = [f"--profile {self.study.profile}", f"--seeds {rows['seed'].nunique()}"]
        if (families := rows["family"].nunique()) > 1:
            options.append(f"--families {families}")
        options.append(f"--budget {int(rows['budget'].iloc[0])}")
        return " ".join([f"hm3 bench {self.study.bench}", *options, *([] if self.study.depth else ["--no-depth"])])

    @property
    def seeds(self) -> str:
        """Of the searches, and of made families."""
        own = ", ".join(map(str, sorted(set(self.study.rows["seed"]))))
        made = ", ".join(map(str, sorted(set(self.study.rows["family"]) - {0})))
        return f"search seeds {own}" + (f"; families made with seeds {made}" if made else "; the family is given")

    @cached_property
    def drawings(self) -> dict[str, Callable[[Study], Figure]]:
        """Its figures by name, of new families the curves alone."""
        every = figures(self.study)
        return {name: draw for name, draw in every.items() if self.study.bench == FRONT or name == "curves"}

    def text(self) -> str:
        """The page, with what people say of it in ``notes/BENCH-PROFILE-depth.md`` or ``-tasks.md``."""
        return render(
            "study.md.j2",
            page=self,
            budget=int(self.study.rows["budget"].iloc[0]),
            notes=notes(self.results, f"{self.study.bench}-{self.of}"),
            figures={CAPTIONS[name]: f"{self.stem}-{name}.png" for name in self.drawings},
            sheets=sheets(self.study),
            arms=[ARMS[name] for name in self.study.arms if name in ARMS],
            setups=setups(self.study.rows, SETUP),
        )

    def draw(self) -> None:
        """Write its figures."""
        for name, draw in self.drawings.items():
            save_png(draw(self.study), self.results / f"{self.stem}-{name}.png")


def study_pages(results: Path) -> list[StudyPage]:
    """A page for each study that has rows in ``raw/front-PROFILE.csv`` or ``raw/confirm-PROFILE.csv``.

    Raises:
        BadInput: a file of rows is damaged.
    """
    raw = results / "raw"
    names = sorted({name for bench in (FRONT, CONFIRM) for name in profiles(raw, bench)})
    found = (studies(Files(raw, name, bench)) for name in names for bench in (FRONT, CONFIRM))
    return [StudyPage(study, results) for several in found for study in several]


def texts(results: Path, pages: list[StudyPage]) -> dict[str, str]:
    """The overview and the pages of all studies, by the names of their files."""
    named = {f"[{one.study.title}]({one.stem}.md)": one.study for one in pages}
    found = [overview_sheet(named), cuts_overview_sheet(named)]
    others = [title for title in named if title not in {row[0] for row in found[0].rows}]
    overview = render("search.md.j2", sheets=found, others=others, notes=notes(results, "search"))
    return {PAGE: overview, **{f"{one.stem}.md": one.text() for one in pages}}


def write_searches(results: Path) -> Path:
    """Write the pages and figures of all profiles that have rows.

    Returns:
        The overview.

    Raises:
        BadInput: a file of rows is damaged.
    """
    pages = study_pages(results)
    overview = write_pages(results, texts(results, pages))
    for one in pages:
        one.draw()
    return overview
