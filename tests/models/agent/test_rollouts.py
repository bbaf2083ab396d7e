"""Rollouts of the policy and the critic's beam."""

import numpy as np
import pytest
import torch

from models.agent.rollouts import beam, roll_out
from models.preferences import preferences
from tests.models.agent.planted import planted
from tests.models.lab import every_path

WANTED = preferences(4, 8, np.random.default_rng(0))


def test_rollouts_are_legal_and_their_probabilities_those_of_the_policy():
    world = planted()
    agent = world.agent()
    drawn = roll_out(agent, WANTED, torch.Generator().manual_seed(0))
    assert world.space.are_legal(drawn.actions).all()
    actions = torch.from_numpy(drawn.actions)
    with torch.no_grad():
        states = agent.actor.encoder(actions)[:, :-1]
        log_policy = agent.actor.log_policy(states, drawn.preferences[:, None], drawn.legal)
    again = log_policy.gather(-1, actions.clamp_min(0)[..., None])[..., 0]
    torch.testing.assert_close(drawn.log_probability[drawn.taken], again[drawn.taken], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_policy.exp().sum(-1), torch.ones(actions.shape))


def test_paths_come_as_often_as_the_policy_says():
    """Over every path of a small space its probability is the product of its steps', and these sum to one."""
    world = planted(models=("a", "b"), layers=2)
    agent, wanted = world.agent(), WANTED[:1]
    paths = every_path(world.space)
    actions = torch.from_numpy(paths)
    taken = actions >= 0
    legal = torch.from_numpy(world.space.masks(paths)) | ~taken[..., None]
    with torch.no_grad():
        states = agent.actor.encoder(actions)[:, :-1]
        log_policy = agent.actor.log_policy(states, torch.from_numpy(wanted).float()[:, None], legal)
    steps = log_policy.gather(-1, actions.clamp_min(0)[..., None])[..., 0]
    probability = (steps * taken).sum(dim=1).exp().numpy()
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    drawn = roll_out(agent, np.repeat(wanted, 20_000, axis=0), torch.Generator().manual_seed(0))
    index = {tuple(row): i for i, row in enumerate(paths.tolist())}
    counts = np.bincount([index[tuple(row)] for row in drawn.actions.tolist()], minlength=len(paths))
    np.testing.assert_allclose(counts / 20_000, probability, atol=0.015)


def test_a_wide_beam_without_chance_finds_the_path_of_greatest_value():
    world = planted(models=("a", "b"), layers=3)
    agent = world.agent()
    paths = every_path(world.space)
    wanted = torch.full((4,), 1 / 4)
    actions = torch.from_numpy(paths)
    with torch.no_grad():
        values = agent.critic.value(agent.critic.encoder(actions), wanted)
    last = values[torch.arange(len(paths)), (actions >= 0).sum(dim=1)]
    found = beam(agent, wanted.double().numpy(), 100_000, 0.0, np.random.default_rng(0))
    assert found[0] == world.space.decode(paths[int(last.argmax())])
    assert len(found) == len(set(found)) == len(paths)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_a_narrow_beam_gives_legal_paths_each_once(epsilon):
    world = planted()
    found = beam(world.agent(), WANTED[0], 6, epsilon, np.random.default_rng(0))
    assert 0 < len(found) <= 6
    assert len(set(found)) == len(found)
    assert all(world.space.contains(path) for path in found)
