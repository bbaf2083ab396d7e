"""What a candidate is made of, as numbers: what the surrogate sees of it.

A path is seen as the layers it lacks, those it repeats, and the recipe of each layer it passes. That does not depend on
which models happen to be in a pool, so that a recipe that nobody has merged yet can be judged too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.candidate import Candidate
from models.front import Array
from models.merge.methods import find_method, search_space
from models.merge.recipe import Recipe
from models.merge.space import Point, RecipeSpace

STOPS = 8
"""Places from the first layer to the last at which the weights of a recipe are read."""


class Content(NamedTuple):
    """What a model of the pool is made of, with K experts and P further parameters of M methods."""

    weights: Array  # (L, K) of each expert by layer; of a recipe that normalises them, its shares
    kind: Array  # (M,) one at the recipe's method; zeros for base and experts
    parameters: Array  # (P,) of the whole recipe, in units of their ranges


class Describer:
    """Descriptions of candidates over the base, the experts and recipes of a space."""

    def __init__(self, space: RecipeSpace, layers: int) -> None:
        """For a family of so many ``layers`` and recipes such as those of the space."""
        self.space, self.layers = space, layers
        self.shared = [key for key in space.bounds if "." not in key]
        self._known: dict[str, Content] = {}
        for k, expert in enumerate(space.experts):
            self._put(expert, np.tile(np.eye(len(space.experts))[k], (layers, 1)))
        self._put("base", np.zeros((layers, len(space.experts))))

    def _put(self, name: str, weights: Array) -> None:
        self._known[name] = Content(weights, np.zeros(len(self.space.methods)), np.full(len(self.shared), 0.5))

    def __contains__(self, candidate: Candidate) -> bool:
        return all(model in self._known for model in candidate.models)

    def add(self, name: str, recipe: Recipe) -> None:
        """Let a recipe be described under its name in the pool. Methods that the space lacks look like none."""
        if name not in self._known:
            space = self.space.with_stops(STOPS)
            self.add_point(name, space, space.read(recipe))

    def add_point(self, name: str, space: RecipeSpace, point: Point) -> None:
        """Let the recipe at a point of a space be described under a name. Its numbers lie in the method's ranges."""
        method = str(point["method"])
        searched = {one.name: one for one in search_space(method)}
        weights = np.zeros((self.layers, len(space.experts)))
        if "weight" in searched:
            low, high = searched["weight"].low, searched["weight"].high
            for k, expert in enumerate(space.experts):
                values = np.clip([point[key] for key in space.keys_of(searched["weight"], expert)], low, high)
                places = np.linspace(0, 1, len(values))
                weights[:, k] = np.interp(np.linspace(0, 1, self.layers), places, values)
        if any(one.name == "normalize" and one.default is True for one in find_method(method).parameters):
            weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
        kind = np.array([one == method for one in self.space.methods], dtype=np.float64)
        parameters = np.full(len(self.shared), 0.5)
        for p, key in enumerate(self.shared):
            if key in searched:
                low, high = self.space.bounds[key]
                value = min(max(float(point[key]), searched[key].low), searched[key].high)
                parameters[p] = (value - low) / (high - low)
        self._known[name] = Content(weights, kind, parameters)

    def forget(self, name: str) -> None:
        """Drop what was described under a name."""
        self._known.pop(name, None)

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Group (F,) of each feature: what shares a length scale in the surrogate."""
        experts, methods, shared = len(self.space.experts), len(self.space.methods), len(self.shared)
        sizes = [*[1] * self.layers, self.layers, self.layers * experts, *[1] * experts, *[1] * methods, shared]
        sizes += [methods * experts, methods * shared, *[1] * experts, 3]
        return np.repeat(np.arange(len(sizes)), sizes)

    def __call__(self, candidates: Sequence[Candidate]) -> Array:
        """Descriptions (N, F)."""
        return np.array([self._describe(one) for one in candidates]).reshape(len(candidates), len(self.groups))

    def _describe(self, candidate: Candidate) -> Array:
        contents = [self._known[model] for model, _ in candidate.path]
        layer = np.array([layer for _, layer in candidate.path])
        used = np.bincount(layer, minlength=self.layers).astype(np.float64)
        weights = np.zeros((self.layers, len(self.space.experts)))
        np.add.at(weights, layer, np.array([one.weights[at] for one, at in zip(contents, layer, strict=True)]))
        weights /= np.maximum(used, 1)[:, None]
        passed = used > 0
        mean = weights.sum(axis=0) / passed.sum()
        kind = np.mean([one.kind for one in contents], axis=0)
        parameters = np.mean([one.parameters for one in contents], axis=0)
        changes = sum(before != after for (before, _), (after, _) in pairwise(candidate.path))
        return np.concatenate(
            [
                ~passed,
                np.maximum(used - 1, 0),
                ((weights - mean) * passed[:, None]).ravel(),
                mean,
                kind,
                parameters,
                np.outer(kind, mean).ravel(),
                np.outer(kind, parameters).ravel(),
                self._known[candidate.host].weights[0],
                np.array([changes, (np.diff(layer) <= 0).sum(), len(layer)]) / self.layers,
            ]
        )
