"""What it is worth to go on from a search: new preferences, searched for from where it stands or from nothing.

For each the best model is sought in three ways: among the members of the front, without any search; by a search that
goes on from surrogate and archive, as `hm3 choose --search` does; and by HM3 from nothing for this preference
alone, with four times the budget of that. All choose on `selection`; utilities are those on `test`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.agent.hm3 import HM3Settings, Searched, hm3
from models.agent.online import Search
from models.candidate import Candidate
from models.front import Array
from models.search.archive import Archive
from models.search.reward import Reward
from models.search.trial import Trial
from tasks.bench.markdown import Sheet, notes, render, write_pages
from tasks.bench.searches.arms import hm3_settings
from tasks.bench.searches.family import Ground, open_families, without
from tasks.bench.searches.points import members_of
from tasks.bench.searches.rows import VERSION, Files
from tasks.bench.searches.run import archive_table, source_entries
from tasks.bench.searches.statistics import median_interval, signed_rank
from tasks.bench.setup import Setup, describe_setup
from tasks.project.progress import Progress
from tasks.project.records import write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.targeted import best

PREFIX, PAGE = "amortisation", "amortisation.md"

FIRST_SEED, PREFERENCE_SEED = 9501, 9601
"""Seeds of the first search and of the new preferences: none that anybody tunes on."""

NEW, FAMILIES = 20, 3
"""New preferences for each search, and families."""

ALONE, SHARE = 0.4, 0.25
"""Budget of a search from nothing over that of the pipeline, and of one that goes on over that."""

SHORTLIST = 12
"""Candidates that are looked at on `selection`, beside the members of the front."""

WAYS = ("front", "continued", "from_nothing")


@dataclass(frozen=True)
class Pick:
    """The model that is chosen for a preference."""

    utility: float
    """On `test`."""
    evaluations: int
    """Charged for it, beside those of the pipeline."""


@dataclass(frozen=True)
class Finder:
    """Finds models for preferences in a family, in three ways."""

    ground: Ground
    settings: HM3Settings
    tell: Callable[[int], None] | None = None
    """Told how many item evaluations were just charged."""

    def trial(self, budget: int) -> Trial:
        """In which base and experts are scored."""
        lab = EngineLab(self.ground.engine)
        reward = Reward(self.ground.scale(True), lab.layers)
        return Trial(lab, reward, Archive(source_entries(self.ground), lab.counts), budget, on_spent=self.tell)

    def search(self, trial: Trial, rng: np.random.Generator, wanted: Array | None = None) -> Searched:
        """HM3 from nothing, for one preference (K,) alone or for all."""
        only = None if wanted is None else wanted[None]
        return hm3(trial, self.ground.space, self.ground.rules, rng, self.settings, wanted=only)

    def continued(
        self,
        before: Trial,
        done: Searched,
        members: Sequence[Candidate],
        wanted: Array,
        budget: int,
        rng: np.random.Generator,
    ) -> Pick:
        """The search goes on for one preference, with copies of what it has learnt."""
        trial = self.trial(before.spent + budget)
        trial.archive, trial.spent = Archive(before.archive.entries, before.archive.counts.tolist()), before.spent
        trial.recipes.update(before.recipes)
        judge = copy.deepcopy(done.judge)
        Search(trial, judge, self.ground.space, done.paths, wanted[None], self.settings.search, rng, done.actor).run()
        found = best(trial, judge, wanted, SHORTLIST)
        return self.choose([*members, *found], wanted, trial.reward, trial.spent - before.spent)

    def from_nothing(self, wanted: Array, budget: int, rng: np.random.Generator) -> Pick:
        """HM3 for one preference alone."""
        trial = self.trial(budget)
        done = self.search(trial, rng, wanted)
        return self.choose(best(trial, done.judge, wanted, SHORTLIST), wanted, trial.reward, trial.spent)

    def choose(self, candidates: Sequence[Candidate], wanted: Array, reward: Reward, evaluations: int) -> Pick:
        """The one of the greatest utility on `selection`; its utility on `test`."""
        different = list(dict.fromkeys(candidates))
        first = different[int(self.utilities(different, wanted, reward, "selection").argmax())]
        return Pick(float(self.utilities([first], wanted, reward, "test")[0]), evaluations)

    def utilities(self, candidates: Sequence[Candidate], wanted: Array, reward: Reward, split: str) -> Array:
        """(N,) of candidates on a split; the least there is where one failed."""
        scored = self.ground.engine.scored(candidates, split)
        tasks = np.array([one.mean() if not one.failed else np.full(reward.tasks, np.nan) for one in scored])
        depths = np.array([one.depth for one in candidates])
        u = reward.utility(reward.costs(tasks, depths), depths, wanted)
        return np.asarray(np.where(np.isnan(u), -np.inf, u))


def amortise(finder: Finder, seed: int, budget: int, count: int) -> pd.DataFrame:
    """Search as the pipeline does, then for new preferences: a row each.

    Args:
        finder: of models in a family.
        seed: of the search.
        budget: of the pipeline, in item evaluations.
        count: new preferences.
    """
    ground, alone = finder.ground, int(ALONE * budget)
    trial = finder.trial(budget)
    done = finder.search(trial, np.random.default_rng([ground.family.seed, seed]))
    table = archive_table(trial.archive, ground.tasks.names, ground.engine.layers)
    members = [one.candidate for one in members_of(ground, ground.scale(True), table)]
    drawn = np.random.default_rng([PREFERENCE_SEED, ground.family.seed, seed])
    rows: list[dict[str, Any]] = []
    for number, wanted in enumerate(drawn.dirichlet(np.ones(len(trial.reward.scale.names)), size=count)):
        kept = set(ground.engine.recipes)
        rng = np.random.default_rng([ground.family.seed, seed, number])
        picks = (
            finder.choose(members, wanted, trial.reward, 0),
            finder.continued(trial, done, members, wanted, int(SHARE * alone), rng),
            finder.from_nothing(wanted, alone, rng),
        )
        without(ground, [name for name in ground.engine.recipes if name not in kept])
        rows.append({"preference": number})
        rows[-1] |= {f"weight_{name}": w for name, w in zip(trial.reward.scale.names, wanted, strict=True)}
        for way, pick in zip(WAYS, picks, strict=True):
            rows[-1] |= {way: pick.utility, f"evaluations_{way}": pick.evaluations}
    without(ground, list(trial.recipes))
    return pd.DataFrame(rows)


def measure(
    user: Workspace,
    progress: Progress,
    families: int | None = None,
    seeds: int | None = None,
    budget: int | None = None,
    count: int = NEW,
    settings: HM3Settings | None = None,
) -> tuple[Path, list[Sheet]]:
    """Run what is missing and write the page again.

    Args:
        user: project and profile.
        progress: shows what is done.
        families: to be made; by default 3.
        seeds: searches on each family; by default one.
        budget: of the pipeline, in item evaluations; by default ``search.budget``.
        count: new preferences.
        settings: of HM3; by default those of the profile.

    Returns:
        The page, and the table of this profile.
    """
    results, state = user.root / "docs" / "results", user.state / "bench" / "front" / user.name
    files = Files(results / "raw", user.name, PREFIX)
    setup = describe_setup(user.root, FIRST_SEED)
    grounds = [one.open() for one in open_families(user, state, families or FAMILIES, False, progress)]
    budget, settings = budget or user.params.search.budget, settings or hm3_settings(user.params)
    known, key = files.read(), ["family", "instance", "seed", "budget"]
    done = set(map(tuple, known[key].astype(str).to_numpy()))
    cases = [(ground, seed) for ground in grounds for seed in range(FIRST_SEED, FIRST_SEED + (seeds or 1))]
    each = int(budget * (1 + count * ALONE * (1 + SHARE)))
    with progress.bar("bench amortisation", len(cases) * each, "item evaluations") as bar:
        for number, (ground, seed) in enumerate(cases, start=1):
            case = (ground.family.seed, ground.digest, seed, budget)
            if tuple(map(str, case)) not in done:
                rows = amortise(Finder(ground, settings, bar.advance), seed, budget, count)
                append(files, dict(zip(key, case, strict=True)), rows, setup)
            bar.advance(number * each - bar.completed)
    made = sheet(files)
    return write_pages(results, texts(results)), [made] if made else []


def append(files: Files, case: dict[str, Any], rows: pd.DataFrame, setup: Setup) -> None:
    """Add the rows of a search."""
    keyed = pd.DataFrame([{"version": VERSION, **case, **row, **setup.about()} for row in rows.to_dict("records")])
    known = files.read()
    write_table(files.path(), pd.concat([known, keyed], ignore_index=True) if len(known) else keyed)


def sheet(files: Files) -> Sheet | None:
    """What continuing reaches, against searching from nothing and against not searching; None without rows."""
    rows = files.read()
    if not len(rows):
        return None
    front, own, nothing = (rows[way].to_numpy(dtype=float) for way in WAYS)
    regret = np.max([front, own, nothing], axis=0) - front
    shown = (
        line("search from nothing, the whole budget", nothing, own - nothing, rows["evaluations_from_nothing"]),
        line("continued, a quarter of it", own, None, rows["evaluations_continued"]),
        line("member of the front, no search", front, own - front, rows["evaluations_front"]),
    )
    at_least = float(np.mean(own >= nothing - 1e-12))
    searches = len(rows[["family", "seed"]].drop_duplicates())
    note = (
        f"{len(rows)} new preferences; families and seeds: {searches}. Continuing does at least as well as searching "
        f"from nothing for {at_least:.0%} of the preferences. Regret of a member of the front, against the best of the "
        f"three: median {np.median(regret):.3f}, nine tenths below {np.quantile(regret, 0.9):.3f}. Intervals are of "
        "the median (bootstrap), p is Wilcoxon's."
    )
    columns = ("way", "item evaluations", "median utility", "continued is better by", "p")
    return Sheet(files.profile, note, columns, shown)


def line(title: str, utility: Array, gain: Array | None, spent: pd.Series) -> tuple[str, ...]:
    """A row of the table."""
    words = ("", "")
    if gain is not None:
        low, high = median_interval(gain)
        words = (f"{np.median(gain):+.3f} ({low:+.3f} to {high:+.3f})", f"{signed_rank(gain):.2g}")
    return (title, f"{float(spent.median()):,.0f}", f"{np.median(utility):.3f}", *words)


def texts(results: Path) -> dict[str, str]:
    """The page from all raw rows there are and what ``notes/amortisation.md`` says of them, by the name of its file."""
    names = sorted(path.stem.removeprefix(f"{PREFIX}-") for path in (results / "raw").glob(f"{PREFIX}-*.csv"))
    found = [sheet(Files(results / "raw", name, PREFIX)) for name in names]
    return {PAGE: render("amortisation.md.j2", sheets=[one for one in found if one], notes=notes(results, PREFIX))}
