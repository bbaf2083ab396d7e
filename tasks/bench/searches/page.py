"""``search.md`` and its figures, from all raw rows there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tasks.bench.markdown import notes, render
from tasks.bench.searches.arms import ARMS, Arm
from tasks.bench.searches.figures import figures
from tasks.bench.searches.rows import SETTINGS, Files
from tasks.bench.searches.sheets import Sheet, overview_sheet, sheets
from tasks.bench.searches.summary import CONFIRM, FRONT, Study, studies
from tasks.project.records import write_text
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
class Section:
    """One profile's part of the page, with depth as an objective or without."""

    study: Study
    results: Path

    @property
    def anchor(self) -> str:
        """Of the heading, as GitHub makes it."""
        return self.study.title.replace(",", "").replace(" ", "-")

    @property
    def of(self) -> str:
        """What its files are named after."""
        return f"{self.study.profile}-{SETTINGS[self.study.depth]}"

    @property
    def command(self) -> str:
        """What makes its rows."""
        options = [f"--profile {self.study.profile}", f"--seeds {self.study.rows['seed'].nunique()}"]
        if self.families > 1:
            options.append(f"--families {self.families}")
        options.append(f"--budget {int(self.study.rows['budget'].iloc[0])}")
        return " ".join([f"hm3 bench {self.study.bench}", *options, *([] if self.study.depth else ["--no-depth"])])

    @property
    def families(self) -> int:
        """How many."""
        return int(self.study.rows["family"].nunique())

    @property
    def seeds(self) -> str:
        """Of the searches, and of made families."""
        own = ", ".join(map(str, sorted(set(self.study.rows["seed"]))))
        made = ", ".join(map(str, sorted(set(self.study.rows["family"]) - {0})))
        return f"search seeds {own}" + (f"; families made with seeds {made}" if made else "; the family is given")

    @property
    def budget(self) -> int:
        """Item evaluations of each run."""
        return int(self.study.rows["budget"].iloc[0])

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Its tables."""
        return sheets(self.study)

    @property
    def arms(self) -> list[Arm]:
        """What is known of the arms that ran."""
        return [ARMS[name] for name in self.study.arms if name in ARMS]

    @property
    def setups(self) -> list[dict[str, str]]:
        """What its rows were measured on, each once."""
        rows = self.study.rows[[*SETUP]].drop_duplicates().to_dict("records")
        return [{str(name): str(value) for name, value in one.items()} for one in rows]

    @property
    def notes(self) -> str:
        """What people have to say about it, from ``notes/BENCH-PROFILE-depth.md`` or ``-tasks.md``, if anything."""
        return notes(self.results, f"{self.study.bench}-{self.of}")

    def draw(self) -> dict[str, str]:
        """Write its figures, of new families the curves alone; their files by caption."""
        stem, drawn = "search" if self.study.bench == FRONT else self.study.bench, {}
        for name, draw in figures(self.study).items():
            if self.study.bench == CONFIRM and name != "curves":
                continue
            file = f"{stem}-{self.of}-{name}.png"
            save_png(draw(self.study), self.results / file)
            drawn[CAPTIONS[name]] = file
        return drawn


def write_page(results: Path) -> Path:
    """Write the page and figures of all profiles that have rows.

    Args:
        results: folder with ``raw/front-PROFILE.csv`` and ``raw/confirm-PROFILE.csv``.

    Returns:
        The page.

    Raises:
        BadInput: a file of rows is damaged.
    """
    sections = [
        Section(study, results)
        for name in measured(results)
        for bench in (FRONT, CONFIRM)
        for study in studies(Files(results / "raw", name, bench))
    ]
    results.mkdir(parents=True, exist_ok=True)
    drawn = [(one, one.draw()) for one in sections]
    overview = overview_sheet({f"[{one.study.title}](#{one.anchor})": one.study for one in sections})
    write_text(
        results / PAGE, render("search.md.j2", sections=drawn, overview=overview, notes=notes(results, "search"))
    )
    return results / PAGE


def measured(results: Path) -> list[str]:
    """Profiles that have rows: those of ``front-PROFILE-families.csv`` and ``confirm-PROFILE-families.csv``."""
    found = {
        path.name.removeprefix(f"{bench}-").removesuffix("-families.csv")
        for bench in (FRONT, CONFIRM)
        for path in (results / "raw").glob(f"{bench}-*-families.csv")
    }
    return sorted(found)
