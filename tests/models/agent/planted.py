"""A small path space whose best paths are known by brute force: experts of the formula, uneven over their layers."""

from dataclasses import dataclass

import numpy as np

from models.agent.networks import Agent
from models.agent.offline import OfflineData
from models.agent.phases import AgentSettings, new_agent
from models.agent.trajectories import trajectories
from models.search.environment import PathSpace
from models.search.trial import Trial
from tests.models.lab import EXPERTS, every_path, new_trial

ITEMS = 30
"""After which a path is fully scored."""


@dataclass(frozen=True)
class Planted:
    """Paths, and a trial in which they can be scored."""

    space: PathSpace
    trial: Trial

    def scores(self, paths):
        """(N, 3) over all items, free of charge."""
        return np.array([self.trial.lab.scores(path) for path in paths])

    def utility(self, paths, preferences):
        """(N,) or (N, M), under one preference or several."""
        depths = np.array([path.depth for path in paths])
        costs = self.trial.reward.costs(self.scores(paths), depths)
        if preferences.ndim == 1:
            return self.trial.reward.utility(costs, depths, preferences)
        return self.trial.reward.utility(costs[:, None], depths[:, None], preferences)

    def agent(self, seed=0, hidden=32) -> Agent:
        """Untrained networks."""
        statistics = self.trial.lab.statistics(self.space.models)
        return new_agent(self.trial, self.space, statistics, AgentSettings(hidden), seed)

    def every_path(self):
        return [self.space.decode(row) for row in every_path(self.space)]

    def random_paths(self, count, seed=0):
        """So many different paths, those of the experts first."""
        rng = np.random.default_rng(seed)
        paths = dict.fromkeys(self.space.identity(model) for model in self.space.models)
        while len(paths) < count:
            paths[self.space.random_path(rng)] = None
        return list(paths)[:count]

    def data(self, count=120, seed=0):
        paths = self.random_paths(count, seed)
        return OfflineData(tuple(paths), self.scores(paths))

    def trajectories(self, count):
        data = self.data(count)
        return data, trajectories(self.space, self.trial.reward, data.candidates, data.scores)


def planted(seed=0, models=EXPERTS, layers=4, depth=True):
    trial = new_trial(depth=depth, layers=layers, seed=seed, uneven=True)
    return Planted(PathSpace(models, layers), trial)
