"""NSGA-II (Deb et al. 2002, pymoo) on a trial, which can be left and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pymoo.core.algorithm import Algorithm
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination

from models.candidate import Candidate
from models.search.trial import Trial
from tasks.bench.baselines.baseline import all_scored, excess

IDLE = 20
"""Generations in a row without a new candidate, after which nothing is left to try."""


class Evolution:
    """A pymoo algorithm that asks for generations, whose individuals a trial scores.

    Individuals may decode to one candidate, which is scored once. What lies beyond the reference point in any objective
    can't add to the hypervolume, and is infeasible to the algorithm (Deb's constrained domination): where depth is an
    objective, every path that is short enough would be non-dominated otherwise, however ruined its scores are.
    """

    def __init__(
        self,
        trial: Trial,
        algorithm: Algorithm,
        variables: Mapping[str, Any],
        decode: Callable[[Any], Candidate],
        kind: str,
        rng: np.random.Generator,
    ) -> None:
        """Nothing is scored yet.

        Args:
            trial: pays.
            algorithm: a multi-objective one, not set up yet.
            variables: of its problem, as pymoo's takes them.
            decode: the candidate of an individual.
            kind: of its candidates.
            rng: seeds the algorithm.
        """
        self.trial, self.algorithm, self.decode, self.kind = trial, algorithm, decode, kind
        problem = Problem(**variables, n_obj=len(trial.reward.scale.names), n_ieq_constr=1)
        algorithm.setup(problem, termination=NoTermination(), seed=int(rng.integers(2**31)), verbose=False)
        self._asked: Population | None = None

    def run(self, limit: int) -> None:
        """Go on until the trial has spent ``limit`` item evaluations in all, or nothing is left to try."""
        idle = 0
        while idle < IDLE:
            asked = self.algorithm.ask() if self._asked is None else self._asked
            if asked is None or len(asked) == 0:
                return
            self._asked, before = asked, self.trial.spent
            candidates = [self.decode(one) for one in asked.get("X")]
            if not all_scored(self.trial, candidates, self.kind, limit):
                return
            asked.set("F", self.trial.costs(candidates))
            asked.set("G", excess(self.trial, candidates)[:, None])
            self.algorithm.tell(infills=asked)
            self._asked = None
            idle = idle + 1 if self.trial.spent == before else 0

    def survivors(self) -> list[Candidate]:
        """What the algorithm's population stands for now, each once."""
        population = self.algorithm.pop
        return [] if population is None else list(dict.fromkeys(self.decode(one) for one in population.get("X")))
