"""PPO on paths: advantages by hand, and a planted optimum learnt."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.agent.offline import optimiser_of
from models.agent.ppo import PPOSettings, advantages, ppo
from models.agent.rollouts import roll_out
from tests.models.agent.planted import planted


def test_generalised_advantages_against_hand_calculation():
    values = torch.tensor([[0.1, 0.4, 0.2, 9.0], [0.3, 9.0, 9.0, 9.0]])
    taken = torch.tensor([[True, True, True], [True, False, False]])
    found = advantages(torch.tensor([1.0, -1.0]), values, taken, gae=0.5)
    third = 1.0 - 0.2
    second = (0.2 - 0.4) + 0.5 * third
    first = (0.4 - 0.1) + 0.5 * second
    torch.testing.assert_close(found, torch.tensor([[first, second, third], [-1.3, 0, 0]]))


@given(st.integers(0, 2**32 - 1))
def test_with_gae_one_an_advantage_is_the_return_less_the_value(seed):
    generator = torch.Generator().manual_seed(seed)
    values, returns = torch.rand(5, 7, generator=generator), torch.rand(5, generator=generator)
    taken = torch.arange(6) < torch.randint(1, 7, (5, 1), generator=generator)
    expected = torch.where(taken, returns[:, None] - values[:, :-1], 0.0)
    torch.testing.assert_close(advantages(returns, values, taken, 1.0), expected)


def trained(world, wanted, rounds, settings, learning_rate=3e-3):
    """An agent after so many rounds on true returns, and the rows."""
    agent = world.agent()
    optimiser = optimiser_of(agent, learning_rate)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    rows = []
    for number in range(rounds):
        drawn = roll_out(agent, np.tile(wanted, (settings.rollouts, 1)), generator)
        paths = [world.space.decode(row) for row in drawn.actions]
        returns = world.utility(paths, wanted)
        rows.append(ppo(agent, optimiser, drawn, returns, settings, number / rounds, rng))
        rows[-1]["true"] = returns.mean()
    return agent, rows


def test_actor_and_critic_learn_the_planted_optimum():
    """The best of all paths is known by brute force; the policy comes to draw it, and the critic to know its worth."""
    world, wanted = planted(layers=3), np.array([0.3, 0.3, 0.2, 0.2])
    every = world.every_path()
    u = world.utility(every, wanted)
    agent, rows = trained(world, wanted, 40, PPOSettings(rollouts=64))
    drawn = roll_out(agent, np.tile(wanted, (50, 1)), torch.Generator().manual_seed(1))
    found = [world.space.decode(row) for row in drawn.actions]
    best = max(found, key=lambda path: world.utility([path], wanted)[0])
    assert world.utility([best], wanted)[0] == pytest.approx(u.max())
    assert u.max() - world.utility(found, wanted).mean() < 0.1 * (u.max() - rows[0]["true"])
    assert rows[-1]["entropy"] < 0.5 * rows[0]["entropy"]
    with torch.no_grad():
        states = agent.critic.encoder(torch.from_numpy(world.space.encode([best])))[:, best.depth]  # before STOP
        value = agent.critic.value(states, torch.from_numpy(wanted).float())
    assert float(value) == pytest.approx(u.max(), abs=0.05)


def test_the_policy_stops_for_the_round_once_it_has_moved_far():
    world, wanted = planted(), np.full(4, 0.25)
    calm, _ = trained(world, wanted, 3, PPOSettings(rollouts=48, target_kl=1e-9))
    bold, _ = trained(world, wanted, 3, PPOSettings(rollouts=48, target_kl=1e9))

    def moved(agent):
        start = world.agent()
        pairs = zip(agent.actor.parameters(), start.actor.parameters(), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    assert 0 < moved(calm) < 0.5 * moved(bold)


def test_without_steps_nothing_has_moved_and_the_ratio_is_one():
    """The first minibatch sees the policy that drew the paths: no divergence, and the mean advantage as the loss."""
    world, wanted = planted(), np.full(4, 0.25)
    settings = PPOSettings(rollouts=32, epochs=1, minibatches=1)
    _, rows = trained(world, wanted, 1, settings)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["policy_loss"] == pytest.approx(0, abs=1e-4)  # advantages are standardised
    assert rows[0]["return"] == pytest.approx(rows[0]["true"])
