"""Online search (method.md, section 4): propose of every kind, screen on the surrogate, score in rungs, learn.

Each round shares its places out among three kinds of proposals by what they have gained. The surrogate screens them:
batches are chosen by Thompson sampling for what they add to the hypervolume, scored on few items first, and on all
items only where the surrogate, which has seen these first scores, still expects a gain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.agent.actor import Actor
from models.agent.judge import Judge, Targets, complete_best, greedy
from models.agent.proposals import Proposer
from models.agent.shares import Shares, fair_gains
from models.candidate import Candidate
from models.front import Array, hypervolume
from models.merge.recipe import Recipe
from models.merge.space import RecipeSpace
from models.preferences import over_tasks, preferences, softened
from models.search.environment import PathSpace
from models.search.trial import Trial

KINDS = ("actor", "recipe", "layered", "edit")
"""Where proposals come from: the actor's recipes, new recipes, per-layer recipes, path edits."""


@dataclass(frozen=True)
class SearchSettings:
    """Hyperparameters of the online search."""

    batch: int = 16  # new candidates a round
    rungs: tuple[int, ...] = (32, 128)  # items a task at each rung of successive halving; all items end it in any case
    keep: float = 0.25  # candidates promoted to the next rung, over those new on the rung before
    kinds: tuple[str, ...] = KINDS
    offers: int = 96  # proposals of each kind that are screened in a round
    generations: int = 2  # of offers: the later ones vary the best of the earlier ones too
    per_round: int = 4  # preferences a round; the rounds cycle through all
    parents: int = 4  # candidates of the archive that are varied for each preference
    acted: int = 16  # preferences for which the actor's merges are scored to begin with
    stops: int = 4  # values of a per-layer recipe from the first layer to the last
    samples: int = 8  # of the surrogate, by Thompson sampling
    directions: int = 128  # in which hypervolume is estimated


def search(
    trial: Trial,
    judge: Judge,
    space: RecipeSpace,
    paths: PathSpace,
    preferences: Array,
    settings: SearchSettings,
    rng: np.random.Generator,
    on_round: Callable[[dict[str, float]], None] | None = None,
    actor: Actor | None = None,
) -> list[dict[str, float]]:
    """Search until the budget does not pay for one more candidate. Trial and judge change in place.

    The same arguments, generator and scores give the same archive, bit for bit.

    Args:
        trial: what is known and what may be spent.
        judge: what screens proposals.
        space: of recipes.
        paths: over the pool.
        preferences: (M, K) that the rounds cycle through.
        rng: every choice.
        on_round: called with each row.

    Returns:
        A row a round, the first before any: item evaluations spent, hypervolume of what is fully scored, the best
        utility of it in the mean over the preferences, the surrogate's error on the round, and the kinds' shares.
    """
    run = _Search(trial, judge, space, paths, preferences, settings, rng, on_round, actor)
    run.begin()
    while (size := run.affordable()) > 0 and run.round(size):
        pass
    return run.rows


@dataclass
class _Search:
    """A search and what it remembers between rounds."""

    trial: Trial
    judge: Judge
    space: RecipeSpace
    paths: PathSpace
    preferences: Array
    settings: SearchSettings
    rng: np.random.Generator
    on_round: Callable[[dict[str, float]], None] | None
    actor: Actor | None = None

    def __post_init__(self) -> None:
        trial, settings, rng = self.trial, self.settings, self.rng
        self.kinds = tuple(kind for kind in settings.kinds if self.actor or kind != "actor")
        full = trial.archive.full
        self.rungs = [*(rung for rung in sorted(set(settings.rungs)) if rung < full), full]
        self.targets = Targets(trial.reward, self.preferences, settings.directions, rng)
        self.proposer = Proposer(trial, self.judge, self.space, self.paths, settings.stops, self.actor)
        self.shares = Shares(self.kinds)
        self.cycle = rng.permutation(len(self.preferences))
        self.number = 0
        self.rows: list[dict[str, float]] = []

    def begin(self) -> None:
        """Score the actor's merges for many preferences, and what is promising of what is half scored; all items."""
        if self.actor is not None:
            made = dict.fromkeys(self.trial.add(one) for one in self.acts(self.actor))
            for one in made:
                self.judge.describer.add(one.host, self.trial.recipes[one.host])
            self.trial.spend_on([one for one in made if one not in self.trial.archive], "actor")
        self.judge.learn(self.trial.archive, self.rng)
        self.promote(1, self.trial.archive.full, self.settings.batch // 2)
        self.report({})

    def acts(self, actor: Actor) -> list[Recipe]:
        """The actor's recipes for preferences over the tasks: the one that is searched for, or such as cover all."""
        if len(self.preferences) > 1:
            wanted = preferences(actor.tasks, self.settings.acted, self.rng)
        else:
            wanted = over_tasks(self.preferences[0], actor.tasks)[None]
        return [actor.recipe(self.space, one) for one in softened(wanted)]

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
        before = {entry.candidate: entry.charged for entry in self.trial.archive.entries}
        entered = {self.proposer.enter(candidate): kind for candidate, kind in chosen}
        self.proposer.forget()
        found = [one for one in entered if one not in self.trial.archive]  # a recipe can come up a second time
        kinds = [entered[one] for one in found]
        if not found:
            return True
        expected = self.judge.expect(found)[0]
        self.trial.spend_on(found, kinds, self.rungs[0], self.number)
        for level in range(1, len(self.rungs)):
            self.judge.learn(self.trial.archive, self.rng, steps=0)
            self.promote(self.rungs[level - 1], self.rungs[level], max(round(size * self.settings.keep**level), 1))
        self.judge.learn(self.trial.archive, self.rng)
        self.credit(before)
        sound = [j for j, one in enumerate(found) if one in self.trial.archive and self.trial.archive[one].scores]
        errors = [np.abs(expected[j] - np.array(self.trial.archive[found[j]].scores)).mean() for j in sound]
        shares = {f"share_{kind}": share for kind, share in self.shares.shares().items()}
        self.report({"surrogate_error": float(np.mean(errors)) if errors else np.nan, **shares})
        return True

    def offers(self, wanted: Array) -> dict[str, list[Candidate]]:
        """Proposals of each kind, none of which was scored before or is there twice."""
        result: dict[str, list[Candidate]] = {kind: [] for kind in self.kinds}
        seen: dict[Candidate, None] = {}
        count = -(-self.settings.offers // self.settings.generations)
        for _ in range(self.settings.generations):
            parents = self.proposer.parents(wanted, self.settings.parents, list(seen))
            for kind in self.kinds:
                made = self.proposer.propose(kind, wanted, parents, count, self.rng)
                new = [one for one in dict.fromkeys(made) if one not in self.trial.archive and one not in seen]
                seen.update(dict.fromkeys(new))
                result[kind] += new
        return result

    def choose(self, offers: dict[str, list[Candidate]], size: int) -> list[tuple[Candidate, str]]:
        """A batch: each kind's share of the places goes to those of its proposals that add most."""
        pool = [(candidate, kind) for kind, some in offers.items() for candidate in some]
        if not pool:
            return []
        candidates = [candidate for candidate, _ in pool]
        depths = np.array([one.depth for one in candidates])
        values = self.targets.values(self.judge.draw(candidates, self.settings.samples, self.rng), depths)
        best = complete_best(self.judge, self.trial.archive, self.trial.complete(), self.targets)
        hope = self.targets.values(self.judge.costs(candidates), depths).mean(axis=1)
        chosen: list[int] = []
        for kind, places in [*self.shares.places(size, self.rng).items(), ("any", size)]:  # who lacks offers gives way
            open_ = (i for i, (_, one) in enumerate(pool) if kind in (one, "any") and i not in chosen)
            index = np.array([*open_], dtype=np.int64)
            places = min(places, size - len(chosen))
            picked = index[greedy(values[:, index], best, places, hope[index], first=len(chosen))]
            best = np.maximum(best, values[:, picked].mean(axis=0).max(axis=0)) if len(picked) else best
            chosen += picked.tolist()
        return [pool[i] for i in chosen]

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

    def credit(self, before: dict[Candidate, int]) -> None:
        """Tell the shares what each kind has cost in this round, and what its candidates added to the hypervolume.

        What several kinds have found alike is shared among them, whichever is listed first: see :func:`fair_gains`.
        """
        spent = {one.candidate: one.charged - before.get(one.candidate, 0) for one in self.trial.archive.entries}
        costs: Counter[str] = Counter()
        for entry in self.trial.archive.entries:
            costs[entry.kind] += spent[entry.candidate]
        whole = [self.trial.archive.entries[i] for i in self.trial.complete()]
        kinds = np.array([one.kind if spent[one.candidate] else "" for one in whole])  # "": was there before
        front = self.judge.costs([one.candidate for one in whole])

        def value(some: frozenset[str]) -> float:
            return hypervolume(front[np.isin(kinds, ["", *some])])

        self.shares.learn(fair_gains(set(kinds.tolist()) - {""}, value), costs)

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
