"""Online search over paths (method.md, section 4): PPO on the surrogate, proposals, screening, successive halving.

PPO is Schulman et al. 2017 with generalised advantages (Schulman et al. 2016), in the manner of cleanrl's ``ppo.py``.
It costs no item evaluation: the surrogate stands in for the scores. Those are spent on the batch that Thompson sampling
chooses, on few items first and on all items only for what is promising.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.agent.archive import Archive, Entry
from models.agent.networks import Agent
from models.agent.offline import actor_loss, critic_loss, surrogate_loss, update
from models.agent.proposals import Rollouts, beam, roll_out
from models.agent.trajectories import trajectories
from models.candidate import Candidate
from models.front import Array, Indices, hypervolume

Evaluate = Callable[[Sequence[Candidate], int, int], Sequence[Sequence[float] | None]]
"""Mean task scores (K_tasks,) of each candidate over the items [start, stop) of every task; None if it failed."""

SOFTENED = 0.1
"""Share of equal weights in the preference of a round: at a corner everything else would be left to chance."""


@dataclass(frozen=True)
class SearchSettings:
    """Hyperparameters of the online search."""

    budget: int  # item evaluations of this search: candidates x items x tasks
    batch: int = 32  # new candidates a round
    rungs: tuple[int, ...] = (32, 128)  # items a task at each rung of successive halving; all items end it in any case
    keep: float = 0.25  # candidates promoted to the next rung, over those new on the rung before
    per_round: int = 4  # preferences a round; the rounds cycle through all
    rollouts: int = 256  # paths drawn for PPO, and as many edits
    ppo_epochs: int = 2
    minibatches: int = 4  # of an epoch
    clip: float = 0.2  # of PPO's ratio
    gae: float = 0.95  # λ of generalised advantages; γ is 1
    value_coefficient: float = 0.5  # c₁
    entropy: tuple[float, float] = (0.02, 0.002)  # c₂, with nothing and with all of the budget spent
    target_kl: float = 0.02  # PPO stops for the round when the policy has moved this far
    pessimism: float = 0.5  # standard deviations of the ensemble that PPO's scores lie below the mean
    parents: int = 4  # candidates of the archive that are edited for each preference
    beam: int = 12  # width of the beam and Wolpertinger's number of nearest actions
    epsilon: float = 0.1  # probability of a uniform action in the beam
    updates: int = 8  # optimiser steps of each network on the archive, a round
    paths: int = 32  # paths in each such step
    relabels: int = 8  # preferences under which each is seen
    expectile: float = 0.8  # τ of the critic
    temperature: float = 0.1  # β of the actor's weights
    learning_rate: float = 3e-4  # AdamW


def search(
    agent: Agent,
    archive: Archive,
    preferences: Array,
    evaluate: Evaluate,
    settings: SearchSettings,
    rng: np.random.Generator,
    on_round: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Search until the budget does not pay for one more candidate. The agent and the archive change in place.

    The same agent, archive, preferences, settings, generator and scores give the same archive, bit for bit.

    Args:
        agent: trained, for the pool and the objectives at hand.
        archive: what is known: base, experts, baselines and recipes as identity paths, and the offline paths.
        preferences: (M, K) that the rounds cycle through.
        evaluate: scores candidates.
        settings: hyperparameters.
        rng: every choice.
        on_round: called with each row.

    Returns:
        A row a round, the first before any: item evaluations spent here, hypervolume of what is fully scored, the best
        utility of it in the mean over the preferences, and how the networks fare.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    player = torch.optim.AdamW([*agent.actor.parameters(), *agent.critic.parameters()], lr=settings.learning_rate)
    predictor = torch.optim.AdamW(agent.surrogate.parameters(), lr=settings.learning_rate)
    rungs = [*(rung for rung in sorted(set(settings.rungs)) if rung < archive.full), archive.full]
    objectives = preferences.shape[1]
    directions = preferences
    if len(preferences) > 1:  # denser than the rounds, so that gains between their preferences count too
        directions = np.concatenate([preferences, rng.dirichlet(np.ones(objectives), size=4 * len(preferences))])
    cycle = rng.permutation(len(preferences))
    paths = [i for i, entry in enumerate(archive.entries) if agent.space.contains(entry.candidate)]
    number, spent, rows = 0, 0, list[dict[str, float]]()

    def score(candidates: Sequence[Candidate], kinds: Sequence[str], stop: int) -> None:
        """Score on the items up to ``stop`` that each lacks; as many, from the first, as the budget allows."""
        nonlocal spent
        starts = [archive[one].items if one in archive else 0 for one in candidates]
        for start in sorted(set(starts)):
            cost = archive.cost(start, stop)
            group = [i for i, first in enumerate(starts) if first == start][: (settings.budget - spent) // cost]
            spent += cost * len(group)
            for i, scores in zip(group, evaluate([candidates[i] for i in group], start, stop), strict=True):
                archive.record(candidates[i], kinds[i], number, stop, scores)

    def promote(at_least: int, stop: int, count: int) -> None:
        """Score on more items what looks better than all that is fully scored."""
        chosen = promising(agent, archive, archive.scored(at_least, stop), directions, count)
        score([entry.candidate for entry in chosen], [entry.kind for entry in chosen], stop)

    def report(extra: dict[str, float]) -> None:
        whole = archive.scored(archive.full)
        costs = agent.reward.costs(archive.task_scores(whole), archive.depths(whole))
        best = utilities(agent, archive, whole, preferences).max(axis=0, initial=-np.inf)
        row = {"round": number, "evaluations": spent, "candidates": len(archive), "full": len(whole)}
        rows.append({**row, "hv": hypervolume(costs), "utility": float(best.mean()), **extra})
        if on_round:
            on_round(rows[-1])

    promote(1, archive.full, settings.batch // 2)  # what the offline data set has left half scored
    report({})

    while (size := affordable(archive, rungs, settings, settings.budget - spent)) > 0:
        number += 1
        wanted = preferences[cycle[: settings.per_round]]
        wanted = (1 - SOFTENED) * wanted + SOFTENED / objectives
        cycle = np.roll(cycle, -settings.per_round)

        # 1. PPO on rollouts that the surrogate scores
        drawn = roll_out(agent, wanted[np.arange(settings.rollouts) % len(wanted)], generator)
        policy = ppo(agent, player, drawn, settings, spent / settings.budget, rng)

        # 2. propose
        found: dict[Candidate, str] = {}
        for preference in wanted:
            found |= dict.fromkeys(beam(agent, preference, settings.beam, settings.epsilon, rng), "beam")
        for actions in drawn.actions:
            found.setdefault(agent.space.decode(actions), "policy")
        known = np.array([i for i in paths if archive.entries[i].scores is not None], dtype=np.int64)
        edits = settings.rollouts // (settings.parents * len(wanted))
        for u in utilities(agent, archive, known, wanted).T:
            for i in known[np.argsort(-u, kind="stable")[: settings.parents]]:
                for path in agent.space.edits(archive.entries[i].candidate, rng, edits):
                    found.setdefault(path, "edit")
        fresh = [path for path in found if path not in archive]

        # 3. choose a batch by Thompson sampling, score it on few items, and on more what is promising
        predicted = agent.predict(agent.space.encode(fresh))
        chosen = thompson(agent, predicted, fresh, wanted, size, rng)
        if not chosen:
            break  # every path within reach is scored
        kinds = [found[fresh[i]] for i in chosen]
        score([fresh[i] for i in chosen], kinds, rungs[0])
        batch = np.arange(len(archive) - len(chosen), len(archive))
        paths += batch.tolist()
        sound = [j for j, i in enumerate(batch) if archive.entries[i].scores is not None]
        difference = predicted.mean(axis=0)[chosen][sound] - archive.task_scores(batch[sound])
        for level in range(1, len(rungs)):
            promote(rungs[level - 1], rungs[level], max(round(size * settings.keep**level), 1))

        # 4. learn from the grown archive
        learn(agent, player, predictor, archive, paths, settings, rng, generator)
        counts = {kind: float(kinds.count(kind)) for kind in ("beam", "policy", "edit")}
        report({**policy, "surrogate_error": float(np.abs(difference).mean()) if sound else np.nan, **counts})
    return rows


def utilities(agent: Agent, archive: Archive, index: Indices, preferences: Array) -> Array:
    """Utility (N, M) of entries of the archive under preferences (M, K)."""
    depths = archive.depths(index)
    costs = agent.reward.costs(archive.task_scores(index), depths)
    return agent.reward.utility(costs[:, None], depths[:, None], preferences)


def affordable(archive: Archive, rungs: Sequence[int], settings: SearchSettings, left: int) -> int:
    """New candidates that what is left of the budget pays for, with their share of promotions; a batch at most."""
    steps = zip([0, *rungs[:-1]], rungs, strict=True)
    each = sum(settings.keep**level * archive.cost(start, stop) for level, (start, stop) in enumerate(steps))
    return min(settings.batch, int(left // each))


def promising(agent: Agent, archive: Archive, index: Indices, directions: Array, count: int) -> list[Entry]:
    """Up to ``count`` of the entries, each the one that adds most to the utility of what is fully scored.

    The gain is that of the best utility in the mean over the directions (M, K), the R2 indicator; those that come
    before count as scored fully. Entries without any gain are left out.
    """
    best = utilities(agent, archive, archive.scored(archive.full), directions).max(axis=0, initial=-np.inf)
    u = utilities(agent, archive, index, directions)
    chosen: list[Entry] = []
    while len(index) and len(chosen) < count:
        gain = np.maximum(u - best, 0).mean(axis=1)
        first = int(gain.argmax())
        if gain[first] <= 0:
            break
        chosen.append(archive.entries[index[first]])
        best = np.maximum(best, u[first])
    return chosen


def thompson(
    agent: Agent, predicted: Array, fresh: Sequence[Candidate], wanted: Array, size: int, rng: np.random.Generator
) -> list[int]:
    """Indices of a batch: place after place takes what one network of the surrogate, drawn for it, thinks best.

    Args:
        predicted: (E, N, K_tasks) scores.
        fresh: the N candidates.
        wanted: (R, K) preferences, which the places take in turn.
        size: candidates wanted.
    """
    depths = np.array([path.depth for path in fresh])
    costs = agent.reward.costs(predicted, depths)[:, :, None]
    u = agent.reward.utility(costs, depths[:, None], wanted)  # (E, N, R)
    chosen: list[int] = []
    for place in range(min(size, len(fresh))):
        best = int(u[rng.integers(len(u)), :, place % len(wanted)].argmax())
        chosen.append(best)
        u[:, best] = -np.inf
    return chosen


def ppo(
    agent: Agent,
    optimiser: torch.optim.Optimizer,
    drawn: Rollouts,
    settings: SearchSettings,
    progress: float,
    rng: np.random.Generator,
) -> dict[str, float]:
    """PPO-clip for the actor and squared error for the critic on paths from the policy, scored by the surrogate.

    Args:
        optimiser: of actor and critic together.
        drawn: N paths from the policy as it is.
        progress: share of the budget that is spent.

    Returns:
        Losses, entropy (nats) and approximate KL divergence of the last minibatch, and the paths' mean return.
    """
    actions, taken, preferences = torch.from_numpy(drawn.actions), drawn.taken, drawn.preferences[:, None]
    predicted, depths = agent.predict(drawn.actions), (drawn.actions >= 0).sum(axis=1) - 1
    scores = predicted.mean(axis=0) - settings.pessimism * predicted.std(axis=0)
    returns = agent.reward.utility(agent.reward.costs(scores, depths), depths, drawn.preferences.double().numpy())
    with torch.no_grad():
        values = agent.critic.value(agent.critic.encoder(actions), preferences)
    advantage = advantages(torch.from_numpy(returns).float(), values, taken, settings.gae)
    target = (advantage + values[:, :-1]).detach()
    advantage = (advantage - advantage[taken].mean()) / (advantage[taken].std() + 1e-8)
    entropy_coefficient = settings.entropy[0] + progress * (settings.entropy[1] - settings.entropy[0])
    result: dict[str, float] = {}
    for order in (rng.permutation(len(actions)) for _ in range(settings.ppo_epochs)):
        for rows in np.array_split(order, settings.minibatches):
            i = torch.from_numpy(rows)
            states = agent.actor.encoder(actions[i])[:, :-1]
            log_policy = agent.actor.log_policy(states, preferences[i], drawn.legal[i])
            log_probability = log_policy.gather(-1, actions[i].clamp_min(0)[..., None])[..., 0]
            log_ratio = (log_probability - drawn.log_probability[i])[taken[i]]
            ratio = log_ratio.exp()
            kl = float((ratio - 1 - log_ratio).mean().detach())  # Schulman's k3 estimator
            if kl > settings.target_kl:
                return result
            gain = advantage[i][taken[i]]
            policy_loss = -torch.minimum(gain * ratio, gain * ratio.clamp(1 - settings.clip, 1 + settings.clip)).mean()
            value = agent.critic.value(agent.critic.encoder(actions[i]), preferences[i])[:, :-1]
            value_loss = 0.5 * (value - target[i])[taken[i]].square().mean()
            surprise = log_policy.masked_fill(~drawn.legal[i], 0.0) * log_policy.exp()
            entropy = -surprise.sum(dim=-1)[taken[i]].mean()
            loss = policy_loss + settings.value_coefficient * value_loss - entropy_coefficient * entropy
            update(optimiser, loss)
            parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
            result = {name: float(part.detach()) for name, part in parts.items()}
            result |= {"kl": kl, "return": float(returns.mean())}
    return result


def advantages(returns: Tensor, values: Tensor, taken: Tensor, gae: float) -> Tensor:
    """Generalised advantages (N, T) with γ = 1 and all reward, the return (N,), at the last action taken (N, T).

    Values (N, T + 1) are those of the states before each action and after the last; none counts after the end.
    """
    result = torch.zeros(taken.shape)
    last = taken.sum(dim=1) - 1
    running = torch.zeros(len(returns))
    for t in reversed(range(taken.shape[1])):
        ends = last == t
        error = torch.where(ends, returns, values[:, t + 1]) - values[:, t]
        running = torch.where(taken[:, t], error + gae * torch.where(ends, 0.0, running), 0.0)
        result[:, t] = running
    return result


def learn(
    agent: Agent,
    player: torch.optim.Optimizer,
    predictor: torch.optim.Optimizer,
    archive: Archive,
    paths: Sequence[int],
    settings: SearchSettings,
    rng: np.random.Generator,
    noise: torch.Generator,
) -> None:
    """A few steps of the offline losses on the paths of the archive."""
    index = np.array([i for i in paths if archive.entries[i].scores is not None], dtype=np.int64)
    candidates = [archive.entries[i].candidate for i in index]
    items = [archive.entries[i].items for i in index]
    seen = trajectories(agent.space, agent.reward, candidates, archive.task_scores(index), items)
    for _ in range(settings.updates):
        losses = [
            surrogate_loss(network, seen.take(rng.integers(len(seen), size=settings.paths)), noise)
            for network in agent.surrogate
        ]
        update(predictor, torch.stack(losses).sum())
        batch = seen.take(rng.integers(len(seen), size=settings.paths))
        wanted, utility = batch.relabel(agent.reward, settings.relabels, rng)
        value_loss = critic_loss(agent.critic, batch, wanted, utility, settings.expectile, noise)
        policy_loss = actor_loss(agent.actor, agent.critic, batch, wanted, settings.temperature, noise)
        update(player, value_loss + policy_loss)
