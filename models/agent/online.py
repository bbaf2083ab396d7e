"""Online search (method.md, section 4): one joint space of recipes and paths, screened by a surrogate, scored in rungs.

It begins with the actor's merges, and with the layers that can leave them, one by one. Then each round proposes what
varies recipe and path together; batches are chosen by Thompson sampling for what they add to the hypervolume, scored on
few items first, and on all items only where the surrogate, which has seen these first scores, still expects a gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.agent.actor import Actor
from models.agent.judge import Judge, Targets, complete_best, greedy
from models.agent.proposals import LEVELS, Proposer
from models.candidate import Candidate
from models.front import Array, hypervolume, scalarise
from models.merge.space import RecipeSpace
from models.preferences import over_tasks, preferences, softened
from models.search.deletion import delete_greedily, task_costs
from models.search.environment import PathSpace
from models.search.trial import Trial


@dataclass(frozen=True)
class SearchSettings:
    """Hyperparameters of the online search."""

    batch: int = 16  # new candidates a round
    rungs: tuple[int, ...] = (32, 128)  # items a task at each rung of successive halving; all items end it in any case
    keep: float = 0.25  # candidates promoted to the next rung, over those new on the rung before
    levels: tuple[str, ...] = LEVELS
    acted: int = 16  # preferences for which the actor's merges are scored; half of them early, and where depth counts
    offers: int = 256  # proposals that are screened in a round
    generations: int = 2  # of offers: the later ones vary the best of the earlier ones too
    per_round: int = 4  # preferences a round; the rounds cycle through all
    parents: int = 4  # candidates of the archive that are varied for each preference
    samples: int = 8  # of the surrogate, by Thompson sampling
    directions: int = 128  # in which hypervolume is estimated


@dataclass
class Search:
    """A search and what it remembers between rounds. Trial and judge change in place.

    The same arguments, generator and scores give the same archive, bit for bit.
    """

    trial: Trial
    """What is known and what may be spent."""
    judge: Judge
    """What screens proposals."""
    space: RecipeSpace
    paths: PathSpace
    """Over the pool."""
    preferences: Array
    """(M, K) that the rounds cycle through; one alone is searched for its utility."""
    settings: SearchSettings
    rng: np.random.Generator
    """Every choice."""
    actor: Actor | None = None
    on_round: Callable[[dict[str, float]], None] | None = None
    """Called with each row."""

    def __post_init__(self) -> None:
        trial, settings, rng = self.trial, self.settings, self.rng
        full = trial.archive.full
        self.rungs = [*(rung for rung in sorted(set(settings.rungs)) if rung < full), full]
        self.targets = Targets(trial.reward, self.preferences, settings.directions, rng)
        self.proposer = Proposer(trial, self.judge, self.space, self.paths, self.actor, settings.levels)
        self.cycle = rng.permutation(len(self.preferences))
        self.number = 0
        self.rows: list[dict[str, float]] = []

    def run(self) -> list[dict[str, float]]:
        """Search until the budget does not pay for one more candidate.

        Returns:
            A row a round, the first before any: item evaluations spent, hypervolume of what is fully scored, the best
            utility of it in the mean over the preferences, and the surrogate's error on the round.
        """
        acted = self.settings.acted
        self.look(acted // 2 if self.trial.reward.wants_cuts(self.preferences) else acted)
        self.report({})
        while (size := self.affordable()) > 0 and self.round(size):
            pass
        return self.rows

    def look(self, acted: int) -> None:
        """Score the actor's merges for so many preferences, cuts of the best for the first, and what is promising."""
        tasks = self.trial.reward.tasks
        if len(self.preferences) > 1:
            wanted = softened(preferences(tasks, acted, self.rng))  # equal weights first
        else:
            wanted = softened(over_tasks(self.preferences[0], tasks)[None])
        if self.actor is not None and "recipe" in self.settings.levels:
            self.act(self.actor, wanted)
        if "path" in self.settings.levels and self.trial.reward.wants_cuts(self.preferences):
            self.cut(wanted[0])
        self.judge.learn(self.trial.archive, self.rng)
        self.promote(1, self.trial.archive.full, self.settings.batch)

    def act(self, actor: Actor, wanted: Array) -> None:
        """Score the actor's merges for preferences (R, K_tasks), first on the rung on which cuts will be seen."""
        made = dict.fromkeys(self.proposer.add(actor.recipe(self.space, one)) for one in wanted)
        new = [one for one in made if one not in self.trial.archive]
        for rung in (self.rungs[0], self.rungs[-1]):
            self.trial.spend_on(new, "actor", rung)

    def cut(self, preference: Array) -> None:
        """Let layers go, one by one, of the best model for a preference (K_tasks,)."""
        whole = [self.trial.archive.entries[i].candidate for i in self.trial.complete()]
        whole = [one for one in whole if one.is_identity(self.trial.lab.layers)]
        start = whole[int(scalarise(task_costs(self.trial, whole), preference).argmax())]
        shortest, legal = self.trial.reward.shortest, self.proposer.are_legal
        delete_greedily(self.trial, start, preference, {}, self.rungs[0], shortest, legal)

    def affordable(self) -> int:
        """New candidates that what is left of the budget pays for, with their share of promotions; a batch at most."""
        steps = zip([0, *self.rungs[:-1]], self.rungs, strict=True)
        costs = (self.trial.archive.cost(start, stop) for start, stop in steps)
        each = sum(self.settings.keep**level * cost for level, cost in enumerate(costs))
        return min(self.settings.batch, int(self.trial.left // each))

    def round(self, size: int) -> bool:
        """One round; false if there was nothing left to propose."""
        self.number += 1
        wanted = softened(self.preferences[self.cycle[: self.settings.per_round]])
        self.cycle = np.roll(self.cycle, -self.settings.per_round)
        offers = self.offers(wanted)
        chosen = self.choose(offers, size)
        if not chosen:
            return False
        entered = dict.fromkeys(map(self.proposer.enter, chosen))  # a recipe can come up a second time
        found = [one for one in entered if one not in self.trial.archive]
        self.proposer.forget()
        if not found:
            return True
        expected = self.judge.expect(found)[0]
        self.trial.spend_on(found, [self.kind(one) for one in found], self.rungs[0], self.number)
        for level in range(1, len(self.rungs)):
            self.judge.learn(self.trial.archive, self.rng, steps=0)
            self.promote(self.rungs[level - 1], self.rungs[level], max(round(size * self.settings.keep**level), 1))
        self.judge.learn(self.trial.archive, self.rng)
        sound = [j for j, one in enumerate(found) if one in self.trial.archive and self.trial.archive[one].scores]
        errors = [np.abs(expected[j] - np.array(self.trial.archive[found[j]].scores)).mean() for j in sound]
        self.report({"surrogate_error": float(np.mean(errors)) if errors else np.nan})
        return True

    def kind(self, candidate: Candidate) -> str:
        """What is new in a candidate: a recipe, or a path."""
        return "recipe" if candidate.is_identity(self.trial.lab.layers) else "path"

    def offers(self, wanted: Array) -> list[Candidate]:
        """Proposals, none of which was scored before or is there twice."""
        seen: dict[Candidate, None] = {}
        count = -(-self.settings.offers // self.settings.generations)
        for _ in range(self.settings.generations):
            parents = self.proposer.parents(wanted, self.settings.parents, list(seen))
            made = self.proposer.propose(wanted, parents, count, self.rng)
            seen.update(dict.fromkeys(one for one in made if one not in self.trial.archive))
        return list(seen)

    def choose(self, offers: list[Candidate], size: int) -> list[Candidate]:
        """A batch: one after the other the proposal that adds most under a joint sample."""
        if not offers:
            return []
        depths = np.array([one.depth for one in offers])
        values = self.targets.values(self.judge.draw(offers, self.settings.samples, self.rng), depths)
        best = complete_best(self.judge, self.trial.archive, self.trial.complete(), self.targets)
        hope = self.targets.values(self.judge.costs(offers), depths).mean(axis=1)
        return [offers[i] for i in greedy(values, best, size, hope)]

    def promote(self, at_least: int, stop: int, count: int) -> None:
        """Score on more items what is expected to add most to what is fully scored."""
        archive = self.trial.archive
        index = archive.scored(at_least, stop)
        whole = self.trial.complete()
        if len(index) == 0 or count < 1:
            return
        candidates = [archive.entries[i].candidate for i in index]
        values = self.targets.values(self.judge.costs(candidates), archive.depths(index))
        best = complete_best(self.judge, archive, whole, self.targets)
        picked = greedy(values[None], best, count, values.mean(axis=1))
        gains = np.maximum(values[picked] - best, 0).mean(axis=1)
        entries = [archive.entries[index[i]] for i, gain in zip(picked, gains, strict=True) if gain > 0 or count == 1]
        self.trial.spend_on([one.candidate for one in entries], [one.kind for one in entries], stop, self.number)

    def report(self, extra: dict[str, float]) -> None:
        """Add a row."""
        archive, whole = self.trial.archive, self.trial.complete()
        costs = self.trial.reward.costs(archive.task_scores(whole), archive.depths(whole))
        u = self.trial.reward.utility(costs[:, None], archive.depths(whole)[:, None], self.preferences)
        row = {
            "round": self.number,
            "evaluations": self.trial.spent,
            "candidates": len(archive),
            "full": len(whole),
            "hv": hypervolume(costs),
            "utility": float(u.max(axis=0).mean()),
        }
        self.rows.append({**row, **extra})
        if self.on_round:
            self.on_round(self.rows[-1])
