"""A family whose scores are a formula of recipes and paths, so that what is best in it can be reckoned."""

from dataclasses import dataclass, field

import numpy as np

from models.candidate import Candidate
from models.front import Scale, hypervolume
from models.merge.recipe import recipe_name
from models.merge.space import RecipeSpace
from models.paths.slopes import Taught
from models.search.archive import Archive, Entry
from models.search.environment import PathRules, PathSpace
from models.search.features import FEATURES
from models.search.reward import Reward
from models.search.trial import Trial

EXPERTS = ("a", "b", "c")
COUNTS = (20, 30, 10)
FULL = 30
"""Items after which a candidate is fully scored."""
RULES = PathRules()
BEST_SUM = 2.05
"""Of weights times strengths: more hurts more than it gives."""


@dataclass
class FormulaLab:
    """Three tasks. A model has a strength for each task in each layer; a path sums what its layers give.

    An expert is strong in its own task. A merge has the sum of its weights times its experts' strengths, less the
    square of what is beyond: too much of anything hurts. Layers differ in how much they matter, by task and somewhat by
    item; what is missing hurts the more the more is missing, and a layer used twice hurts.
    """

    layers: int = 6
    seed: int = 0
    uneven: bool = False
    """Experts are strong in some layers and weak in others."""
    fails: tuple = ()
    """Every so-manyth candidate that is evaluated fails: (how many, how: None or NaN)."""
    strengths: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    spans: list = field(default_factory=list)
    """Of what was evaluated: the candidate, and its first item and the one after the last."""
    measured: list = field(default_factory=list)
    lessons: list = field(default_factory=list)
    """Items of which slopes were asked, a number a step."""

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.weight = rng.dirichlet(np.full(self.layers, 2.0), size=3)  # (tasks, L)
        for k, name in enumerate(EXPERTS):
            self.strengths[name] = np.where(np.arange(3)[:, None] == k, 1.0, 0.35) * np.ones((3, self.layers))
            if self.uneven:
                self.strengths[name] = rng.random((3, self.layers))
        self.strengths["base"] = np.full((3, self.layers), 0.3)
        self.by_item = [np.outer(np.ones(count), row) for count, row in zip(COUNTS, self.weight, strict=True)]
        for one in self.by_item:
            noise = rng.uniform(-0.5, 0.5, one.shape)
            one *= 1 + noise - noise.mean(axis=0)

    def add(self, recipe):
        name = recipe_name(recipe)
        t = np.linspace(0, 1, self.layers)
        total = np.zeros((3, self.layers))
        for one in recipe.models:
            block = {"weight": 0.5, **recipe.parameters, **one.parameters}
            weight = np.atleast_1d(block["weight"])
            along = np.interp(t, np.linspace(0, 1, len(weight)), weight) if len(weight) > 1 else weight[0]
            total += along * self.strengths[one.model]
        self.strengths[name] = total - 0.4 * np.maximum(total - 0.8, 0) ** 2
        return Candidate.identity(name, self.layers)

    def scores(self, candidate, start=0, stop=FULL):
        """Over all items by default. NaN for a task without items between."""
        weight = self.weight
        if (start, stop) != (0, FULL):
            parts = [one[start:stop] for one in self.by_item]
            weight = np.stack([one.mean(axis=0) if len(one) else np.full(self.layers, np.nan) for one in parts])
        found = np.zeros(3)
        seen = set()
        for model, layer in candidate.path:
            found += (-0.5 if layer in seen else 1.0) * self.strengths[model][:, layer] * weight[:, layer]
            seen.add(layer)
        missing = sum(self.weight[:, layer] for layer in set(range(self.layers)) - seen)
        return found - missing**2

    def mean_scores(self, candidates, start, stop):
        assert 0 <= start < stop <= FULL
        assert len(set(candidates)) == len(candidates)
        found = []
        for one in candidates:
            self.calls.append(one)
            self.spans.append((one, start, stop))
            if self.fails and len(self.calls) % self.fails[0] == 0:
                found.append(None if self.fails[1] is None else (float("nan"),) * 3)
            else:
                found.append(tuple(self.scores(one, start, stop)))
        return found

    def influence(self, candidate):
        self.measured.append(candidate)
        if self.fails and len(self.measured) % self.fails[0] == 0:
            return None
        return np.array([self.weight[:, layer].mean() for _, layer in candidate.path])

    @property
    def answered(self):
        return COUNTS

    def slopes(self, weights, items):
        """Of the formula for a merge; scores are their own soft ones."""
        self.lessons.append(sum(map(len, items)))
        found = []
        for j, (some, by_item) in enumerate(zip(items, self.by_item, strict=True)):
            weight = by_item[list(some)].mean(axis=0)
            strengths = np.stack([self.strengths[name][j] for name in EXPERTS])
            total = (weights * strengths).sum(axis=0)
            beyond = np.maximum(total - 0.8, 0)
            value = float((weight * (total - 0.4 * beyond**2)).sum())
            found.append(Taught(value, value, weight * (1 - 0.8 * beyond) * strengths))
        return found

    def statistics(self, models):
        found = np.zeros((len(models), self.layers, FEATURES))
        found[..., :3] = np.stack([self.strengths[model].T for model in models])
        return found - found.mean(axis=(0, 1))

    def best_paths(self):
        """Scores (N, 3) and depths (N,) of the best model with each set of layers; nothing there is beats them all.

        A merge whose sums are all :data:`BEST_SUM` is best in all tasks at once.
        """
        space = PathSpace(("best",), self.layers, PathRules(repeats=1))
        paths = [space.decode(row) for row in every_path(space)]
        self.strengths["best"] = np.full((3, self.layers), BEST_SUM - 0.4 * (BEST_SUM - 0.8) ** 2)
        scores = np.array([self.scores(path) for path in paths])
        del self.strengths["best"]
        return scores, np.array([path.depth for path in paths])


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


def recipe_space(**changes):
    experts = {name: name for name in EXPERTS}
    return RecipeSpace(("linear", "task_arithmetic", "ties", "dare_ties"), "base", experts, **changes)


def new_trial(candidates=120, depth=True, **changes):
    lab = FormulaLab(**changes)
    sources = [Candidate.identity(name, lab.layers) for name in ("base", *EXPERTS)]
    kinds = ("base", *["expert"] * 3)
    entries = [Entry(one, kind, 0, FULL, tuple(lab.scores(one))) for one, kind in zip(sources, kinds, strict=True)]
    scores = np.array([one.scores for one in entries])
    names, ideal, nadir = ("x", "y", "z"), tuple(scores.max(0)), tuple(scores.min(0))
    scale = Scale((*names, "layers"), (*ideal, 0.5), (*nadir, 1.0)) if depth else Scale(names, ideal, nadir)
    archive = Archive(entries, COUNTS)
    return Trial(lab, Reward(scale, lab.layers), archive, candidates * archive.cost(0, archive.full) + 7)


def reached(trial):
    """Hypervolume of what is fully scored."""
    return hypervolume(trial.costs([trial.archive.entries[i].candidate for i in trial.complete()]))
