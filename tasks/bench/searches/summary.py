"""What the raw rows of one profile say: every point with all its indicators, and the comparisons between arms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from models.front import Array, Scale
from tasks.bench.searches.arms import ARMS
from tasks.bench.searches.metrics import (
    additive_epsilon,
    depth_limits,
    expected_loss,
    hypervolume_by_depth,
    igd_plus,
    union_front,
)
from tasks.bench.searches.points import TENTHS
from tasks.bench.searches.rows import KEY, Files, heading, latest
from tasks.bench.searches.statistics import Comparison, NonInferiority, compare, holm, noninferior

FRONT, CONFIRM = "front", "confirm"
"""Benchmarks: on the families that were looked at, and on those that were made afterwards."""
OURS = "hm3"
TARGET = "nsga2-recipes"
"""The arm whose last hypervolume the others are timed to."""
MARGIN = 0.01
"""Of non-inferiority, in the fraction of the hypervolume."""
LAST = len(TENTHS)


@dataclass(frozen=True)
class Study:
    """All runs of a profile with depth as an objective, or without."""

    profile: str
    depth: bool
    rows: pd.DataFrame
    """A row a run and tenth."""
    members: pd.DataFrame
    families: pd.DataFrame
    kinds: pd.DataFrame
    episodes: pd.DataFrame
    cuts: pd.DataFrame
    bench: str = FRONT
    """That made the rows."""

    @property
    def title(self) -> str:
        """Profile, objectives, and whether families are new."""
        return heading(self.profile, self.depth) + (", new families" if self.bench == CONFIRM else "")

    @property
    def measure(self) -> str:
        """The hypervolume that this study is about."""
        return "hv" if self.depth else "hv_tasks"

    @cached_property
    def arms(self) -> list[str]:
        """Those that have rows: in the order of the registry, HM3 first, unknown ones last."""
        known = list(dict.fromkeys((OURS, *ARMS)))
        return sorted(
            dict.fromkeys(self.rows["arm"]), key=lambda name: known.index(name) if name in known else len(known)
        )

    def group(self, arm: str) -> str:
        """What kind of arm it was when it ran."""
        return str(self.rows.loc[self.rows["arm"] == arm, "group"].iloc[-1])

    @cached_property
    def drawn(self) -> list[str]:
        """Arms that figures show: ablations, too many and too alike to be told apart, are in the tables alone."""
        ablations = set(self.of("ablation"))
        return [arm for arm in self.arms if arm not in ablations]

    def scale(self, family: int, depth: bool) -> Scale:
        """Ideal and nadir point in a family."""
        own = self.families[self.families["family"] == family]
        own = own if depth else own[own["objective"] != "layers"]
        return Scale(
            tuple(map(str, own["objective"])), tuple(map(float, own["ideal"])), tuple(map(float, own["nadir"]))
        )

    def base_layers(self, family: int) -> int:
        """L."""
        return int(self.families.loc[self.families["family"] == family, "layers"].iloc[0])

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the task objectives."""
        return self.scale(int(self.rows["family"].iloc[0]), False).names

    @cached_property
    def points(self) -> pd.DataFrame:
        """The rows with ``igd_plus``, ``epsilon``, ``r2``, ``best TASK`` and ``hv ≤ T`` of each point."""
        members = dict(list(self.members.groupby(["family", "seed", "arm"])))
        points: list[dict[Any, Any]] = self.rows.to_dict("records")
        costs = []
        for row in points:
            own = members[row["family"], row["seed"], row["arm"]]
            costs.append(self.costs(row["family"], own[own["tenths"].str[row["tenth"] - 1] == "1"]))
        families = [row["family"] for row in points]
        unions = {
            family: union_front([one for own, (one, *_) in zip(families, costs, strict=True) if own == family])
            for family in dict.fromkeys(families)
        }
        found = []
        for family, (whole, tasks, layers, scores) in zip(families, costs, strict=True):
            indicators = {
                "igd_plus": igd_plus(whole, unions[family]),
                "epsilon": additive_epsilon(whole, unions[family]),
                "r2": expected_loss(whole),
            }
            best = {f"best {name}": float(score) for name, score in zip(self.tasks, scores.max(axis=0), strict=True)}
            by_depth = hypervolume_by_depth(tasks, layers, depth_limits(self.base_layers(family)))
            found.append(indicators | best | {f"hv ≤ {limit}": value for limit, value in by_depth.items()})
        return pd.concat([self.rows, pd.DataFrame(found, index=self.rows.index)], axis=1)

    def costs(self, family: int, members: pd.DataFrame) -> tuple[Array, Array, Array, Array]:
        """Costs (N, K) of members, those of the tasks alone (N, K_tasks), their layers (N,), and scores."""
        tasks, layers = self.scale(family, False), members["depth_layers"].to_numpy(dtype=float)
        scores = members[list(tasks.names)].to_numpy(dtype=float)
        alone = tasks.costs(scores)
        if not self.depth:
            return alone, alone, layers, scores
        full = self.scale(family, True)
        return full.costs(np.column_stack([scores, layers / self.base_layers(family)])), alone, layers, scores

    @cached_property
    def final(self) -> pd.DataFrame:
        """The points at the whole budget."""
        return self.points[self.points["tenth"] == LAST]

    def values(self, arm: str, column: str, tenth: int = LAST) -> pd.Series:
        """A column of an arm's points by family and seed."""
        own = self.points[(self.points["arm"] == arm) & (self.points["tenth"] == tenth)]
        return own.set_index(["family", "seed"])[column]

    def paired(self, one: str, other: str, column: str, tenth: int = LAST) -> tuple[Array, Array]:
        """Columns of two arms over the families and seeds that both have run."""
        both = pd.concat([self.values(one, column, tenth), self.values(other, column, tenth)], axis=1, join="inner")
        pairs = both.sort_index().to_numpy(dtype=np.float64)
        return pairs[:, 0], pairs[:, 1]

    def of(self, *groups: str) -> list[str]:
        """Arms of some groups, but ours."""
        return [arm for arm in self.arms if arm != OURS and self.group(arm) in groups]

    def comparisons(self, column: str | None = None) -> dict[str, list[Comparison]]:
        """HM3 against each baseline and the paper's algorithm, and against its ablations: two families of tests."""
        found = {}
        for title, arms in (("baselines", self.of("baseline", "paper")), ("ablations", self.of("ablation", "hm3"))):
            pairs = {arm: self.paired(OURS, arm, column or self.measure) for arm in arms if OURS in self.arms}
            made = [compare(arm, *pair) for arm, pair in pairs.items() if len(pair[0])]
            if made:
                found[title] = holm(made)
        return found

    def noninferiority(self, tenths: Iterable[int] = TENTHS) -> list[NonInferiority]:
        """HM3 against the best baseline at each tenth; only arms that have run all of its families and seeds count."""
        found: list[NonInferiority] = []
        if OURS not in self.arms:
            return found
        for tenth in tenths:
            ours = self.values(OURS, self.measure, tenth).sort_index()
            others = {arm: self.values(arm, self.measure, tenth) for arm in self.of("baseline", "paper")}
            whole = {
                arm: one.loc[ours.index].to_numpy() for arm, one in others.items() if set(ours.index) <= set(one.index)
            }
            if whole:
                found.append(noninferior(tenth, ours.to_numpy(), whole, MARGIN))
        return found

    def reach(self) -> pd.DataFrame:
        """Share of the budget, and layer forwards, after which each arm has the last hypervolume of ``TARGET``.

        Counted to the first tenth at which it has it; infinite where it never does. A row a run.
        """
        found = []
        targets = self.values(TARGET, self.measure).to_dict() if TARGET in self.arms else {}
        for (family, seed, arm), own in self.points.groupby(["family", "seed", "arm"], sort=False):
            if (family, seed) in targets:
                there = own[own[self.measure] >= targets[family, seed]].sort_values("tenth")
                first = there.iloc[0] if len(there) else None
                found.append(
                    {
                        "arm": arm,
                        "family": family,
                        "seed": seed,
                        "share": np.inf if first is None else float(first["tenth"]) / LAST,
                        "evaluations": np.inf if first is None else float(first["at"]),
                        "forwards": np.inf if first is None else float(first["forwards"]),
                        "shared_forwards": np.inf if first is None else float(first["shared_forwards"]),
                    }
                )
        return pd.DataFrame(found)

    @cached_property
    def seconds_per_item(self) -> pd.Series:
        """Time of one item evaluation that was computed, not looked up, of each run: the mean of its commit's runs.

        Runs of one commit were measured on one machine; others may be several times as fast.
        """
        spent = self.final[["evaluating_seconds", "computed"]].groupby(self.final["commit"]).transform("sum")
        rates: pd.Series = spent["evaluating_seconds"] / spent["computed"].where(spent["computed"] > 0)
        return rates

    def wall(self) -> pd.DataFrame:
        """Seconds of each run: outside of model forwards as measured, inside as if no score had been known."""
        own = self.final[["arm", "family", "seed", "outside_seconds"]].copy()
        own["inside_seconds"] = self.final["evaluations"] * self.seconds_per_item
        own["seconds"] = own["outside_seconds"] + own["inside_seconds"]
        own["share"] = own["outside_seconds"] / own["seconds"]
        return own


def studies(files: Files) -> list[Study]:
    """What there is of a profile: with depth first."""
    found = []
    every = {part: files.read(part) for part in ("", "members", "families", "kinds", "episodes", "cuts")}
    for depth in (True, False):
        rows = latest(every[""], depth)
        if len(rows):
            keys = set(rows[KEY].itertuples(index=False, name=None))
            of_runs = {
                part: table[[key in keys for key in table[KEY].itertuples(index=False, name=None)]]
                for part, table in every.items()
                if part in ("members", "kinds", "episodes", "cuts")
            }
            used = set(rows["instance"])
            families = every["families"][every["families"]["instance"].isin(used)]
            found.append(Study(files.profile, depth, rows, families=families, bench=files.prefix, **of_runs))
    return found
