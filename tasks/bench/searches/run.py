"""One run of an arm: what it scored, what that would cost in layer forwards, and the time it spent on its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.candidate import Candidate
from models.front import Array
from models.merge.recipe import Recipe, dump_recipes, parse_recipes
from models.paths.slopes import Taught
from models.search.archive import Archive, Entry
from models.search.reward import Reward
from models.search.trial import PASSES, Lab, Trial
from tasks.bench.process import edges
from tasks.bench.searches.arms import Arm
from tasks.bench.searches.family import Ground
from tasks.project.records import write_table
from tasks.scoring.engine import CHUNK
from tasks.trials.lab import EngineLab

MARKS = ("evaluations", "forwards", "shared_forwards", "computed", "evaluating_seconds", "outside_seconds")
"""What has been spent so far, after each call of ``Lab.evaluate``."""


@dataclass(frozen=True)
class Case:
    """What is run: an arm with a seed and a budget, with depth as an objective or without."""

    family: int
    instance: str
    seed: int
    arm: str
    depth: bool
    budget: int

    @property
    def folder(self) -> str:
        """Name of the folder that keeps its archive."""
        return f"{self.arm}-{self.seed}-{'depth' if self.depth else 'tasks'}-{self.budget}-{self.instance}"


@dataclass
class Meter:
    """A lab that counts and times what passes through it. Implements :class:`models.search.trial.Lab`.

    Forwards are counted as if no score had been known, so that they don't depend on which arm came first.
    """

    lab: Lab
    ground: Ground
    began: float = field(default_factory=time.perf_counter)
    marks: list[tuple[float, ...]] = field(default_factory=lambda: [(0.0,) * len(MARKS)])

    @property
    def layers(self) -> int:
        """Number of layers of the base, L."""
        return self.lab.layers

    def add(self, recipe: Recipe) -> Candidate:
        """See ``Lab``."""
        return self.lab.add(recipe)

    def mean_scores(self, candidates: Sequence[Candidate], start: int, stop: int) -> Sequence[Sequence[float] | None]:
        """See ``Lab``."""
        journal, cost = self.ground.engine.journal, self.ground.engine.cost("search", start, stop)
        known, at = len(journal), time.perf_counter()
        scores = self.lab.mean_scores(candidates, start, stop)
        self.note(candidates, cost, cost * (len(journal) - known), time.perf_counter() - at)
        return scores

    def influence(self, candidate: Candidate) -> Array | None:
        """See ``Lab``; charged as one candidate on all items."""
        at = time.perf_counter()
        found = self.lab.influence(candidate)
        cost = self.ground.engine.cost("search")
        self.note([candidate], cost, cost, time.perf_counter() - at)
        return found

    def statistics(self, models: Sequence[str]) -> Array:
        """See ``Lab``; counts as the arm's own time."""
        return self.lab.statistics(models)

    @property
    def answered(self) -> Sequence[int]:
        """See ``Lab``."""
        return self.lab.answered

    def slopes(self, weights: Array, items: Sequence[Sequence[int]]) -> Sequence[Taught | None]:
        """See ``Lab``; counts as three candidates through all layers on those items."""
        journal, at = self.ground.engine.journal, time.perf_counter()
        known, cost = len(journal), PASSES * sum(map(len, items))
        found = self.lab.slopes(weights, items)
        passes = [Candidate.identity(f"pass {number}", self.layers) for number in range(PASSES)]  # that share nothing
        self.note(passes, cost // PASSES, cost * (len(journal) > known), time.perf_counter() - at)
        return found

    def note(self, candidates: Sequence[Candidate], cost: int, computed: int, seconds: float) -> None:
        """Add what models were run for: ``cost`` items each, ``computed`` of all of them now, in so many seconds."""
        spent, forwards, shared, before, evaluating, _ = self.marks[-1]
        evaluating += seconds
        self.marks.append(
            (
                spent + cost * len(candidates),
                forwards + cost * sum(one.depth for one in candidates),
                shared + cost * sum(map(edges, chunks(candidates))),
                before + computed,
                evaluating,
                time.perf_counter() - self.began - evaluating,
            )
        )

    def close(self) -> None:
        """Add what the arm did after the last call to its own time."""
        *counted, evaluating, _ = self.marks[-1]
        self.marks.append((*counted, evaluating, time.perf_counter() - self.began - evaluating))


def chunks(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The chunks in which the engine scores: prefixes are shared within a chunk."""
    return [list(candidates[first : first + CHUNK]) for first in range(0, len(candidates), CHUNK)]


@dataclass(frozen=True)
class Finished:
    """What a run leaves: enough to choose and score its fronts again."""

    archive: pd.DataFrame
    recipes: dict[str, str]
    """YAML of each recipe by its name in the pool."""
    marks: pd.DataFrame
    episodes: pd.DataFrame

    def write(self, folder: Path) -> None:
        """All of it or nothing."""
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        write_table(part / "archive.parquet", self.archive)
        named = {"name": list(self.recipes), "recipe": list(self.recipes.values())}
        write_table(part / "recipes.parquet", pd.DataFrame(named).astype("string"))
        write_table(part / "marks.parquet", self.marks)
        if len(self.episodes):
            write_table(part / "episodes.parquet", self.episodes)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Inverse of :meth:`write`."""
        recipes, episodes = pd.read_parquet(folder / "recipes.parquet"), folder / "episodes.parquet"
        return cls(
            pd.read_parquet(folder / "archive.parquet"),
            dict(zip(recipes["name"], recipes["recipe"], strict=True)),
            pd.read_parquet(folder / "marks.parquet"),
            pd.read_parquet(episodes) if episodes.is_file() else pd.DataFrame(),
        )

    def join(self, ground: Ground) -> list[str]:
        """Let its recipes take part; their names."""
        for name, text in self.recipes.items():
            ground.engine.add(parse_recipes(text, name)[-1])
        return list(self.recipes)


def run_arm(ground: Ground, arm: Arm, case: Case, on_spent: Callable[[int], None] | None = None) -> Finished:
    """Let an arm spend its budget.

    Args:
        ground: the family.
        arm: what to run.
        case: its seed and budget.
        on_spent: told how many item evaluations were just charged.
    """
    engine, scale = ground.engine, ground.scale(case.depth)
    objectives = engine.objectives("search")
    archive = Archive(source_entries(ground), [objectives.count(name) for name in objectives.names])
    meter = Meter(EngineLab(engine), ground)
    charged = ground.repairs[1] if engine.repairs else 0
    trial = Trial(meter, Reward(scale, engine.layers), archive, case.budget, charged, on_spent=on_spent)
    rows = arm.run(trial, ground.space, ground.rules, np.random.default_rng([case.family, case.seed]))
    meter.close()
    return Finished(
        archive_table(archive, objectives.names, engine.layers),
        {name: dump_recipes([one.model_copy(update={"name": name})]) for name, one in trial.recipes.items()},
        pd.DataFrame(meter.marks, columns=list(MARKS)),
        pd.DataFrame(list(rows or ())),
    )


def source_entries(ground: Ground) -> list[Entry]:
    """Base and experts, scored on all items for free: what every arm starts with."""
    full = ground.engine.items("search")
    return [
        Entry(
            one.candidate, "base" if one.candidate.host == "base" else "expert", 0, full, tuple(map(float, one.mean()))
        )
        for one in ground.engine.scored(ground.sources, "search")
    ]


def archive_table(archive: Archive, names: Sequence[str], layers: int) -> pd.DataFrame:
    """A row a candidate, in the order in which they were first scored."""
    rows: list[dict[str, Any]] = [
        {
            "candidate": one.candidate.to_json(),
            "id": one.candidate.id,
            "kind": one.kind,
            "round": one.round,
            "items": one.items,
            "charged": one.charged,
            "at": one.at,
            "failed": None if one.scores is not None else "failed",
            **dict(zip(names, one.scores or [np.nan] * len(names), strict=True)),
            "layers": one.candidate.depth / layers,
        }
        for one in archive.entries
    ]
    return pd.DataFrame(rows).astype({"failed": "string"})
