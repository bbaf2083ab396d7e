"""What there is to gain: generous searches of one kind of model each, without learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from models.merge.space import RecipeSpace
from models.search.environment import PathRules
from models.search.trial import Trial
from tasks.bench.baselines.deletion import greedy_deletion
from tasks.bench.baselines.paths import nsga2_paths
from tasks.bench.baselines.recipes import layered_recipes, nsga2_recipes
from tasks.bench.markdown import Sheet, notes, render
from tasks.bench.searches.arms import Arm, Rows
from tasks.bench.searches.rows import Files, heading, latest, profiles
from tasks.bench.searches.sheets import spread

PREFIX, PAGE = "headroom", "headroom.md"

FACTOR = 10
"""Budget over that of a search."""

PLATEAU = "recipes"
"""What the others are compared with."""


def ordered(rules: PathRules) -> PathRules:
    """Rules under which every layer index comes up once at most, in its order."""
    return replace(rules, backward=0, repeats=1, stretch=1.0)


def free(rules: PathRules) -> PathRules:
    """Rules under which any layer may follow any."""
    return replace(rules, mask="none")


def under(rules: Callable[[PathRules], PathRules]) -> Callable[..., Rows | None]:
    """NSGA-II over paths under other rules than those of the profile."""

    def run(trial: Trial, space: RecipeSpace, own: PathRules, rng: np.random.Generator) -> None:
        nsga2_paths(trial, space, rules(own), rng)

    return run


_POOL = "NSGA-II, after NSGA-II over recipes with 35 % of the budget; pool: experts and 3 anchors"

HEADROOM: dict[str, Arm] = {
    name: Arm(name, title, settings, run, "baseline")
    for name, title, settings, run in (
        (PLATEAU, "recipes", "NSGA-II over methods and parameters", nsga2_recipes),
        ("layered", "per-layer recipes", "NSGA-II, from recipes at 40 % of the budget on", layered_recipes),
        ("ordered", "ordered paths", _POOL, under(ordered)),
        (
            "free",
            "free paths",
            f"{_POOL}; any order, a layer index twice",
            under(free),
        ),
        ("deletion", "deleted layers", "greedy deletion from the best recipes", greedy_deletion),
    )
}
"""A search for each kind of model."""


def sheet(files: Files, depth: bool) -> Sheet | None:
    """Hypervolume on `test` of each kind at a tenth of the budget and at the whole; None without rows."""
    rows = latest(files.read(), depth)
    if not len(rows):
        return None
    value = "hv" if depth else "hv_tasks"
    first, last = (rows[rows["tenth"] == tenth].set_index(["arm", "family", "seed"])[value] for tenth in (1, 10))
    shown = []
    for name, arm in HEADROOM.items():
        if name not in last.index.get_level_values("arm"):
            continue
        gain = (last[name] - last[PLATEAU]).dropna() if PLATEAU in last.index.get_level_values("arm") else pd.Series()
        shown.append(
            (
                arm.title,
                str(len(last[name])),
                spread(first[name]),
                spread(last[name]),
                "" if name == PLATEAU or not len(gain) else spread(gain, "{:+.3f}"),
            )
        )
    budget = int(rows["budget"].iloc[0])
    columns = ("what is searched", "runs", f"HV at {budget // 10:,}", f"HV at {budget:,}", "over recipes")
    note = "Medians (quartiles) over families and seeds; item evaluations in the head."
    return Sheet(heading(files.profile, depth), note, columns, tuple(shown))


def texts(results: Path) -> dict[str, str]:
    """The page from all raw rows there are, with what ``notes/headroom.md`` says of them, by the name of its file."""
    raw = results / "raw"
    found = [sheet(Files(raw, name, PREFIX), depth) for name in profiles(raw, PREFIX) for depth in (True, False)]
    arms, said = HEADROOM.values(), notes(results, PREFIX)
    return {PAGE: render("headroom.md.j2", sheets=[one for one in found if one], arms=arms, notes=said)}
