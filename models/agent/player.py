"""The agent at work in the online search: PPO on the surrogate, paths for the search, and learning from its archive."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from models.agent.judge import Judge
from models.agent.networks import Agent
from models.agent.offline import actor_loss, critic_loss, optimiser_of, update
from models.agent.ppo import PPOSettings, ppo
from models.agent.rollouts import beam, roll_out
from models.agent.trajectories import trajectories
from models.candidate import Candidate
from models.front import Array
from models.search.trial import Trial


@dataclass(frozen=True)
class PlayerSettings:
    """Hyperparameters of the agent in the online search."""

    beam: int = 8  # width of the beam and Wolpertinger's number of nearest actions
    epsilon: float = 0.1  # probability of a uniform action in the beam
    updates: int = 4  # optimiser steps of actor and critic on the archive, a round
    paths: int = 16  # paths in each such step
    relabels: int = 8  # preferences under which each is seen
    expectile: float = 0.8  # τ of the critic
    temperature: float = 0.1  # β of the actor's weights
    learning_rate: float = 3e-4  # AdamW
    ppo: PPOSettings = field(default_factory=PPOSettings)


class Player:
    """Actor and critic of one search."""

    def __init__(self, agent: Agent, trial: Trial, settings: PlayerSettings, rng: np.random.Generator) -> None:
        """They change in place."""
        self.agent, self.trial, self.settings, self.rng = agent, trial, settings, rng
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.optimiser = optimiser_of(agent, settings.learning_rate)
        self.first = trial.spent
        self.drawn: list[Candidate] = []
        self.is_mine = cache(agent.space.contains)

    def improve(self, judge: Judge, wanted: Array) -> dict[str, float]:
        """PPO on paths of the policy under the preferences (R, K), rewarded by the surrogate's pessimistic scores."""
        settings, reward = self.settings.ppo, self.agent.reward
        drawn = roll_out(self.agent, wanted[np.arange(settings.rollouts) % len(wanted)], self.generator)
        paths = [self.agent.space.decode(actions) for actions in drawn.actions]
        place: dict[Candidate, int] = {}
        index = np.array([place.setdefault(path, len(place)) for path in paths])
        self.drawn = list(place)
        mean, deviation = judge.expect(self.drawn)
        better = np.sign(np.array(reward.scale.ideal) - np.array(reward.scale.nadir))[: reward.tasks]
        depths = np.array([path.depth for path in paths])
        costs = reward.costs((mean - settings.pessimism * better * deviation)[index], depths)
        returns = reward.utility(costs, depths, drawn.preferences.double().numpy())
        progress = (self.trial.spent - self.first) / max(self.trial.budget - self.first, 1)
        return ppo(self.agent, self.optimiser, drawn, returns, settings, progress, self.rng)

    def paths(self, kind: str, wanted: Array) -> list[Candidate]:
        """Paths that the ``policy`` has just drawn, or those of a ``beam`` under each of the preferences (R, K)."""
        if kind == "policy":
            return self.drawn
        width, epsilon = self.settings.beam, self.settings.epsilon
        return [path for preference in wanted for path in beam(self.agent, preference, width, epsilon, self.rng)]

    def learn(self) -> None:
        """A few steps of the offline losses on the archive's paths over the pool."""
        archive, settings, agent = self.trial.archive, self.settings, self.agent
        index = np.array([i for i in archive.scored(1) if self.is_mine(archive.entries[i].candidate)], dtype=np.int64)
        if len(index) == 0:
            return
        candidates = [archive.entries[i].candidate for i in index]
        seen = trajectories(agent.space, agent.reward, candidates, archive.task_scores(index))
        for _ in range(settings.updates):
            batch = seen.take(self.rng.integers(len(seen), size=settings.paths))
            wanted, utility = batch.relabel(agent.reward, settings.relabels, self.rng)
            value_loss = critic_loss(agent.critic, batch, wanted, utility, settings.expectile, self.generator)
            policy_loss = actor_loss(agent.actor, agent.critic, batch, wanted, settings.temperature, self.generator)
            update(self.optimiser, value_loss + policy_loss)
