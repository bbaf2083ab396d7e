"""The policy of HM3 as it was published: a GRU, a Gaussian over proto-actions, Wolpertinger's choice, and PPO.

Zhou et al. 2025, whose equation numbers these are; Wolpertinger: Dulac-Arnold et al. 2015. ``paper.py`` runs it.

Shapes: N rollouts, T = T_max steps, A = (K + 1)·L source layers, D = 3·embedding dimensions of an action. STOP is
action A, and the environment ends a path of T_max layers by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.front import Array
from models.search.environment import Actions, PathSpace
from models.search.features import FEATURES


@dataclass(frozen=True)
class PaperSettings:
    """Every hyperparameter. docs/results/paper.md says where those come from that the paper leaves open."""

    preferences: int = 16  # N at most
    each: int = 40  # candidates that a preference's share of the budget pays for at least: lowers N
    density: float = 0.5  # 1 - p: what DARE keeps of a task vector
    masked: bool = False  # keep the given rules' mask; otherwise any layer may follow any other, and STOP any
    embedding: int = 8  # width of each of ψ_m, ψ_l and φ
    hidden: int = 64  # width of the GRU and of the layer behind it
    log_sigma: float = 0.0  # of the policy at first, in each dimension
    rollouts: int = 8  # paths drawn an iteration
    iterations: int = 1000  # for a preference at most
    idle: int = 20  # iterations in a row without a new path after which a preference is given up
    nearest: float = 0.1  # M' over the number of source layers: how many Wolpertinger's choice is among, two at least
    epsilon: float = 0.1  # probability that it is a uniform one of them
    discount: float = 0.99  # γ
    depth_cost: float = 0.02  # β₁ times L
    gae: float = 0.95  # λ of generalised advantages
    clip: float = 0.2  # of PPO's ratio
    epochs: int = 4  # over the rollouts of an iteration
    learning_rate: float = 3e-3  # AdamW
    value_coefficient: float = 0.5  # c₁
    entropy: float = 0.01  # c₂


class PathEncoder(nn.Module):
    """State S_t of a path's first t layers: a GRU over [ψ_m(m); ψ_l(l); φ(θ_{m,l})] (Eq. 7)."""

    statistics: Tensor

    def __init__(self, space: PathSpace, statistics: Array, settings: PaperSettings) -> None:
        super().__init__()
        self.register_buffer("statistics", torch.from_numpy(statistics).float().flatten(0, 1))
        self.models, self.layers = len(space.models), space.layers
        self.model = nn.Embedding(self.models, settings.embedding)
        self.layer = nn.Embedding(self.layers, settings.embedding)
        self.statistic = nn.Linear(FEATURES, settings.embedding)
        self.special = nn.Parameter(torch.randn(2, 3 * settings.embedding))  # STOP, and the start of every path
        self.gru = nn.GRU(3 * settings.embedding, settings.hidden, batch_first=True)

    def tokens(self) -> Tensor:
        """(A + 2, D): every source layer, STOP, the start."""
        m = self.model.weight.repeat_interleave(self.layers, dim=0)
        l = self.layer.weight.repeat(self.models, 1)  # noqa: E741
        return torch.cat([torch.cat([m, l, self.statistic(self.statistics)], dim=1), self.special])

    def forward(self, actions: Tensor) -> Tensor:
        """States (N, T + 1, hidden) before and after each of the actions (N, T). Behind -1 they mean nothing."""
        tokens = self.tokens()
        states: Tensor = self.gru(tokens[functional.pad(actions.clamp_min(0), (1, 0), value=len(tokens) - 1)])[0]
        return states

    def step(self, states: Tensor, actions: Tensor) -> Tensor:
        """States (N, hidden) after one more action (N,)."""
        after: Tensor = self.gru(self.tokens()[actions][:, None], states[None].contiguous())[1][0]
        return after


class Actor(nn.Module):
    """A Gaussian policy over proto-actions in R^D, and the fixed embeddings of the actions that those are near to."""

    actions: Tensor

    def __init__(self, space: PathSpace, statistics: Array, settings: PaperSettings) -> None:
        super().__init__()
        self.encoder = PathEncoder(space, statistics, settings)
        self.head = head(settings, 3 * settings.embedding)
        self.log_sigma = nn.Parameter(torch.full((3 * settings.embedding,), settings.log_sigma))
        self.register_buffer("actions", self.encoder.tokens()[:-1].detach().clone())


class Critic(nn.Module):
    """V(S)."""

    def __init__(self, space: PathSpace, statistics: Array, settings: PaperSettings) -> None:
        super().__init__()
        self.encoder = PathEncoder(space, statistics, settings)
        self.head = head(settings, 1)

    def value(self, states: Tensor) -> Tensor:
        """(...) of states (..., hidden)."""
        value: Tensor = self.head(states)[..., 0]
        return value


def head(settings: PaperSettings, out: int) -> nn.Module:
    """An MLP on a state."""
    return nn.Sequential(nn.Linear(settings.hidden, settings.hidden), nn.Tanh(), nn.Linear(settings.hidden, out))


def log_density(protos: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """log N(ē; mean, diag σ²) (...) of proto-actions (..., D)."""
    standard = (protos - mean) * torch.exp(-log_sigma)
    return -(standard.square() / 2 + log_sigma + math.log(2 * math.pi) / 2).sum(dim=-1)


def nearest(protos: Tensor, actions: Tensor, legal: Tensor, count: int) -> Tensor:
    """The M' = ``count`` legal actions nearest to each proto-action (N, D): (N, M'), -1 where fewer are legal.

    Args:
        actions: embeddings (A, D).
        legal: (N, A) bool.
    """
    squared = (protos[:, None] - actions).square().sum(dim=-1).masked_fill(~legal, torch.inf)
    found = squared.sort(dim=1, stable=True).indices[:, :count]
    return found.masked_fill(~legal.gather(1, found), -1)


def wolpertinger(
    critic: Critic, states: Tensor, near: Tensor, ends: bool, settings: PaperSettings, generator: torch.Generator
) -> Tensor:
    """Of the near source layers (N, M') that of greatest Q̃ with probability 1 - ε, else a uniform one (Eq. 11): (N,).

    Q̃(S, A) = r + γV(S') (Lemma 2), less r: it is the same for all of them as long as the path is not scored. If the
    path ``ends`` with the action, V(S') is 0 for all. Ties go to the nearest.
    """
    after = critic.encoder.step(states.repeat_interleave(near.shape[1], dim=0), near.clamp_min(0).flatten())
    discount = 0.0 if ends else settings.discount
    q = (discount * critic.value(after)).reshape(near.shape).masked_fill(near < 0, -torch.inf)
    greedy = q.argmax(dim=1, keepdim=True)
    uniform = torch.multinomial((near >= 0).float(), 1, generator=generator)
    explores = torch.rand(len(near), 1, generator=generator) < settings.epsilon
    return near.gather(1, torch.where(explores, uniform, greedy))[:, 0]


@dataclass(frozen=True)
class Drawn:
    """Paths as the policy drew them."""

    actions: Actions  # (N, T), -1 behind STOP; a path of T layers has none
    protos: Tensor  # (N, T, D)
    log_density: Tensor  # (N, T) of the proto-actions when they were drawn

    def take(self, index: Tensor) -> Drawn:
        """Those paths."""
        return Drawn(self.actions[index.numpy()], self.protos[index], self.log_density[index])


@torch.no_grad()
def roll_out(
    actor: Actor, critic: Critic, space: PathSpace, settings: PaperSettings, generator: torch.Generator
) -> Drawn:
    """Whole paths from the policy."""
    steps = (settings.rollouts, space.longest)
    actions = np.full(steps, -1, dtype=np.int64)
    protos, density = torch.zeros(*steps, actor.actions.shape[1]), torch.zeros(steps)
    start = torch.zeros(settings.rollouts, 0, dtype=torch.int64)
    state, judged = actor.encoder(start)[:, 0], critic.encoder(start)[:, 0]
    count = max(round(settings.nearest * space.stop), 2)
    for t in range(space.longest):
        i = torch.from_numpy(np.flatnonzero((actions != space.stop).all(axis=1)))
        if len(i) == 0:
            break
        mean = actor.head(state[i])
        drawn = mean + actor.log_sigma.exp() * torch.randn(mean.shape, generator=generator)
        legal = torch.from_numpy(space.legal(actions[i.numpy(), :t]))
        stops = nearest(drawn, actor.actions, legal, 1)[:, 0] == space.stop
        chosen = torch.full(stops.shape, space.stop)
        if not stops.all():
            near = nearest(drawn[~stops], actor.actions[:-1], legal[~stops, :-1], count)
            chosen[~stops] = wolpertinger(critic, judged[i[~stops]], near, t + 1 == space.longest, settings, generator)
        actions[i.numpy(), t] = chosen.numpy()
        protos[i, t], density[i, t] = drawn, log_density(drawn, mean, actor.log_sigma)
        state[i], judged[i] = actor.encoder.step(state[i], chosen), critic.encoder.step(judged[i], chosen)
    return Drawn(actions, protos, density)


def ppo(
    actor: Actor,
    critic: Critic,
    optimiser: torch.optim.Optimizer,
    drawn: Drawn,
    reward: Tensor,
    settings: PaperSettings,
) -> dict[str, float]:
    """PPO-clip on the density of the proto-actions, and squared error for the critic (Eq. 12-14).

    Args:
        reward: R (N,).

    Returns:
        Losses, entropy (nats) and mean squared error of the last epoch.
    """
    actions = torch.from_numpy(drawn.actions)
    taken = actions >= 0
    with torch.no_grad():
        values = critic.value(critic.encoder(actions))
    advantage = advantages(
        spread(reward, actions, len(actor.actions) - 1), values, taken, settings.discount, settings.gae
    )
    target = (advantage + values[:, :-1])[taken]
    gain = advantage[taken]
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    result: dict[str, float] = {}
    for _ in range(settings.epochs):
        mean = actor.head(actor.encoder(actions)[:, :-1])
        ratio = (log_density(drawn.protos, mean, actor.log_sigma) - drawn.log_density)[taken].exp()
        policy_loss = -torch.minimum(gain * ratio, gain * ratio.clamp(1 - settings.clip, 1 + settings.clip)).mean()
        value_loss = (critic.value(critic.encoder(actions))[:, :-1][taken] - target).square().mean()
        entropy = (actor.log_sigma + (1 + math.log(2 * math.pi)) / 2).sum()
        update(optimiser, policy_loss + settings.value_coefficient * value_loss - settings.entropy * entropy)
        parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        result = {name: float(part.detach()) for name, part in parts.items()}
    return result


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step on a loss, the gradients of each group of parameters clipped to norm 1."""
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    for group in optimiser.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimiser.step()


def spread(reward: Tensor, actions: Tensor, stop: int) -> Tensor:
    """Rewards (N, T) of the actions (N, T): R/T for each of a path's T layers, nothing for STOP (Eq. 9)."""
    layers = (actions >= 0) & (actions != stop)
    return layers * (reward / layers.sum(dim=1))[:, None]


def advantages(rewards: Tensor, values: Tensor, taken: Tensor, discount: float, gae: float) -> Tensor:
    """Generalised advantages (N, T) of the actions taken (N, T), from rewards (N, T) and values (N, T + 1)."""
    result = torch.zeros(rewards.shape)
    running = torch.zeros(len(rewards))
    follows = functional.pad(taken[:, 1:], (0, 1))  # whether the path goes on behind an action
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + discount * values[:, t + 1] * follows[:, t] - values[:, t]
        running = torch.where(taken[:, t], error + discount * gae * follows[:, t] * running, 0.0)
        result[:, t] = running
    return result
