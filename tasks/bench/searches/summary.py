"""What the raw rows of one profile say: the indicators of each run, and the comparisons between arms."""

from __future__ import annotations

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

    @cached_property
    def scales(self) -> dict[int, tuple[Scale, int]]:
        """Ideal and nadir point of all objectives in each family, depth last where it is one, and L."""
        families: Any = self.families.groupby("family")  # here and below: pandas types no keys
        return {
            int(family): (
                Scale(
                    tuple(map(str, own["objective"])), tuple(map(float, own["ideal"])), tuple(map(float, own["nadir"]))
                ),
                int(own["layers"].iloc[-1]),
            )
            for family, own in families
        }

    def base_layers(self, family: int) -> int:
        """L."""
        return self.scales[family][1]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the task objectives."""
        return tuple(name for name in self.scales[int(self.rows["family"].iloc[0])][0].names if name != "layers")

    @cached_property
    def final(self) -> pd.DataFrame:
        """The rows at the whole budget with ``igd_plus``, ``epsilon``, ``r2``, ``best TASK`` and ``hv ≤ T``."""
        fronts: dict[Any, tuple[Array, ...]] = {}
        costs: dict[int, list[Array]] = {}
        runs: Any = self.members.groupby(["family", "seed", "arm"])
        for (family, seed, arm), own in runs:
            arrays = self.costs(int(family), own)
            costs.setdefault(int(family), []).append(arrays[0])
            last = (own["tenths"].str[-1] == "1").to_numpy()
            fronts[family, seed, arm] = tuple(one[last] for one in arrays)
        unions = {family: union_front(every) for family, every in costs.items()}
        final, found = self.rows[self.rows["tenth"] == LAST], []
        for family, seed, arm in final[["family", "seed", "arm"]].itertuples(index=False):
            whole, tasks, layers, scores = fronts[family, seed, arm]
            indicators = {
                "igd_plus": igd_plus(whole, unions[family]),
                "epsilon": additive_epsilon(whole, unions[family]),
                "r2": expected_loss(whole),
            }
            best = {f"best {name}": float(score) for name, score in zip(self.tasks, scores.max(axis=0), strict=True)}
            by_depth = hypervolume_by_depth(tasks, layers, depth_limits(self.base_layers(family)))
            found.append(indicators | best | {f"hv ≤ {limit}": value for limit, value in by_depth.items()})
        return pd.concat([final, pd.DataFrame(found, index=final.index)], axis=1)

    def costs(self, family: int, members: pd.DataFrame) -> tuple[Array, Array, Array, Array]:
        """Costs (N, K) of members, those of the tasks alone (N, K_tasks), their layers (N,), and scores."""
        scale, count = self.scales[family]
        layers = members["depth_layers"].to_numpy(dtype=float)
        scores = members[list(self.tasks)].to_numpy(dtype=float)
        values = np.column_stack([scores, layers / count])[:, : len(scale.names)]
        costs = scale.costs(values)
        alone = costs[:, : scores.shape[1]]
        return (costs if self.depth else alone), alone, layers, scores

    @cached_property
    def by_point(self) -> dict[tuple[str, int], pd.DataFrame]:
        """The rows of each arm at each tenth, by family and seed."""
        grouped: Any = self.rows.groupby(["arm", "tenth"])
        return {(str(arm), int(tenth)): own.set_index(["family", "seed"]) for (arm, tenth), own in grouped}

    def values(self, arm: str, column: str, tenth: int = LAST) -> pd.Series:
        """A column of an arm's rows by family and seed."""
        return self.by_point[arm, tenth][column]

    def paired(self, one: str, other: str, column: str) -> tuple[Array, Array]:
        """Columns of two arms, at the whole budget, over the families and seeds that both have run."""
        both = pd.concat([self.values(one, column), self.values(other, column)], axis=1, join="inner")
        pairs = both.sort_index().to_numpy(dtype=np.float64)
        return pairs[:, 0], pairs[:, 1]

    def ahead(self, arm: str) -> int:
        """Families in which ours is better than another arm in the median of the pairs."""
        difference = (self.values(OURS, self.measure) - self.values(arm, self.measure)).groupby(level="family")
        return int((difference.median() > 0).sum())

    def of(self, *groups: str) -> list[str]:
        """Arms of some groups, but ours."""
        return [arm for arm in self.arms if arm != OURS and self.group(arm) in groups]

    @cached_property
    def comparisons(self) -> dict[str, list[Comparison]]:
        """HM3 against each baseline and the paper's algorithm, and against its ablations: two families of tests."""
        found = {}
        for title, arms in (("baselines", self.of("baseline", "paper")), ("ablations", self.of("ablation", "hm3"))):
            pairs = {arm: self.paired(OURS, arm, self.measure) for arm in arms if OURS in self.arms}
            made = [compare(arm, *pair) for arm, pair in pairs.items() if len(pair[0])]
            if made:
                found[title] = holm(made)
        return found

    @cached_property
    def noninferiority(self) -> list[NonInferiority]:
        """HM3 against the best baseline at each tenth; only arms that have run all of its families and seeds count."""
        found: list[NonInferiority] = []
        if OURS not in self.arms:
            return found
        for tenth in TENTHS:
            ours = self.values(OURS, self.measure, tenth).sort_index()
            others = {arm: self.values(arm, self.measure, tenth) for arm in self.of("baseline", "paper")}
            whole = {
                arm: one.loc[ours.index].to_numpy() for arm, one in others.items() if set(ours.index) <= set(one.index)
            }
            if whole:
                found.append(noninferior(tenth, ours.to_numpy(), whole, MARGIN))
        return found

    @cached_property
    def reach(self) -> pd.DataFrame:
        """Share of the budget, and layer forwards, after which each arm has the last hypervolume of ``TARGET``.

        Counted to the first tenth at which it has it; infinite where it never does. A row a run.
        """
        found = []
        targets = self.values(TARGET, self.measure).to_dict() if TARGET in self.arms else {}
        for (family, seed, arm), own in self.rows.groupby(["family", "seed", "arm"], sort=False):
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

    @cached_property
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
