"""PPO on whole paths: Schulman et al. 2017 with generalised advantages (2016), in the manner of cleanrl's ``ppo.py``.

It costs no item evaluation: the surrogate stands in for the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.agent.networks import Agent
from models.agent.offline import update
from models.agent.rollouts import Rollouts
from models.front import Array


@dataclass(frozen=True)
class PPOSettings:
    """Hyperparameters of PPO."""

    rollouts: int = 128  # paths drawn a round
    epochs: int = 2
    minibatches: int = 4  # of an epoch
    clip: float = 0.2  # of the ratio
    gae: float = 0.95  # λ of generalised advantages; γ is 1
    value_coefficient: float = 0.5  # c₁
    entropy: tuple[float, float] = (0.02, 0.002)  # c₂, with nothing and with all of the budget spent
    target_kl: float = 0.02  # it stops for the round when the policy has moved this far
    pessimism: float = 0.5  # standard deviations of the surrogate that its scores lie below the mean


def ppo(
    agent: Agent,
    optimiser: torch.optim.Optimizer,
    drawn: Rollouts,
    returns: Array,
    settings: PPOSettings,
    progress: float,
    rng: np.random.Generator,
) -> dict[str, float]:
    """PPO-clip for the actor and squared error for the critic on paths from the policy.

    Args:
        optimiser: of actor and critic, see :func:`models.agent.offline.optimiser_of`.
        drawn: N paths from the policy as it is.
        returns: (N,) utility of each under its preference.
        progress: share of the budget that is spent.

    Returns:
        Losses, entropy (nats) and approximate KL divergence of the last minibatch, and the paths' mean return.
    """
    actions, taken, preferences = torch.from_numpy(drawn.actions), drawn.taken, drawn.preferences[:, None]
    with torch.no_grad():
        values = agent.critic.value(agent.critic.encoder(actions), preferences)
    advantage = advantages(torch.from_numpy(returns).float(), values, taken, settings.gae)
    target = (advantage + values[:, :-1]).detach()
    advantage = (advantage - advantage[taken].mean()) / (advantage[taken].std() + 1e-8)
    entropy_coefficient = settings.entropy[0] + progress * (settings.entropy[1] - settings.entropy[0])
    result: dict[str, float] = {}
    for order in (rng.permutation(len(actions)) for _ in range(settings.epochs)):
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
