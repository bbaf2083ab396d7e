"""A small path space with a score function whose best paths are known by brute force."""

from dataclasses import dataclass

import numpy as np

from models.agent.environment import PathRules, PathSpace
from models.agent.features import FEATURES
from models.agent.networks import Agent, AgentConfig
from models.front import Scale

LAYERS, MODELS, ITEMS = 4, ("a", "b", "c"), 16


@dataclass(frozen=True)
class Planted:
    """Two tasks: each model is good at some layers, which differ by task, and a missing layer costs."""

    space: PathSpace
    gain: np.ndarray  # (tasks, M, L)
    difficulty: np.ndarray  # (tasks, items)

    def items(self, candidate):
        """(tasks, items) bool, which items the path gets right."""
        skill = np.zeros(len(self.gain))
        seen = set()
        for model, layer in candidate.path:
            skill += -0.3 if layer in seen else self.gain[:, self.space.models.index(model), layer]
            seen.add(layer)
        return skill[:, None] > self.difficulty

    def score(self, candidates, start, stop):
        return [tuple(self.items(one)[:, start:stop].mean(axis=1).tolist()) for one in candidates]


def planted(seed=0, models=MODELS, layers=LAYERS):
    rng = np.random.default_rng(seed)
    space = PathSpace(models, layers, PathRules())
    gain = rng.random((2, len(models), layers))
    difficulty = np.stack([rng.permutation(np.linspace(0.5, 3.2, ITEMS)) for _ in range(2)])
    return Planted(space, gain, difficulty)


def new_agent(world, seed=0, hidden=32, ensemble=3):
    scale = Scale(("first", "second", "layers"), (1.0, 1.0, 0.5), (0.2, 0.2, 1.0))
    space = world.space
    config = AgentConfig(space.models, space.layers, space.rules, scale, FEATURES, hidden, ensemble, embedding=16)
    statistics = np.random.default_rng(9).standard_normal((len(space.models), space.layers, FEATURES))
    return Agent(config, statistics, seed)


def every_path(space):
    """All legal paths, by going through the masks."""
    prefixes, found = np.full((1, space.longest + 1), -1), []
    for t in range(space.longest + 1):
        parent, action = space.legal(prefixes[:, :t]).nonzero()
        prefixes = prefixes[parent]
        prefixes[:, t] = action
        found.append(prefixes[action == space.stop])
        prefixes = prefixes[action != space.stop]
    assert len(prefixes) == 0
    return np.concatenate(found)
