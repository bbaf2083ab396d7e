"""Paths from the networks: rollouts of the policy, and a beam that the critic guides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.agent.networks import Agent
from models.candidate import Candidate
from models.front import Array
from models.search.environment import Actions


@dataclass(frozen=True)
class Rollouts:
    """N paths drawn from the policy, T = T_max + 1 actions at most."""

    actions: Actions  # (N, T), -1 behind STOP
    legal: Tensor  # (N, T, A) bool; everything behind STOP
    log_probability: Tensor  # (N, T) of the actions when they were drawn
    preferences: Tensor  # (N, K)

    @property
    def taken(self) -> Tensor:
        """(N, T) bool, whether there is an action."""
        return torch.from_numpy(self.actions >= 0)


@torch.no_grad()
def roll_out(agent: Agent, preferences: Array, generator: torch.Generator) -> Rollouts:
    """One path from the policy under each of the preferences (N, K)."""
    space, count = agent.space, len(preferences)
    wanted = torch.from_numpy(preferences).float()
    actions = np.full((count, space.longest + 1), -1, dtype=np.int64)
    legal = torch.ones(*actions.shape, space.actions, dtype=torch.bool)
    log_probability = torch.zeros(actions.shape)
    state, memory = agent.actor.encoder.start(count)
    open_ = np.ones(count, dtype=bool)
    for t in range(actions.shape[1]):
        legal[:, t] = torch.from_numpy(space.legal(actions[:, :t]) | ~open_[:, None])
        log_policy = agent.actor.log_policy(state, wanted, legal[:, t])
        drawn = torch.multinomial(log_policy.exp(), 1, generator=generator)
        log_probability[:, t] = log_policy.gather(1, drawn)[:, 0]
        actions[open_, t] = drawn[:, 0].numpy()[open_]
        open_ &= actions[:, t] != space.stop
        if not open_.any():
            break
        state, memory = agent.actor.encoder.step(drawn[:, 0], memory, t + 1)
    return Rollouts(actions, legal, log_probability, wanted)


@torch.no_grad()
def beam(agent: Agent, preference: Array, width: int, epsilon: float, rng: np.random.Generator) -> list[Candidate]:
    """The best ``width`` paths of a beam search under a preference (K,), by V.

    Every prefix is continued by the ``width`` legal actions nearest to its proto-action (Wolpertinger's set). Of all
    continuations those of greatest Q(s, a, λ) = V(s∘a, λ) stay, but each place goes to a uniformly drawn one with
    probability ε (the paper's Eq. 11).
    """
    space, actor, critic = agent.space, agent.actor, agent.critic
    wanted = torch.from_numpy(preference).float()
    prefixes = np.full((1, space.longest + 1), -1, dtype=np.int64)
    state, memory = actor.encoder.start(1)
    _, judged = critic.encoder.start(1)
    finished: list[tuple[float, Candidate]] = []
    for t in range(space.longest + 1):
        legal = torch.from_numpy(space.legal(prefixes[:, :t]))
        nearest = actor.log_policy(state, wanted, legal).topk(min(width, space.actions)).indices
        parent, place = legal.gather(1, nearest).nonzero(as_tuple=True)
        action = nearest[parent, place]
        next_state, next_judged = critic.encoder.step(action, judged.take(parent), t + 1)
        value = critic.value(next_state, wanted).numpy()
        stops = (action == space.stop).numpy()
        finished += [(float(value[i]), space.decode(prefixes[parent[i]])) for i in np.flatnonzero(stops)]
        going = np.flatnonzero(~stops)
        if len(going) == 0:
            break
        ranked = going[np.argsort(-value[going], kind="stable")]
        kept, rest = list(ranked[:width]), list(ranked[width:])
        for slot in range(len(kept)):
            if rest and rng.random() < epsilon:
                kept[slot] = rest.pop(int(rng.integers(len(rest))))
        keep = torch.from_numpy(np.array(kept, dtype=np.int64))
        prefixes = prefixes[parent[keep].numpy()]
        prefixes[:, t] = action[keep].numpy()
        judged = next_judged.take(keep)
        state, memory = actor.encoder.step(action[keep], memory.take(parent[keep]), t + 1)
    best = sorted(finished, key=lambda one: -one[0])
    return list(dict.fromkeys(candidate for _, candidate in best))[:width]
