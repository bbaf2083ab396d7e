"""The phases of HM3 before the online search: sample recipes, score paths for the offline data set, fit the surrogate.

Stages call them one by one and hand the results on in files; a comparison calls them in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.agent.actor import ActorSettings, steps_of, train_actor
from models.agent.description import Describer
from models.agent.judge import FIRST_STEPS, Judge
from models.agent.online import Search, SearchSettings
from models.agent.surrogate import Surrogate
from models.candidate import Candidate
from models.front import Array
from models.merge.space import RecipeSpace
from models.search.anchors import choose_anchors
from models.search.environment import PathSpace
from models.search.trial import Trial

HELD_OUT = 0.1
"""Share of the candidates by which the surrogate's first fit is judged."""

LOOK = 1 / 3
"""Of what is left of a budget: the most that an early look may spend."""

CHECKS = 10
"""How often they are looked at in it."""


@dataclass(frozen=True)
class SampleSettings:
    """Hyperparameters of the recipe search at the beginning."""

    candidates: int = 0  # recipes that are scored, beside the plain merges
    spread: float = 0.5  # share of them that fill the space evenly; the others are chosen by what those have shown
    batch: int = 4  # of those others


@dataclass(frozen=True)
class DatasetSettings:
    """What the offline data set consists of."""

    edits: int = 36  # paths that are one or two edits away from a pool model's own path
    random: int = 0  # random legal paths
    items: int = 32  # items a task on which each is scored
    deletions: Literal["several", "each"] = "several"  # which of the edits leave layers out: half, or each layer once


@dataclass(frozen=True)
class TrainSettings:
    """The first fit of the surrogate."""

    steps: int = FIRST_STEPS  # of Adam on its hyperparameters


def sample(
    trial: Trial, space: RecipeSpace, preferences: Array, settings: SampleSettings, rng: np.random.Generator
) -> None:
    """Score plain merges and recipes, as many as the settings say or the trial pays for, on all items."""
    for recipe in space.plain_merges().values():
        trial.spend_on([trial.add(recipe)], "baseline")
    if not settings.candidates:
        return
    first = round(settings.spread * settings.candidates)
    trial.spend_on([trial.add(space.recipe(point)) for point in space.sample(first, rng)], "recipe")
    rest = (settings.candidates - first) * trial.whole
    if not trial.complete().size or rest <= 0:
        return
    budget, trial.budget = trial.budget, min(trial.budget, trial.spent + rest)
    guided = SearchSettings(batch=settings.batch, rungs=(trial.archive.full,), levels=("recipe",))
    paths = PathSpace(tuple(space.experts), trial.lab.layers)
    Search(trial, new_judge(trial, space), space, paths, preferences, guided, rng).run()
    trial.budget = budget


def anchors(trial: Trial, preferences: Array, count: int) -> list[str]:
    """Names of the merged models that together serve the preferences best: they join the experts in the pool."""
    entries = (trial.archive.entries[i] for i in trial.complete())
    merges = [one.candidate for one in entries if one.candidate.host in trial.recipes]
    merges = [one for one in merges if one.is_identity(trial.lab.layers)]
    if not merges:
        return []
    return [merges[i].host for i in choose_anchors(trial.costs(merges), preferences, count)]


def offline_paths(
    paths: PathSpace, settings: DatasetSettings, rng: np.random.Generator, spare: int, merged: Sequence[str] = ()
) -> dict[Candidate, str]:
    """Paths of the offline data set and where each comes from, the identity path of every model of the pool first.

    Args:
        spare: layers that an edit leaves out at most; 0 where depth is no objective, and nothing is left out.
        merged: models of the pool that layers are left out of in turn, if each is left out alone; by default all.
    """
    identities = [paths.identity(model) for model in paths.models]
    chosen = dict.fromkeys(identities, "identity")
    if spare:
        shortened = _shortened(paths, settings, rng, spare, merged or paths.models)
        chosen |= dict.fromkeys(islice(shortened, settings.edits), "edit")
    left = settings.edits - (len(chosen) - len(identities))
    share = -(-left // len(identities))
    # a few more than the share, in place of those that are known
    edits = [path for one in identities for path in paths.edits(one, rng, share + 2) if path not in chosen]
    chosen |= dict.fromkeys(list(dict.fromkeys(edits))[:left], "edit")
    while sum(kind == "random" for kind in chosen.values()) < settings.random:
        chosen.setdefault(paths.random_path(rng), "random")
    return chosen


def _shortened(
    paths: PathSpace, settings: DatasetSettings, rng: np.random.Generator, spare: int, merged: Sequence[str]
) -> Iterator[Candidate]:
    """Legal paths through one model each that lack layers."""
    each = settings.deletions == "each"
    order = rng.permutation(paths.layers).tolist() if each else []
    for number in range(len(order) or settings.edits // 2):
        if each:
            model, gone = merged[number % len(merged)], order[number : number + 1]
        else:
            model = paths.models[int(rng.integers(len(paths.models)))]
            count = int(rng.integers(1, spare + 1))
            gone = rng.permutation(paths.layers)[:count].tolist()
        kept = [layer for layer in range(paths.layers) if layer not in gone]
        if kept and paths.legal_orders([kept])[0]:
            yield paths.candidate([(model, layer) for layer in kept])


def teach(
    online: Search, settings: ActorSettings, steps: int, on_step: Callable[[], None] | None = None
) -> list[dict[str, float | str]]:
    """Train a search's actor for so many steps, and have a look at what it makes on the way.

    Early looks cost little and make a front long before the training ends; what they score, the surrogate learns from.

    Returns:
        A row a step, as :func:`models.agent.actor.train_actor` has it.
    """
    trial, actor = online.trial, online.actor
    assert actor is not None  # noqa: S101 (who calls has put it there)
    first, rows = round(settings.early * steps), list[dict[str, float | str]]()
    for number, leg in enumerate((first, steps - first)):
        rows += train_actor(actor, trial, settings, min(leg, steps_of(trial, settings)), online.rng, on_step, len(rows))
        if number == 0 and leg:
            budget, trial.budget = trial.budget, trial.spent + int(LOOK * trial.left)
            online.look(online.settings.acted // 2)
            trial.budget = budget
    return rows


def new_judge(trial: Trial, space: RecipeSpace) -> Judge:
    """A judge that has seen nothing yet, of the candidates of a trial."""
    describer = Describer(space, trial.lab.layers)
    for name, recipe in trial.recipes.items():
        describer.add(name, recipe)
    return Judge(describer, Surrogate(describer.groups), trial.reward)


def train(
    trial: Trial,
    judge: Judge,
    settings: TrainSettings,
    rng: np.random.Generator,
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, float | str]]:
    """Fit the surrogate to what a trial has scored, in place: its hyperparameters to most of it, then to all.

    Args:
        trial: what is known.
        judge: has the surrogate.
        settings: hyperparameters.
        rng: which candidates are held out, and the fit's own choices.
        on_step: called with the step.

    Returns:
        Rows with the step, the loss where it is fitted and the loss on held-out candidates: there the mean squared
        error over the variance.
    """
    archive = trial.archive
    index = archive.scored(1)
    candidates = [archive.entries[i].candidate for i in index]
    kept, held_out = split(candidates, HELD_OUT, rng)
    scores = archive.task_scores(index)
    items = np.array([archive.cost(0, archive.entries[i].items) for i in index], dtype=np.float64)
    described = judge.describe(candidates)
    every, rows = max(settings.steps // CHECKS, 1), list[dict[str, float | str]]()

    def check(step: int, loss: float) -> None:
        if step % every == 0 or step == settings.steps:
            error = judge.surrogate.predict(described[held_out])[0] - scores[held_out]
            unexplained = float((np.square(error).mean(axis=0) / scores.var(axis=0)).mean())
            rows.append({"network": "critic", "step": step, "loss": loss, "held_out": unexplained})
        if on_step:
            on_step(step)

    judge.surrogate.fit(described[kept], scores[kept], items[kept], settings.steps, rng, check)
    judge.learn(archive, rng, steps=0)
    return rows


def split(
    candidates: Sequence[Candidate], share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the candidates to fit and of those held out, at least one each."""
    count = min(max(round(share * len(candidates)), 1), len(candidates) - 1)
    order = rng.permutation(len(candidates))
    return np.sort(order[count:]), np.sort(order[:count])
