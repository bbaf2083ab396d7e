"""The agent at work in the online search: what it is rewarded by, and what it learns from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.agent.phases import new_judge
from models.agent.player import Player, PlayerSettings
from models.agent.ppo import PPOSettings
from models.agent.rollouts import roll_out
from tests.models.agent.planted import planted
from tests.models.lab import recipe_space

WANTED = np.array([[0.25, 0.25, 0.25, 0.25], [0.6, 0.2, 0.1, 0.1]])
SETTINGS = PlayerSettings(beam=4, updates=2, paths=16, ppo=PPOSettings(rollouts=32))


def started(settings=SETTINGS, count=60):
    """A player and a judge that knows paths of the planted family."""
    world = planted()
    trial, rng = world.trial, np.random.default_rng(0)
    trial.spend_on([path for path in world.random_paths(count) if path not in trial.archive], "random")
    judge = new_judge(trial, recipe_space())
    judge.learn(trial.archive, rng)
    return world, Player(world.agent(), trial, settings, rng), judge


def weights(agent):
    return [p.detach().clone() for network in agent.networks().values() for p in network.parameters()]


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_paths_are_rewarded_by_what_the_surrogate_is_fairly_sure_of(pessimism):
    settings = replace(SETTINGS, ppo=PPOSettings(rollouts=32, pessimism=pessimism))
    world, player, judge = started(settings)
    state = player.generator.get_state()
    row = player.improve(judge, WANTED)
    generator = torch.Generator()
    generator.set_state(state)
    drawn = roll_out(world.agent(), WANTED[np.arange(32) % 2], generator)
    paths = [world.space.decode(actions) for actions in drawn.actions]
    assert player.paths("policy", WANTED) == list(dict.fromkeys(paths))
    mean, deviation = judge.expect(paths)
    depths = np.array([path.depth for path in paths])
    costs = world.trial.reward.costs(mean - pessimism * deviation, depths)  # higher scores are better in all tasks
    u = world.trial.reward.utility(costs, depths, WANTED[np.arange(32) % 2])
    assert row["return"] == pytest.approx(u.mean(), abs=1e-6)


def test_the_surrogates_promise_rises_over_rounds_and_so_does_the_true_return():
    settings = replace(SETTINGS, learning_rate=3e-3, ppo=PPOSettings(rollouts=64))
    world, player, judge = started(settings)
    rows, true = [], []
    for _ in range(15):
        rows.append(player.improve(judge, WANTED[:1])["return"])
        true.append(world.utility(player.drawn, WANTED[0]).mean())
    assert np.mean(rows[-3:]) > np.mean(rows[:3]) + 0.02
    assert np.mean(true[-3:]) > np.mean(true[:3]) + 0.01


def test_a_beam_gives_legal_paths_for_each_preference():
    world, player, _ = started()
    found = player.paths("beam", WANTED)
    assert 2 <= len(found) <= 8
    assert all(world.space.contains(path) for path in found)


def test_it_learns_from_sound_paths_over_its_pool_and_from_nothing_else():
    """Recipes outside the pool and failures change no weight."""
    agents = []
    for extra in (False, True):
        world, player, _ = started()
        trial = world.trial
        if extra:
            space = recipe_space()
            trial.spend_on([trial.add(recipe) for recipe in space.plain_merges().values()], "recipe")
            trial.lab.fails = (1, "nan")
            trial.spend_on([path for path in world.random_paths(90) if path not in trial.archive], "random")
            assert any(entry.scores is None for entry in trial.archive.entries)
        before = weights(player.agent)
        player.learn()
        agents.append(weights(player.agent))
        assert not all(torch.equal(a, b) for a, b in zip(before, agents[-1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*agents, strict=True))


def test_without_paths_over_its_pool_it_learns_nothing():
    world = planted()
    rules = replace(world.space.rules, forward=1)
    space = replace(world.space, models=("a", "b"), rules=rules)
    entries = [entry for entry in world.trial.archive.entries if not space.contains(entry.candidate)]
    assert {entry.candidate.host for entry in entries} == {"base", "c"}
    trial = replace(world.trial, archive=type(world.trial.archive)(entries, world.trial.archive.counts))
    agent = replace(world, space=space).agent()
    before = weights(agent)
    Player(agent, trial, SETTINGS, np.random.default_rng(0)).learn()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(agent), strict=True))


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_each_network_is_clipped_by_its_own_norm_when_it_learns_from_the_archive():
    """The critic's error is made large in a way that leaves its differences, and so the actor's weights, alone."""
    left = []
    for shift in (0.0, 1000.0):
        _, player, _ = started(replace(SETTINGS, updates=1))
        with torch.no_grad():
            player.agent.critic.head.outer.bias += shift
        player.learn()
        left.append(gradients(player.agent.actor))
        critic = float(gradients(player.agent.critic).norm())
    assert critic == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(left[0], left[1], rtol=1e-2, atol=1e-4)
    assert left[0].norm() > 0.1


def test_each_network_is_clipped_by_its_own_norm_in_ppo():
    left = []
    for coefficient in (0.5, 1e6):
        ppo = PPOSettings(rollouts=32, epochs=1, minibatches=1, value_coefficient=coefficient)
        _, player, judge = started(replace(SETTINGS, ppo=ppo))
        player.improve(judge, WANTED)
        left.append(gradients(player.agent.actor))
        critic = float(gradients(player.agent.critic).norm())
    assert critic == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(left[0], left[1])
    assert left[0].norm() > 1e-3
