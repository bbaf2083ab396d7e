"""Offline training: one evaluation of a path teaches the networks about every preference (method.md, section 4).

Critic: expectile regression on the utilities of relabelled paths (implicit
Q-learning, Kostrikov et al. 2021, Eq. 5). Actor: advantage-weighted regression (Peng et al. 2019; Nair et al. 2020).
With γ = 1, deterministic transitions and a reward at the end, the return of every prefix of a path is its utility, and
the advantage of an action is V(s∘a, λ) - V(s, λ).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.agent.networks import Actor, Agent, Critic
from models.agent.trajectories import Trajectories, trajectories
from models.candidate import Candidate
from models.front import Array

MAX_WEIGHT = 20.0
"""Greatest weight of an action in the actor's regression."""
CHECKS = 20
"""How often the held-out loss is looked at in a full training."""


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of offline training; the networks' sizes and dropout are in ``AgentConfig``."""

    steps: int = 120  # optimiser steps of each network, at most
    batch: int = 128  # (path, preference) pairs a step: batch / relabels paths
    learning_rate: float = 2e-3  # AdamW
    expectile: float = 0.8  # τ of the critic's regression; above 0.5 it leans to the best continuation
    relabels: int = 8  # preferences under which a path is seen in one step; 0 gives each path one for good
    patience: int = 5  # checks without gain on held-out paths after which the critic stops
    held_out: float = 0.1  # share of the paths that no network is trained on
    temperature: tuple[float, float] = (1.0, 0.1)  # β of the actor's weights, first and last step


@dataclass(frozen=True)
class OfflineData:
    """Scored paths: task scores (N, K_tasks)."""

    candidates: tuple[Candidate, ...]
    scores: Array


def train_offline(
    agent: Agent,
    data: OfflineData,
    settings: TrainSettings,
    rng: np.random.Generator,
    on_step: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, float | str]]:
    """Train critic and actor, in this order, in place.

    Args:
        data: paths of the agent's space.
        rng: order of the paths, preferences and dropout.
        on_step: called with the network's name, the step and the steps in all.

    Returns:
        Rows with the network, the step, its loss and its loss on held-out paths.
    """
    paths = trajectories(agent.space, agent.reward, data.candidates, data.scores)
    train, held_out = (paths.take(index) for index in split(data.candidates, settings.held_out, rng))
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    fixed = held_out.relabel(agent.reward, settings.relabels, rng)
    rows: list[dict[str, float | str]] = []

    def batches() -> Iterable[Trajectories]:
        size = min(max(settings.batch // max(settings.relabels, 1), 1), len(train))
        while True:
            order = rng.permutation(len(train))
            for first in range(0, len(train) - size + 1, size):
                yield train.take(order[first : first + size])

    def fit(
        name: str,
        network: nn.Module,
        loss: Callable[[Trajectories, float], Tensor],
        check: Callable[[], Tensor],
        stops: bool,
    ) -> None:
        optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
        best, best_state, waited = np.inf, copy.deepcopy(network.state_dict()), 0
        every = max(settings.steps // CHECKS, 1)
        for step, batch in zip(range(1, settings.steps + 1), batches(), strict=False):
            value = update(optimiser, loss(batch, (step - 1) / max(settings.steps - 1, 1)))
            if on_step:
                on_step(name, step, settings.steps)
            if step % every and step != settings.steps:
                continue
            with torch.no_grad():
                checked = float(check())
            rows.append({"network": name, "step": step, "loss": value, "held_out": checked})
            waited += 1
            if checked < best:
                best, best_state, waited = checked, copy.deepcopy(network.state_dict()), 0
            if stops and waited >= settings.patience:
                break
        if stops:
            network.load_state_dict(best_state)

    critic, actor, tau = agent.critic, agent.actor, settings.expectile

    def critic_step(batch: Trajectories, _: float) -> Tensor:
        return critic_loss(critic, batch, *batch.relabel(agent.reward, settings.relabels, rng), tau, noise)

    fit("critic", critic, critic_step, lambda: critic_loss(critic, held_out, *fixed, tau), stops=True)

    first, last = settings.temperature

    def actor_step(batch: Trajectories, progress: float) -> Tensor:
        preferences, _ = batch.relabel(agent.reward, settings.relabels, rng)
        return actor_loss(actor, critic, batch, preferences, first + progress * (last - first), noise)

    fit("actor", actor, actor_step, lambda: actor_loss(actor, critic, held_out, fixed[0], last), stops=False)
    return rows


def split(
    candidates: Sequence[Candidate], share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the paths to train on and of those held out, at least one each; equal paths stay together."""
    paths = list(dict.fromkeys(candidates))
    count = min(max(round(share * len(paths)), 1), len(paths) - 1)
    held = {paths[i] for i in rng.permutation(len(paths))[:count]}
    is_held = np.array([candidate in held for candidate in candidates])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def critic_loss(
    critic: Critic,
    batch: Trajectories,
    preferences: Tensor,
    utility: Tensor,
    expectile: float,
    noise: torch.Generator | None = None,
) -> Tensor:
    """Expectile regression on the utility (N, R) under preferences (N, R, K), in every state that a path passes."""
    values = critic.value(critic.encoder(batch.actions, noise)[:, :, None], preferences[:, None], noise)
    difference = utility[:, None] - values  # (N, T + 2, R)
    loss = torch.where(difference > 0, expectile, 1 - expectile) * difference.square()
    return loss[functional.pad(batch.taken, (1, 0), value=True)].mean()


def actor_loss(
    actor: Actor,
    critic: Critic,
    batch: Trajectories,
    preferences: Tensor,
    beta: float,
    noise: torch.Generator | None = None,
) -> Tensor:
    """Log-likelihood of the actions taken, each weighted by min(exp((V(s∘a, λ) - V(s, λ)) / β), 20)."""
    with torch.no_grad():
        values = critic.value(critic.encoder(batch.actions)[:, :, None], preferences[:, None])
        weight = ((values[:, 1:] - values[:, :-1]) / beta).exp().clamp_max(MAX_WEIGHT)  # (N, T + 1, R)
    states = actor.encoder(batch.actions, noise)[:, :-1, None]
    log_policy = actor.log_policy(states, preferences[:, None], batch.legal[:, :, None], noise)  # (N, T + 1, R, A)
    taken = batch.actions.clamp_min(0)[:, :, None, None].expand(*log_policy.shape[:3], 1)
    return -(weight * log_policy.gather(-1, taken)[..., 0])[batch.taken].mean()


def optimiser_of(agent: Agent, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW for actor and critic, a group of parameters each: a large error of one must not hold back the other."""
    groups = [{"params": network.parameters()} for network in agent.networks().values()]
    return torch.optim.AdamW(groups, lr=learning_rate)


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> float:
    """One optimiser step on a loss, the gradients of each group of parameters clipped to norm 1; gives the loss."""
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    for group in optimiser.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimiser.step()
    return float(loss.detach())
