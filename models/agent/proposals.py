"""Proposals that vary what is known: new recipes, per-layer recipes, and path edits of what serves a preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress

import numpy as np

from models.agent.actor import Actor
from models.agent.judge import Judge
from models.agent.variation import offspring, with_recipe
from models.candidate import Candidate
from models.front import Array
from models.merge.recipe import Recipe
from models.merge.space import Point, RecipeSpace
from models.search.environment import PathSpace
from models.search.trial import Trial

JITTER = 0.5
"""Standard deviation of the logarithm of the weights for which the actor is asked, around those that are wanted."""

LEAST = 0.02
"""What is added to each of these weights before, so that none is zero."""


class Proposer:
    """Makes proposals of each kind. Recipes that it makes up take part only once they are chosen."""

    def __init__(
        self,
        trial: Trial,
        judge: Judge,
        space: RecipeSpace,
        paths: PathSpace,
        stops: int,
        actor: Actor | None = None,
    ) -> None:
        """Over the candidates of a trial and the paths of its pool; per-layer recipes have so many ``stops``."""
        self.trial, self.judge, self.paths, self.actor = trial, judge, paths, actor
        self.spaces = {"recipe": space, "layered": space.with_stops(stops)}
        self.made: dict[str, Callable[[], Recipe]] = {}
        """Recipes that are only proposed, under passing names."""
        self._points: dict[tuple[str, str], Point] = {}
        for name, recipe in trial.recipes.items():
            judge.describer.add(name, recipe)

    def parents(self, wanted: Array, count: int, offers: Sequence[Candidate] = ()) -> list[list[Candidate]]:
        """For each of the preferences (R, K) the candidates that are expected to serve it best.

        They come from the archive and from what is on offer already.
        """
        known = [self.trial.archive.entries[i].candidate for i in self.trial.archive.scored(1)] + list(offers)
        depths = np.array([one.depth for one in known])
        u = self.trial.reward.utility(self.judge.costs(known)[:, None], depths[:, None], wanted)
        return [[known[i] for i in np.argsort(-column, kind="stable")[:count]] for column in u.T]

    def propose(
        self, kind: str, wanted: Array, parents: Sequence[Sequence[Candidate]], count: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """About so many candidates of a kind from the parents that serve each preference (R, K)."""
        if kind == "actor":
            return [self._act(wanted[i % len(wanted)], parents[i % len(parents)], rng) for i in range(count)]
        if kind in self.spaces:
            return [self._vary(kind, parents[i % len(parents)], parents, rng) for i in range(count)]
        chains = self.deletions(wanted, [some[int(rng.integers(len(some)))] for some in parents])
        return chains + self._edits([one for some in parents for one in some], max(count - len(chains), 0), rng)

    def enter(self, candidate: Candidate) -> Candidate:
        """Let the recipe that a chosen candidate has made up take part; the candidate with it under its own name."""
        for model in candidate.models:
            if model in self.made:
                recipe = self.made[model]()
                named = self.trial.add(recipe).host
                self.judge.describer.add(named, recipe)
                candidate = with_recipe(candidate, model, named)
        return candidate

    def forget(self) -> None:
        """Drop the recipes that were made up and not chosen."""
        self.judge.forget(self.made)
        self._points = {key: point for key, point in self._points.items() if key[1] not in self.made}
        self.made.clear()

    def _vary(
        self, kind: str, some: Sequence[Candidate], parents: Sequence[Sequence[Candidate]], rng: np.random.Generator
    ) -> Candidate:
        """A parent with a child of its recipe in place of it, or a new recipe in full."""
        space = self.spaces[kind]
        parent = some[int(rng.integers(len(some)))]
        others = parents[int(rng.integers(len(parents)))]
        first = self._recipe_of(parent, rng)
        second = self._recipe_of(others[int(rng.integers(len(others)))], rng)
        point = offspring(space, self._point(kind, first), self._point(kind, second), rng)
        name = f"new-{len(self.made)}"
        self.made[name], self._points[kind, name] = partial(space.recipe, point), point
        self.judge.describer.add_point(name, space, point)
        return self._in_place(parent, first, name)

    def _act(self, wanted: Array, some: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
        """The actor's recipe for about a preference (K,), in place of that of a parent, or in full."""
        assert self.actor is not None  # noqa: S101
        tasks = wanted[: self.actor.tasks] + LEAST
        preference = tasks * np.exp(JITTER * rng.standard_normal(len(tasks)))
        recipe = self.actor.recipe(self.spaces["recipe"], preference)
        name = f"new-{len(self.made)}"
        self.made[name] = lambda: recipe
        self.judge.describer.add(name, recipe)
        parent = some[int(rng.integers(len(some)))]
        return self._in_place(parent, self._recipe_of(parent, rng), name)

    def _in_place(self, parent: Candidate, before: str, after: str) -> Candidate:
        """A parent with one recipe in place of another; the recipe in full where the parent has no layer of it."""
        if before not in parent.models:
            return Candidate.identity(after, self.trial.lab.layers)
        return with_recipe(parent, before, after)

    def _point(self, kind: str, name: str) -> Point:
        """A recipe as a point of a space."""
        if (kind, name) not in self._points:
            recipe = self.made[name]() if name in self.made else self.trial.recipes[name]
            self._points[kind, name] = self.spaces[kind].read(recipe)
        return self._points[kind, name]

    def _recipe_of(self, candidate: Candidate, rng: np.random.Generator) -> str:
        """The recipe that gives most of a path's layers; any known one where none gives any."""
        counts = Counter(model for model, _ in candidate.path if model in self.trial.recipes or model in self.made)
        if counts:
            return counts.most_common(1)[0][0]
        return str(rng.choice(list(self.trial.recipes)))

    def deletions(self, wanted: Array, starts: Sequence[Candidate], down_to: int | None = None) -> list[Candidate]:
        """What is left of a path as its layers go, one by one, each the one that is expected to cost least.

        One path for each preference (R, K), ``down_to`` so many layers; by default to the ideal depth, or two layers
        fewer where depth is no objective.
        """
        here, reward = dict(enumerate(starts)), self.trial.reward
        least = reward.shortest if reward.depth_counts else None
        goal = {r: down_to or least or one.depth - 2 for r, one in here.items()}
        found: list[Candidate] = []
        while here := {r: one for r, one in here.items() if one.depth > goal[r]}:
            children = [
                (r, self.paths.candidate((*one.path[:at], *one.path[at + 1 :])))
                for r, one in here.items()
                for at in range(one.depth)
            ]
            legal = self.paths.legal_orders([[layer for _, layer in one.path] for _, one in children])
            children = list(compress(children, legal))
            if not children:
                break
            rows, paths = np.array([r for r, _ in children]), [one for _, one in children]
            depths = np.array([one.depth for one in paths])
            u = reward.utility(self.judge.costs(paths), depths, wanted[rows])
            here = {int(r): paths[int(np.where(rows == r, u, -np.inf).argmax())] for r in np.unique(rows)}
            found += here.values()
        return found

    def _edits(self, parents: Sequence[Candidate], count: int, rng: np.random.Generator) -> list[Candidate]:
        """Legal edits of paths, with layers of their own models and of the pool; fewer where many are illegal."""
        spaces = {
            one: replace(self.paths, models=tuple(dict.fromkeys((*one.models, *self.paths.models)))) for one in parents
        }
        chosen = [parents[i % len(parents)] for i in range(2 * count)]
        drawn = [spaces[one].edit(one.path, rng) for one in chosen]
        legal = self.paths.legal_orders([[layer for _, layer in path] for path in drawn])
        return [self.paths.candidate(path) for path in compress(drawn, legal)][:count]
