"""An agent comes back from its folder as it was, or is refused."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from models.agent.actor import Actor
from models.agent.agent import Agent, AgentConfig, load_agent
from models.agent.surrogate import Surrogate
from models.errors import BadInput
from models.front import Scale
from models.search.environment import PathRules


def learned(seed=0):
    """An agent whose surrogate has learnt a little."""
    rng, surrogate = np.random.default_rng(seed), Surrogate(np.arange(4))
    surrogate.fit(rng.random((9, 4)), rng.random((9, 3)), np.full(9, 60), 2, rng)
    scale = Scale(("x", "y", "z", "layers"), (1.0, 0.9, 0.8, 0.5), (0.2, 0.1, 0.0, 1.0))
    actor = Actor.untrained(("a", "b"), 6, 3, [0, 2])
    return Agent(AgentConfig(("a", "b", "m"), 6, PathRules(end=3), scale, actor.experts, spent=7), actor, surrogate)


def test_a_saved_agent_is_loaded_as_it_was(tmp_path):
    agent = learned()
    agent.save(tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent")
    assert loaded.config == agent.config
    assert loaded.actor.experts == ("a", "b")
    assert loaded.actor.matrix.equal(agent.actor.matrix)
    described = np.random.default_rng(0).random((5, 4))
    for a, b in zip(loaded.surrogate.predict(described), agent.surrogate.predict(described), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_agents_are_saved_as_equal_bytes_that_name_no_folder(tmp_path):
    for name in ("first", "second"):
        learned(seed=5).save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["actor.safetensors", "config.json", "surrogate.safetensors"]
    for name in files:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
        assert str(tmp_path).encode() not in content


def test_an_agent_of_another_version_is_bad_input(tmp_path):
    learned().save(tmp_path / "agent")
    path = tmp_path / "agent" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(BadInput, match="version: 99"):
        load_agent(tmp_path / "agent")


@pytest.mark.parametrize("name", ["actor.safetensors", "config.json", "surrogate.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_agent_is_bad_input_in_one_line(tmp_path, name, damage):
    learned().save(tmp_path / "agent")
    path = tmp_path / "agent" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="not a whole agent") as error:
        load_agent(tmp_path / "agent")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [lambda state: state.pop("target"), lambda state: state.update(inputs=state["inputs"][:, :3].contiguous())],
    ids=["missing", "another shape"],
)
def test_an_agent_whose_tensors_do_not_fit_is_bad_input(tmp_path, change):
    learned().save(tmp_path / "agent")
    path = tmp_path / "agent" / "surrogate.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(BadInput, match="not a whole agent"):
        load_agent(tmp_path / "agent")


def test_numbers_that_are_none_are_bad_input(tmp_path):
    learned().save(tmp_path / "agent")
    path = tmp_path / "agent" / "surrogate.safetensors"
    state = load_file(path)
    state["target"][0, 0] = np.nan
    save_file(state, path)
    with pytest.raises(BadInput, match=r"surrogate\.safetensors: target"):
        load_agent(tmp_path / "agent")
