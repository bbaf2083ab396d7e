"""The arms of `hm3 bench front`: every method that is compared, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from models.agent.actor import ActorSettings
from models.agent.hm3 import HM3Settings, hm3
from models.agent.phases import SampleSettings
from models.merge.recipe import Recipe, recipe_name
from models.merge.space import RecipeSpace
from models.search.environment import PathRules
from models.search.trial import Trial
from tasks.bench.baselines import BASELINES
from tasks.bench.baselines.paper import paper
from tasks.bench.baselines.paper_policy import PaperSettings
from tasks.schema.params import Params
from tasks.trials.settings import actor_settings, dataset_settings, sample_settings, search_settings, train_settings

Group = Literal["hm3", "baseline", "ablation", "paper"]

Rows = Sequence[Mapping[str, Any]]
"""What an arm tells of its own course, a row an episode: numbers by name, ``evaluations`` among them."""

Run = Callable[[Trial, RecipeSpace, PathRules, np.random.Generator], Rows | None]
"""Spends the trial's budget through ``Trial.spend_on``; the same generator gives the same archive."""

BATCH = 16
"""Recipes that random search scores at once."""


UNREPAIRED = ("greedy-deletion", "block-influence", "nsga2-paths")
"""Baselines that run without repair too."""


@dataclass(frozen=True)
class Arm:
    """A method that is compared."""

    name: str
    title: str
    settings: str
    """Which settings it runs with, and where they come from."""
    run: Run
    group: Group
    """Ablations are a family of tests of their own."""
    repairs: bool = True
    """Whether seams of its candidates are repaired, where depth counts and the profile doesn't switch it off."""

    def without_repair(self) -> Arm:
        """The same with every path as its layers are."""
        told = f"as {self.name}, seams left as they are"
        group: Group = "ablation" if self.group == "hm3" else self.group
        return Arm(f"{self.name}-no-repair", f"{self.title}, no repair", told, self.run, group, repairs=False)


def random_recipes(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> None:
    """Latin hypercubes over the space of recipes, each scored on all items: what a search must beat to be one."""
    known: set[str] = set()
    while trial.left >= trial.whole:
        drawn = [space.recipe(point) for point in space.sample(BATCH, rng)]
        new: dict[str, Recipe] = {recipe_name(one): one for one in drawn if recipe_name(one) not in known}
        if not new:
            return
        known |= set(new)
        trial.spend_on([trial.add(recipe) for recipe in new.values()][: trial.left // trial.whole], "recipe")


def masked_paper(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> Rows:
    """The published algorithm among the paths that the others search."""
    return paper(trial, space, rules, rng, PaperSettings(masked=True))


_OWN = (
    Arm(
        "random-recipes",
        "random recipes",
        f"Latin hypercubes of {BATCH} points over the methods and ranges that every recipe search has",
        random_recipes,
        "baseline",
    ),
    Arm(
        "paper",
        "HM3 as published",
        "Algorithm 1 of Zhou et al. 2025; what it leaves open as docs/results/paper.md says",
        paper,
        "paper",
    ),
    Arm(
        "paper-masked",
        "HM3 as published, within the mask",
        "as paper, but only over the paths that are legal for the others",
        masked_paper,
        "paper",
    ),
)


def searcher(settings: HM3Settings, linear: bool = False) -> Run:
    """HM3 with these settings."""

    def run(trial: Trial, space: RecipeSpace, rules: PathRules, rng: np.random.Generator) -> Rows:
        if linear:
            trial.reward = replace(trial.reward, linear=True)
        return hm3(trial, space, rules, rng, settings).rows

    return run


SAMPLED = 32
"""Recipes that are scored first where no actor makes any."""


def hm3_settings(params: Params) -> HM3Settings:
    """What the stages take from the parameters."""
    return HM3Settings(
        preferences=params.search.preferences,
        anchors=params.sample.anchors,
        sample=sample_settings(params.sample),
        dataset=dataset_settings(params.dataset),
        actor=actor_settings(params.train),
        train=train_settings(params.train),
        search=search_settings(params.search),
    )


def hm3_arms(settings: HM3Settings) -> Iterator[Arm]:
    """HM3, and what is left of it when one part is taken away."""
    searching = settings.search
    own = settings.actor or ActorSettings()
    without = {
        "parameters": (
            "no parameter level",
            replace(settings, sample=None, actor=None, search=replace(searching, levels=("path",))),
        ),
        "architecture": (
            "no architecture level",
            replace(settings, dataset=None, search=replace(searching, levels=("recipe",))),
        ),
        "actor": ("no actor", replace(settings, actor=None, sample=SampleSettings(SAMPLED))),
        "layers": ("one coefficient an expert", replace(settings, actor=replace(own, layered=False))),
        "offline": ("no offline data set", replace(settings, dataset=None)),
        "halving": ("no successive halving", replace(settings, search=replace(searching, rungs=()))),
    }
    told = "as stage by stage, with the parameters of the profile"
    whole = Arm("hm3", "HM3", told, searcher(settings), "hm3")
    yield from (whole, whole.without_repair())
    for name, (title, changed) in without.items():
        yield Arm(f"hm3-no-{name}", f"HM3, {title}", f"as hm3, {title}", searcher(changed), "ablation")
    yield Arm("hm3-linear", "HM3, linear reward", "as hm3, -Σ λ c as reward", searcher(settings, True), "ablation")


ARMS: dict[str, Arm] = {one.name: one for one in (*hm3_arms(HM3Settings()), *_OWN)}
ARMS |= {one.name: Arm(one.name, one.title, one.settings, one.run, "baseline") for one in BASELINES.values()}
ARMS |= {one.name: one for one in (ARMS[name].without_repair() for name in UNREPAIRED)}
