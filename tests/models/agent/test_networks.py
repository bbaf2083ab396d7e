import json

import numpy as np
import pytest
import torch

from models.agent.networks import drop, load_agent
from models.agent.surrogate import Surrogate
from models.errors import BadInput
from tests.models.agent.planted import planted


@pytest.fixture
def world():
    return planted()


def test_the_policy_sums_to_one_over_legal_actions_and_gives_the_others_nothing(world):
    agent, rng = world.agent(), np.random.default_rng(0)
    paths = torch.from_numpy(world.space.encode([world.space.random_path(rng) for _ in range(20)]))
    legal = torch.from_numpy(world.space.masks(paths.numpy()))
    wanted = torch.from_numpy(rng.dirichlet(np.ones(4), size=20)).float()
    states = agent.actor.encoder(paths)[:, :-1]
    taken = paths >= 0
    policy = agent.actor.log_policy(states, wanted[:, None], legal | ~taken[..., None]).exp()
    torch.testing.assert_close(policy.sum(-1), torch.ones(taken.shape))
    assert (policy[taken][~legal[taken]] == 0).all()
    assert (policy[taken][legal[taken]] > 0).all()


def test_the_nearest_legal_actions_to_the_proto_action_are_the_most_probable(world):
    agent = world.agent()
    state, _ = agent.actor.encoder.start(1)
    wanted = torch.full((1, 4), 1 / 4)
    legal = torch.from_numpy(world.space.legal(np.empty((1, 0), dtype=np.int64)))
    log_policy = agent.actor.log_policy(state, wanted, legal)[0]
    proto = agent.actor.head(state, wanted)
    distance = torch.cdist(proto, agent.actor.embed(agent.actor.encoder.tokens()[:-1]))[0]
    distance[~legal[0]] = torch.inf
    assert log_policy.argsort(descending=True)[:5].tolist() == distance.argsort()[:5].tolist()


def test_stepping_gives_the_states_of_the_whole_path(world):
    agent, space = world.agent(), world.space
    actions = torch.from_numpy(space.encode([space.identity("a"), space.identity("c")]))[:, :5]
    whole = agent.critic.encoder(actions)
    state, memory = agent.critic.encoder.start(2)
    torch.testing.assert_close(state, whole[:, 0])
    for t in range(5):
        state, memory = agent.critic.encoder.step(actions[:, t], memory, t + 1)
        torch.testing.assert_close(state, whole[:, t + 1])


def test_what_stands_behind_the_end_of_a_path_changes_no_state_before(world):
    agent, space = world.agent(), world.space
    actions = torch.from_numpy(space.encode([space.identity("a")]))
    torch.testing.assert_close(agent.critic.encoder(actions[:, :5]), agent.critic.encoder(actions)[:, :6])


def test_dropout_keeps_the_mean_and_needs_a_generator():
    x = torch.ones(200_000)
    assert drop(x, 0.1, None) is x
    dropped = drop(x, 0.1, torch.Generator().manual_seed(0))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.005)


def test_about_three_quarters_of_a_million_parameters_at_a_width_of_256(world):
    assert 0.7e6 < world.agent(hidden=256).parameters < 0.8e6


def whole(world, seed=0):
    """An agent with a surrogate that has learnt a little."""
    agent, rng = world.agent(seed), np.random.default_rng(seed)
    agent.surrogate = Surrogate(np.arange(4))
    agent.surrogate.fit(rng.random((9, 4)), rng.random((9, 3)), np.full(9, 60), 2, rng)
    return agent


def test_a_saved_agent_is_loaded_as_it_was(world, tmp_path):
    agent = whole(world, seed=5)
    agent.save(tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent")
    assert loaded.config == agent.config
    assert loaded.space == agent.space
    actions = torch.from_numpy(world.space.encode([world.space.identity(model) for model in world.space.models]))
    for name, network in agent.networks().items():
        again = loaded.networks()[name]
        torch.testing.assert_close(again.encoder(actions), network.encoder(actions), rtol=0, atol=0)
        assert network.state_dict().keys() == again.state_dict().keys()
    described = np.random.default_rng(0).random((5, 4))
    for a, b in zip(loaded.surrogate.predict(described), agent.surrogate.predict(described), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_agents_are_saved_as_equal_bytes_that_name_no_folder(world, tmp_path):
    for name in ("first", "second"):
        whole(world, seed=5).save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["actor.safetensors", "config.json", "critic.safetensors", "surrogate.safetensors"]
    for name in files:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
        assert str(tmp_path).encode() not in content


def test_making_an_agent_leaves_the_global_generator_alone(world):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    world.agent()
    torch.testing.assert_close(torch.rand(3), expected)


def test_an_agent_of_another_version_is_bad_input(world, tmp_path):
    whole(world).save(tmp_path / "agent")
    path = tmp_path / "agent" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(BadInput, match="version: 99"):
        load_agent(tmp_path / "agent")


@pytest.mark.parametrize("name", ["config.json", "actor.safetensors", "surrogate.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_agent_is_bad_input_in_one_line(world, tmp_path, name, damage):
    whole(world).save(tmp_path / "agent")
    path = tmp_path / "agent" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="not a whole agent") as error:
        load_agent(tmp_path / "agent")
    assert "\n" not in str(error.value)


def test_an_agent_whose_networks_have_other_sizes_is_bad_input(world, tmp_path):
    whole(world).save(tmp_path / "agent")
    path = tmp_path / "agent" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden": 16}))
    with pytest.raises(BadInput, match="not a whole agent"):
        load_agent(tmp_path / "agent")
