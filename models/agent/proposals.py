"""Proposals: what serves a preference, with its recipe, its path, or both varied."""

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
from models.search.environment import Mask, PathSpace
from models.search.trial import Trial

LEVELS = ("recipe", "path")
"""What a proposal may change of a candidate."""

ACTED, KEPT = 0.5, 0.25
"""Probabilities that a proposal's recipe is the actor's, where there is one, and that it stays its parent's; the others
are children of two recipes."""

EDITED = 0.5
"""Probability that a proposal's path is edited."""

JITTER = 0.5
"""Standard deviation of the logarithm of the weights for which the actor is asked, around those that are wanted."""

LEAST = 0.02
"""What is added to each of these weights before, so that none is zero."""


class Proposer:
    """Makes proposals. Recipes that it makes up take part only once they are chosen."""

    def __init__(
        self,
        trial: Trial,
        judge: Judge,
        space: RecipeSpace,
        paths: PathSpace,
        actor: Actor | None = None,
        levels: Sequence[str] = LEVELS,
    ) -> None:
        """Over the candidates of a trial and the paths of its pool; only the ``levels`` vary."""
        self.trial, self.judge, self.space, self.paths, self.actor = trial, judge, space, paths, actor
        self.levels = levels
        self.made: dict[str, Callable[[], Recipe]] = {}
        """Recipes that are only proposed, under passing names."""
        self._points: dict[str, Point] = {}
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
        self, wanted: Array, parents: Sequence[Sequence[Candidate]], count: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """About so many candidates from the parents that serve each preference (R, K), some more than once."""
        found: list[Candidate] = []
        for number in range(count):
            some = parents[number % len(parents)]
            one = some[int(rng.integers(len(some)))]
            if "recipe" in self.levels:
                one = self._with_other_recipe(one, wanted[number % len(wanted)], parents, rng)
            found.append(one)
        if "path" not in self.levels:
            return found
        edited = [one for one in found if rng.random() < EDITED]
        starts = [found[number] for number in range(min(len(wanted), len(found)))]
        return found + self._edits(edited, rng) + self.deletions(wanted[: len(starts)], starts)

    def enter(self, candidate: Candidate) -> Candidate:
        """Let the recipe that a chosen candidate has made up take part; the candidate with it under its own name."""
        for model in candidate.models:
            if model in self.made:
                candidate = with_recipe(candidate, model, self.add(self.made[model]()).host)
        return candidate

    def add(self, recipe: Recipe) -> Candidate:
        """Let a recipe take part, and be described; its identity path."""
        found = self.trial.add(recipe)
        self.judge.describer.add(found.host, recipe)
        return found

    def forget(self) -> None:
        """Drop the recipes that were made up and not chosen."""
        self.judge.forget(self.made)
        self._points = {name: point for name, point in self._points.items() if name not in self.made}
        self.made.clear()

    def _with_other_recipe(
        self, parent: Candidate, wanted: Array, parents: Sequence[Sequence[Candidate]], rng: np.random.Generator
    ) -> Candidate:
        """A parent with the actor's recipe for about a preference (K,), with a child of its own, or as it is."""
        chance, own = rng.random(), self._recipe_of(parent, rng)
        if chance < KEPT or own is None:
            return parent
        name = f"new-{len(self.made)}"
        if self.actor is not None and chance < KEPT + ACTED:
            tasks = wanted[: self.actor.tasks] + LEAST
            preference = tasks * np.exp(JITTER * rng.standard_normal(len(tasks)))
            recipe = self.actor.recipe(self.space, preference)
            self.made[name] = lambda: recipe
            self.judge.describer.add(name, recipe)
        else:
            others = parents[int(rng.integers(len(parents)))]
            other = self._recipe_of(others[int(rng.integers(len(others)))], rng) or own
            point = offspring(self.space, self._point(own), self._point(other), rng)
            self.made[name], self._points[name] = partial(self.space.recipe, point), point
            self.judge.describer.add_point(name, self.space, point)
        return self._in_place(parent, own, name)

    def _in_place(self, parent: Candidate, before: str, after: str) -> Candidate:
        """A parent with one recipe in place of another; the recipe in full where the parent has no layer of it."""
        if before not in parent.models:
            return Candidate.identity(after, self.trial.lab.layers)
        return with_recipe(parent, before, after)

    def _point(self, name: str) -> Point:
        """A recipe as a point of the space."""
        if name not in self._points:
            self._points[name] = self.space.read(self.made[name]() if name in self.made else self.trial.recipes[name])
        return self._points[name]

    def _recipe_of(self, candidate: Candidate, rng: np.random.Generator) -> str | None:
        """The recipe that gives most of a path's layers; any known one where none gives any."""
        counts = Counter(model for model, _ in candidate.path if model in self.trial.recipes or model in self.made)
        if counts:
            return counts.most_common(1)[0][0]
        return str(rng.choice(list(self.trial.recipes))) if self.trial.recipes else None

    def are_legal(self, paths: Sequence[Candidate]) -> Mask:
        """Whether the layers of each are those of a legal path (N,)."""
        return self.paths.legal_orders([[layer for _, layer in one.path] for one in paths])

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
            children = list(compress(children, self.are_legal([one for _, one in children])))
            if not children:
                break
            rows, paths = np.array([r for r, _ in children]), [one for _, one in children]
            depths = np.array([one.depth for one in paths])
            u = reward.utility(self.judge.costs(paths), depths, wanted[rows])
            here = {int(r): paths[int(np.where(rows == r, u, -np.inf).argmax())] for r in np.unique(rows)}
            found += here.values()
        return found

    def _edits(self, parents: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
        """A legal edit of each path, with layers of its own models and of the pool; fewer where some are illegal."""
        drawn = []
        for one in parents:
            space = replace(self.paths, models=tuple(dict.fromkeys((*one.models, *self.paths.models))))
            drawn.append(space.edit(one.path, rng))
        legal = self.paths.legal_orders([[layer for _, layer in path] for path in drawn])
        return [self.paths.candidate(path) for path in compress(drawn, legal)]
