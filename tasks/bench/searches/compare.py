"""Runs every arm on every family with every seed: what is finished is kept, what is scored is never scored again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.errors import BadInput
from tasks.bench.markdown import Sheet, write_pages
from tasks.bench.process import Usage, timed
from tasks.bench.searches.arms import ARMS, Arm, hm3_arms, hm3_settings
from tasks.bench.searches.family import FIRST_FAMILY, FIRST_UNSEEN, Ground, open_families, without
from tasks.bench.searches.headroom import FACTOR, HEADROOM, PREFIX, sheet, texts
from tasks.bench.searches.page import write_searches
from tasks.bench.searches.points import Points, anytime
from tasks.bench.searches.rows import Files
from tasks.bench.searches.run import Case, Finished, run_arm
from tasks.bench.searches.summary import CONFIRM, FRONT, Study, studies
from tasks.bench.setup import describe_setup
from tasks.project.progress import Bar, Progress
from tasks.project.workspace import Workspace

FIRST_SEED = 9001
"""Seed of the first search: none that anybody tunes on."""

SEEDS, FAMILIES = 4, 3
SMALL = 2, 1
"""Seeds and families of a small run."""

SMALL_CANDIDATES = 20
"""Candidates that the budget of a small run is good for."""

TIMED_ITEMS = 32
"""Items a task on which the plan measures what an item evaluation takes."""


@dataclass(frozen=True)
class Wanted:
    """What the user asks for."""

    seeds: int | None = None
    """Of the searches, by default 4, of headroom 1."""
    families: int | None = None
    """To be made, by default 3."""
    arms: tuple[str, ...] = ()
    """All if none is named."""
    budget: int | None = None
    """Item evaluations of a run; by default ``search.budget``, of headroom ten times that."""
    depth: bool = True
    fresh: bool = False
    small: bool = False
    kind: str = FRONT
    """Of comparison, one of ``KINDS``."""

    def chosen(self) -> list[Arm]:
        """The arms.

        Raises:
            BadInput: one is unknown, or a number makes no sense.
        """
        known = KINDS[self.kind].arms
        for name in self.arms:
            if name not in known:
                raise BadInput(f"--arm {name}: unknown; there are {', '.join(known)}")
        for name, value in (("--seeds", self.seeds), ("--families", self.families), ("--budget", self.budget)):
            if value is not None and value < 1:
                raise BadInput(f"{name} {value}: must be 1 or more")
        return [known[name] for name in dict.fromkeys(self.arms or known)]


@dataclass(frozen=True)
class Plan:
    """What is left to do, and what it takes."""

    runs: int
    finished: int
    budget: int
    candidates: int
    """Candidates that the budget scores on all items."""
    usage: Usage
    """Of one item evaluation of a merged model."""
    evaluations: int
    """Item evaluations on all splits, if no score were known already."""

    @property
    def core_hours(self) -> float:
        """Processor time that the rest takes at most, the arms' own left out."""
        return self.evaluations * self.usage.cpu / 3600

    def __str__(self) -> str:
        left = self.runs - self.finished
        return (
            f"{self.runs} runs of {self.budget:,} item evaluations ({self.candidates} candidates on all items), "
            f"{self.finished} of them finished. An item evaluation takes {1000 * self.usage.wall:.3g} ms "
            f"({1000 * self.usage.cpu:.3g} ms of a core), so {left} runs take at most "
            f"{self.core_hours:.2g} core-hours, selection and test included; arms share scores, and take less."
        )


@dataclass(frozen=True)
class Outcome:
    """What is known after a run."""

    studies: list[Study]
    page: Path
    sheets: Sequence[Sheet] = ()


def report_front(files: Files, results: Path) -> Outcome:
    """Studies and page of the arms."""
    return Outcome(studies(files), write_searches(results))


def report_headroom(files: Files, results: Path) -> Outcome:
    """Tables and page of the headroom."""
    made = [sheet(files, depth) for depth in (True, False)]
    return Outcome([], write_pages(results, texts(results)), [one for one in made if one])


@dataclass(frozen=True)
class Kind:
    """What a kind of comparison runs by default, and what becomes of its rows."""

    arms: dict[str, Arm]
    seeds: int
    factor: int
    """Budget over ``search.budget``."""
    report: Callable[[Files, Path], Outcome]
    first: int = FIRST_FAMILY
    """Seed of the first made family."""


KINDS = {
    FRONT: Kind(ARMS, SEEDS, 1, report_front),
    CONFIRM: Kind(ARMS, SEEDS, 1, report_front, FIRST_UNSEEN),
    PREFIX: Kind(HEADROOM, 1, FACTOR, report_headroom),
}


def compare_fronts(
    user: Workspace, wanted: Wanted, progress: Progress, show: Callable[[Plan], None] = lambda _: None
) -> Outcome:
    """Run what is missing and write the page of all results again.

    Args:
        user: project and profile.
        wanted: seeds, families and arms.
        progress: shows what is done.
        show: is given the plan before anything is searched.

    Raises:
        BadInput: an arm is unknown, the family isn't there or is the only one, or a file of rows is damaged.
        Failed: too many made families miss their gates.
    """
    if wanted.kind == CONFIRM and user.profile.made is None:
        raise BadInput(f"profiles/{user.name}.yaml: its family is given, so there is no other one to confirm on")
    kind, own = KINDS[wanted.kind], {one.name: one for one in hm3_arms(hm3_settings(user.params))}
    arms = [own.get(one.name, one) for one in wanted.chosen()]
    state = user.state / "bench"
    results = state / "small" if wanted.small else user.root / "docs" / "results"
    files = Files(results / "raw", user.name, wanted.kind)
    folder = state / "front" / user.name
    if wanted.small:
        shutil.rmtree(results / "raw", ignore_errors=True)
    if wanted.small or wanted.fresh:
        forget(files, folder / ("small" if wanted.small else "runs"), arms)
    seeds, count = SMALL if wanted.small else (kind.seeds, FAMILIES)
    seeds, count = wanted.seeds or seeds, wanted.families or count
    families = open_families(user, folder, count, wanted.small, progress, kind.first)
    grounds = [family.open() for family in families]
    budget = wanted.budget or user.params.search.budget * kind.factor
    if wanted.small and wanted.budget is None:
        budget = SMALL_CANDIDATES * grounds[0].engine.cost("search")
    for ground in grounds:
        ground.scale(wanted.depth)  # refused before anything is computed
        if budget < ground.engine.cost("search"):
            raise BadInput(f"--budget {budget}: one candidate takes {ground.engine.cost('search')}; raise it")
    done = files.done()
    cases = [
        (ground, arm, case)
        for ground in grounds
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for arm in arms
        if (case := Case(ground.family.seed, ground.digest, seed, arm.name, wanted.depth, budget))
    ]
    left = [(ground, arm, case) for ground, arm, case in cases if case not in done]
    show(plan(grounds[0], len(cases), len(cases) - len(left), budget))
    setup = describe_setup(user.root, FIRST_SEED)
    with progress.bar(f"bench {wanted.kind}", len(cases) * budget, "item evaluations") as bar:
        bar.advance((len(cases) - len(left)) * budget)
        for ground, arm, case in left:
            files.describe(ground)
            finished, points = one_run(ground, arm, case, folder / ("small" if wanted.small else "runs"), bar)
            files.append(case, points, finished.episodes, setup, arm.group)
            last = points.rows.iloc[-1]
            number = case.seed - FIRST_SEED + 1
            progress.message(
                f"{arm.name}, family {case.family}, seed {number}: HV {last['hv' if case.depth else 'hv_tasks']:.3f}, "
                f"{int(last['scored'])} candidates on all items, {last['outside_seconds']:.1f} s outside of scoring"
            )
    return kind.report(files, results)


def one_run(ground: Ground, arm: Arm, case: Case, folder: Path, bar: Bar) -> tuple[Finished, Points]:
    """Search, or take what a search has left, and look at its fronts; the pool forgets its recipes afterwards."""
    kept, before = folder / case.folder, bar.completed
    title = f"{arm.name}, family {case.family}, seed {case.seed - FIRST_SEED + 1}"
    bar.advance(0, title)
    ground.engine.repairs = ground.repairs[0] if arm.repairs and case.depth else None
    if kept.is_dir():
        finished = Finished.read(kept)
        names = finished.join(ground)
    else:
        finished = run_arm(ground, arm, case, bar.advance)
        names = list(finished.recipes)
        finished.write(kept)
    bar.advance(before + case.budget - bar.completed)
    points = anytime(ground, case, finished, lambda tenth: bar.advance(0, f"{title}: front {tenth} of 10"))
    without(ground, names)
    return finished, points


def forget(files: Files, runs: Path, arms: Sequence[Arm]) -> None:
    """Drop rows and archives of these arms; what was scored stays known."""
    names = {arm.name for arm in arms}
    files.forget(names)
    for name in names:
        for kept in runs.glob(f"{name}-[0-9]*"):
            shutil.rmtree(kept)


def plan(ground: Ground, runs: int, finished: int, budget: int) -> Plan:
    """Measure what an item evaluation takes, on merged models that no arm has asked for, and reckon."""
    engine, params = ground.engine, ground.workspace.params.pareto
    points = ground.space.sample(3, np.random.default_rng(0))
    candidates = [engine.add(ground.space.recipe(point)) for point in points]
    stop = min(TIMED_ITEMS, engine.items("search"))
    item_scores = engine.objectives("search").item_scores
    item_scores(engine.pool, ground.sources[:1], 0, stop)  # what is built once
    _, usage = timed(item_scores, engine.pool, candidates, 0, stop)
    without(ground, [one.host for one in candidates])
    items = len(candidates) * engine.cost("search", 0, stop)
    scored = budget // engine.cost("search")
    rescored, members = min(scored, 2 * params.rescored), min(scored, 3 * params.members)
    whole = budget + rescored * engine.cost("selection") + members * engine.cost("test")
    rate = Usage(usage.wall / items, usage.cpu / items)
    return Plan(runs, finished, budget, scored, rate, (runs - finished) * whole)
