"""HM3 as it was published (Zhou et al. 2025, Algorithm 1), as literally as it can be run, to compare with.

For each of N preferences: merge the experts with the preference as weights, add the merge to the pool, and train a new
actor and critic from nothing on rollouts, each of which is scored for real. Equation numbers are the paper's.
docs/results/paper.md lists what had to be decided to run it at all; the algorithm's known mistakes are left in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from models.candidate import Candidate
from models.front import Array, hypervolume
from models.merge.recipe import Recipe
from models.merge.space import PLACES, RecipeSpace
from models.search.environment import PathRules, PathSpace
from models.search.trial import Trial
from tasks.bench.baselines.paper_policy import Actor, Critic, PaperSettings, ppo, roll_out

GIVEN_UP = 3
"""Preferences in a row that find nothing new, after which nothing is left to try."""

Rows = list[dict[str, float]]


def paper(
    trial: Trial,
    space: RecipeSpace,
    rules: PathRules,
    rng: np.random.Generator,
    settings: PaperSettings | None = None,
    on_iteration: Callable[[dict[str, float]], None] | None = None,
) -> Rows:
    """Spend the budget of a trial, in which base and experts are scored, in equal shares for the preferences.

    What a preference leaves over goes to the later ones, and after the last to further ones.

    Args:
        trial: what is known and what may be spent.
        space: of recipes.
        rules: ``stretch`` bounds the paths; the rest counts only if ``masked``.
        rng: every choice.
        settings: hyperparameters.
        on_iteration: called with each row.

    Returns:
        A row an iteration: item evaluations spent, hypervolume of what is fully scored, the best utility of it in the
        mean over the N preferences, and how reward and networks fare.
    """
    settings = settings or PaperSettings()
    count = min(max(trial.left // (settings.each * trial.whole), 1), settings.preferences)
    wanted = rng.dirichlet(np.ones(trial.reward.tasks), size=count)
    rows: Rows = []

    def report(row: dict[str, float]) -> None:
        rows.append({"round": len(rows) + 1, **standing(trial, wanted), **row})
        if on_iteration:
            on_iteration(rows[-1])

    number = idle = 0
    while trial.left >= trial.whole and idle < GIVEN_UP:
        preference = wanted[number] if number < count else rng.dirichlet(np.ones(trial.reward.tasks))
        before = trial.spent
        limit = before + trial.left // max(count - number, 1)
        number += 1
        for row in one_preference(trial, space, rules, preference, limit, settings, rng):
            report({"preference": number, **row})
        idle = idle + 1 if trial.spent == before else 0
    return rows


def one_preference(
    trial: Trial,
    space: RecipeSpace,
    rules: PathRules,
    preference: Array,
    limit: int,
    settings: PaperSettings,
    rng: np.random.Generator,
) -> Iterator[dict[str, float]]:
    """Algorithm 1 for one preference (K_tasks,), until ``limit`` item evaluations are spent in all.

    Yields:
        What became of each iteration.
    """
    merge = trial.add(merged(trial, space, preference, settings.density))
    all_scored(trial, [merge], "recipe", limit)
    paths = PathSpace((*space.experts, merge.host), trial.lab.layers, rules if settings.masked else loose(rules))
    statistics = np.nan_to_num(trial.lab.statistics(paths.models))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        actor, critic = Actor(paths, statistics, settings), Critic(paths, statistics, settings)
    optimiser = torch.optim.AdamW([*actor.parameters(), *critic.parameters()], lr=settings.learning_rate)
    idle = 0
    for _ in range(settings.iterations):
        drawn = roll_out(actor, critic, paths, settings, generator)
        found = [paths.decode(row) for row in drawn.actions]
        before = trial.spent
        whole = all_scored(trial, found, "policy", limit)
        known = [i for i, one in enumerate(found) if is_known(trial, one)]
        if known:
            drawn, found = drawn.take(torch.tensor(known)), [found[i] for i in known]
            reward = rewards(trial, found, preference, settings.depth_cost / trial.lab.layers)
            losses = ppo(actor, critic, optimiser, drawn, torch.from_numpy(reward).float(), settings)
            length = float(np.mean([one.depth for one in found]))
            yield {"reward": float(reward.mean()), "best": float(reward.max()), "length": length, **losses}
        idle = idle + 1 if trial.spent == before else 0
        if not whole or limit - trial.spent < trial.whole or idle == settings.idle:
            return


def loose(rules: PathRules) -> PathRules:
    """The rules without a mask: the paper has none but a longest path."""
    return replace(rules, mask="none")


def merged(trial: Trial, space: RecipeSpace, preference: Array, density: float) -> Recipe:
    """DARE-TIES with a preference (K_tasks,) as weights (Eq. 5)."""
    weights = dict.fromkeys(space.experts, 0.0)
    for task, weight in zip(trial.reward.scale.names, preference, strict=False):
        weights[expert_of(trial, space, task)] += float(weight)
    own = {name: {"weight": round(weight, PLACES), "density": density} for name, weight in weights.items()}
    return space.make("dare_ties", own)


def expert_of(trial: Trial, space: RecipeSpace, task: str) -> str:
    """The expert that has a task's name; else the one that does best on it."""
    if task in space.experts:
        return task
    k = trial.reward.scale.names.index(task)
    identities = {name: Candidate.identity(name, trial.lab.layers) for name in space.experts}
    costs = trial.costs(list(identities.values()))
    return list(identities)[int(costs[:, k].argmin())]


def is_known(trial: Trial, candidate: Candidate) -> bool:
    """Whether a candidate is scored on all items."""
    return candidate in trial.archive and trial.archive[candidate].items == trial.archive.full


def all_scored(trial: Trial, candidates: Sequence[Candidate], kind: str, limit: int) -> bool:
    """Score on all items those that are not yet, as many as a limit allows; whether it allowed all of them."""
    fresh = [one for one in dict.fromkeys(candidates) if not is_known(trial, one)]
    room = max(min(trial.budget, limit) - trial.spent, 0) // trial.whole
    trial.spend_on(fresh[:room], kind)
    return len(fresh) <= room


def rewards(trial: Trial, candidates: Sequence[Candidate], preference: Array, per_layer: float) -> Array:
    """R = Σ_k λ_k f_k - β₁T (N,) of scored paths (Eq. 9). One that failed has the worst scores there are."""
    known = trial.archive.task_scores(trial.complete())
    worst = known.min(axis=0) if len(known) else np.zeros(len(preference))
    tasks = np.array([trial.archive[one].scores or worst for one in candidates])
    return np.asarray(tasks @ preference - per_layer * np.array([one.depth for one in candidates]))


def standing(trial: Trial, wanted: Array) -> dict[str, float]:
    """How far a trial has come; the preferences (N, K_tasks) give depth no weight where it is an objective."""
    whole = trial.complete()
    some = [trial.archive.entries[i].candidate for i in whole]
    costs, depths = trial.costs(some), trial.archive.depths(whole)
    padded = np.pad(wanted, ((0, 0), (0, costs.shape[1] - wanted.shape[1])))
    u = trial.reward.utility(costs[:, None], depths[:, None], padded)
    return {
        "evaluations": trial.spent,
        "candidates": len(trial.archive),
        "full": len(whole),
        "hv": hypervolume(costs),
        "utility": float(u.max(axis=0).mean()),
    }
