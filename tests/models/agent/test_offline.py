import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.agent.offline import OfflineData, TrainSettings, actor_loss, critic_loss, split, train_offline
from models.agent.rollouts import roll_out
from models.candidate import Candidate
from models.front import Scale
from models.preferences import preferences
from models.search.reward import Reward
from tests.models.agent.planted import planted


def unseen_paths(world):
    seen = set(world.data().candidates)
    return [path for path in world.random_paths(300, seed=77) if path not in seen]


@pytest.fixture(scope="module")
def trained():
    world = planted()
    agent = world.agent()
    rows = train_offline(agent, world.data(), TrainSettings(steps=150), np.random.default_rng(0))
    return world, agent, rows


def test_reward_against_hand_calculation():
    with_depth = Reward(Scale(("math", "layers"), (0.9, 0.5), (0.1, 1.0)), layers=8)
    costs = with_depth.costs([[0.5]], [6])
    np.testing.assert_allclose(costs, [[0.5, 0.5]])
    np.testing.assert_allclose(with_depth.utility(costs, [6], np.array([[0.8, 0.2]])), [-0.4 - 0.05 * 0.5])
    without = Reward(Scale(("math",), (0.9,), (0.1,)), layers=8)
    costs = without.costs([[0.5]], [6])
    np.testing.assert_allclose(without.utility(costs, [6], np.array([[1.0]])), [-0.5 - 0.05 * 0.5 - 0.02 * 6 / 8])


def test_relabelling_gives_every_path_its_own_utility_under_preferences_of_two_kinds():
    world = planted()
    agent, (data, paths) = world.agent(), world.trajectories(12)
    wanted, utility = paths.relabel(agent.reward, 8, np.random.default_rng(0))
    assert wanted.shape == (12, 8, 4) and utility.shape == (12, 8)
    torch.testing.assert_close(wanted.sum(-1), torch.ones(12, 8))
    for n, path in enumerate(data.candidates):
        costs = agent.reward.costs(data.scores[n], path.depth)
        for r in range(8):
            expected = agent.reward.utility(costs, path.depth, wanted[n, r].double().numpy())
            assert float(utility[n, r]) == pytest.approx(float(expected), abs=1e-6)
    # the second half lies nearer to what the path itself serves, where the weighted costs are equal
    weighted = wanted.numpy() * np.maximum(paths.costs, 0.01)[:, None]
    spread = weighted.std(axis=-1) / weighted.mean(axis=-1)
    assert spread[:, 4:].mean() < 0.7 * spread[:, :4].mean()


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=30).filter(lambda depths: len(set(depths)) > 1), st.integers(0, 99)
)
def test_a_path_is_wholly_in_training_or_held_out(depths, seed):
    candidates = [Candidate.identity("a", depth) for depth in depths]
    train, held_out = split(candidates, 0.2, np.random.default_rng(seed))
    assert sorted([*train, *held_out]) == list(range(len(candidates)))
    assert len(train) and len(held_out)
    assert not {candidates[i] for i in train} & {candidates[i] for i in held_out}


def test_held_out_scores_teach_nothing():
    """Relabelling never crosses the split: other scores of held-out paths leave every training loss as it was."""
    world = planted()
    data, settings = world.data(40), TrainSettings(steps=20, patience=10**6)
    _, held_out = split(data.candidates, settings.held_out, np.random.default_rng(0))
    changed = data.scores.copy()
    changed[held_out] = 1 - changed[held_out]
    losses = [
        [row["loss"] for row in train_offline(world.agent(), one, settings, np.random.default_rng(0))
         if row["network"] != "actor"]
        for one in (data, OfflineData(data.candidates, changed))
    ]  # fmt: skip
    # the critic that the actor learns from is the one of its best check, which held-out paths choose
    assert losses[0] == losses[1]


def test_the_critics_loss_against_hand_calculation():
    world = planted()
    agent, (data, paths) = world.agent(), world.trajectories(3)
    wanted, utility = paths.relabel(agent.reward, 2, np.random.default_rng(0))
    total, states = 0.0, 0
    with torch.no_grad():
        for n, path in enumerate(data.candidates):
            for t in range(path.depth + 2):  # before the first action, after each, and after STOP
                state = agent.critic.encoder(paths.actions[n : n + 1, :t])[:, -1]
                for r in range(2):
                    gap = float(utility[n, r] - agent.critic.value(state, wanted[n, r]))
                    total += (0.8 if gap > 0 else 0.2) * gap**2
                    states += 1
        assert float(critic_loss(agent.critic, paths, wanted, utility, 0.8)) == pytest.approx(total / states, rel=1e-4)


def test_the_actors_loss_against_hand_calculation():
    world = planted()
    agent, (data, paths) = world.agent(), world.trajectories(3)
    wanted, _ = paths.relabel(agent.reward, 1, np.random.default_rng(0))
    beta, total, actions = 0.01, 0.0, 0
    with torch.no_grad():
        for n, path in enumerate(data.candidates):
            for t in range(path.depth + 1):
                before, after = (
                    agent.critic.value(agent.critic.encoder(paths.actions[n : n + 1, :s])[:, -1], wanted[n])
                    for s in (t, t + 1)
                )
                weight = min(float(torch.exp((after - before) / beta)), 20.0)
                state = agent.actor.encoder(paths.actions[n : n + 1, :t])[:, -1]
                legal = torch.from_numpy(world.space.legal(paths.actions[n : n + 1, :t].numpy()))
                log_policy = agent.actor.log_policy(state, wanted[n], legal)
                total -= weight * float(log_policy[0, paths.actions[n, t]])
                actions += 1
        loss = actor_loss(agent.actor, agent.critic, paths, wanted, beta)
    assert float(loss) == pytest.approx(total / actions, rel=1e-3)


def test_the_critic_ranks_whole_paths_by_their_utility(trained):
    world, agent, _ = trained
    paths = unseen_paths(world)
    wanted = np.full(4, 1 / 4)
    true = world.utility(paths, wanted)
    actions = torch.from_numpy(world.space.encode(paths))
    with torch.no_grad():
        values = agent.critic.value(agent.critic.encoder(actions), torch.from_numpy(wanted).float())
    last = values[torch.arange(len(paths)), (actions >= 0).sum(dim=1)].numpy()
    assert np.corrcoef(last, true)[0, 1] > 0.45


def test_every_network_is_reported_and_gets_better_on_held_out_paths(trained):
    _, _, rows = trained
    names = list(dict.fromkeys(row["network"] for row in rows))
    assert names == ["critic", "actor"]
    for name in names:
        checked = [row["held_out"] for row in rows if row["network"] == name]
        assert np.isfinite(checked).all() and min(checked[1:]) < checked[0]


def test_a_network_stops_when_held_out_paths_gain_nothing():
    world = planted()
    data = world.data(20)
    noise = OfflineData(data.candidates, np.random.default_rng(0).random(data.scores.shape))
    settings = TrainSettings(steps=60, patience=1, learning_rate=1e-2)
    rows = train_offline(world.agent(), noise, settings, np.random.default_rng(0))
    assert max(row["step"] for row in rows if row["network"] == "critic") < 60


def test_the_same_seed_trains_the_same_agent_bit_for_bit():
    world = planted()
    results = []
    for _ in range(2):
        agent = world.agent()
        rows = train_offline(agent, world.data(30), TrainSettings(steps=15), np.random.default_rng(4))
        results.append((rows, [p for network in agent.networks().values() for p in network.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_the_actor_comes_to_prefer_the_paths_that_serve_a_preference(trained):
    """Under each of several preferences it draws better paths than before any training."""
    world, agent, _ = trained
    wanted = preferences(4, 5, np.random.default_rng(0))
    means = []
    for one in (world.agent(), agent):
        drawn = roll_out(one, np.repeat(wanted, 60, axis=0), torch.Generator().manual_seed(0))
        u = world.utility([world.space.decode(row) for row in drawn.actions], wanted)
        means.append(u.reshape(5, 60, 5)[np.arange(5), :, np.arange(5)].mean(axis=1))
    assert (means[1] > means[0]).all()
