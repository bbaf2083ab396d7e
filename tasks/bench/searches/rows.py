"""Raw results of `hm3 bench front`: CSV files that are committed, from which every table and figure is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tasks.bench.searches.family import Ground
from tasks.bench.searches.points import Points
from tasks.bench.searches.run import Case
from tasks.bench.setup import Setup, read_rows
from tasks.project.records import write_table

VERSION = 1
"""Raise it when rows no longer compare with older ones."""

KEY = ["family", "instance", "seed", "arm", "depth", "budget"]
"""Columns that name a run."""

PARTS = ("families", "members", "kinds", "episodes", "cuts")
"""Files beside the rows themselves, ``front-PROFILE-PART.csv``."""


SETTINGS = {True: "depth", False: "tasks"}
"""What files are named after, by whether depth is an objective."""


@dataclass(frozen=True)
class Files:
    """The files of one profile."""

    folder: Path
    profile: str
    prefix: str = "front"

    def path(self, part: str = "") -> Path:
        """``front-PROFILE.csv``, or one of its parts."""
        return self.folder / f"{self.prefix}-{self.profile}{'-' if part else ''}{part}.csv"

    def paths(self, part: str) -> list[Path]:
        """The files of a part: two of members, with depth as an objective and without, as git likes no large ones."""
        return list(dict.fromkeys(self.path_of(part, depth) for depth in SETTINGS))

    def path_of(self, part: str, depth: bool) -> Path:
        """The file of a part for runs with depth as an objective, or without."""
        return self.path(f"{part}-{SETTINGS[depth]}" if part == "members" else part)

    def read(self, part: str = "") -> pd.DataFrame:
        """Rows of this version, none if there is no file.

        Raises:
            BadInput: a file is damaged.
        """
        found = [read_rows(path, VERSION) for path in self.paths(part) if path.is_file()]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["version", *KEY])

    def done(self) -> set[Case]:
        """Runs of which there are rows."""
        table = self.read()
        return {case_of(row) for row in table[KEY].drop_duplicates().itertuples(index=False)}

    def forget(self, arms: set[str]) -> None:
        """Drop what these arms have measured."""
        for path in (path for part in ("", *PARTS) if part != "families" for path in self.paths(part)):
            if path.is_file():
                table = read_rows(path, VERSION)
                write_table(path, table[~table["arm"].isin(arms)])

    def append(self, case: Case, points: Points, episodes: pd.DataFrame, setup: Setup, group: str) -> None:
        """Add a run; its rows come last, so that what has rows has everything."""
        self._add("members", case, points.members)
        self._add("kinds", case, points.kinds)
        if len(points.cuts):
            self._add("cuts", case, points.cuts)
        if len(episodes):
            self._add("episodes", case, episodes)
        self._add("", case, points.rows.assign(group=group, **setup.about()))

    def describe(self, ground: Ground) -> None:
        """Keep ideal and nadir of a family."""
        layers = ground.workspace.profile.layers
        scale = ground.scale(layers is not None)
        rows = pd.DataFrame({"objective": scale.names, "ideal": scale.ideal, "nadir": scale.nadir})
        rows.insert(0, "version", VERSION)
        rows.insert(1, "family", ground.family.seed)
        rows.insert(2, "instance", ground.digest)
        rows.insert(3, "layers", ground.engine.layers)
        known = self.read("families")
        if ground.digest not in set(known["instance"]):
            write_table(self.path("families"), pd.concat([known, rows]) if len(known) else rows)

    def _add(self, part: str, case: Case, table: pd.DataFrame) -> None:
        """Rows of a run in place of those that an interrupted run left."""
        keyed = table.copy()
        for place, name in enumerate(KEY):
            value = getattr(case, name)
            keyed.insert(place, name, int(value) if name == "depth" else value)
        keyed.insert(0, "version", VERSION)
        path = self.path_of(part, case.depth)
        known = read_rows(path, VERSION) if path.is_file() else pd.DataFrame()
        if len(known):
            same = [case_of(row) == case for row in known[KEY].itertuples(index=False)]
            known = known[[not one for one in same]]
        write_table(path, pd.concat([known, keyed], ignore_index=True) if len(known) else keyed)


def case_of(row: object) -> Case:
    """The run that a row with the columns of ``KEY`` belongs to."""
    values = {name: getattr(row, name) for name in KEY}
    return Case(
        int(values["family"]),
        str(values["instance"]),
        int(values["seed"]),
        str(values["arm"]),
        bool(int(values["depth"])),
        int(values["budget"]),
    )


def profiles(raw: Path, prefix: str) -> list[str]:
    """Those that have rows of a benchmark."""
    names = [path.name for path in raw.glob(f"{prefix}-*-families.csv")]
    return sorted(name.removeprefix(f"{prefix}-").removesuffix("-families.csv") for name in names)


def heading(profile: str, depth: bool) -> str:
    """What a comparison is called, with depth as an objective or without."""
    return f"{profile}, {'with depth as an objective' if depth else 'task scores alone'}"


def latest(table: pd.DataFrame, depth: bool) -> pd.DataFrame:
    """Rows with depth or without that compare: those of the budget, and of each family, that were measured last."""
    own = table[table["depth"] == int(depth)]
    if not len(own):
        return own
    own = own[own["budget"] == own["budget"].iloc[-1]]
    last = own.groupby("family")["instance"].last()
    same = (own["instance"] == own["family"].map(last)).to_numpy()
    compared: pd.DataFrame = own.loc[same]
    return compared.reset_index(drop=True)
