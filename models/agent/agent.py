"""What is learned of a family, as files: what it was made for, the actor, and the critic, a surrogate of scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.agent.actor import Actor
from models.agent.surrogate import Surrogate
from models.errors import BadInput
from models.files import parse_object, read_text, reading, validate
from models.front import Scale
from models.search.environment import PathRules
from models.search.reward import LAYERS
from models.sources.tensors import open_tensors

VERSION = 6
"""Version of the saved agent. A change of what it holds, or of its meaning, raises it."""


@dataclass(frozen=True)
class AgentConfig:
    """What an agent was made for."""

    models: tuple[str, ...]  # the pool of paths
    layers: int  # L
    rules: PathRules
    scale: Scale  # objectives with ideal and nadir point, `layers` last where depth is one
    experts: tuple[str, ...]  # E, of the actor's coefficients
    spent: int  # item evaluations that were charged until it was trained


@dataclass(frozen=True)
class Agent:
    """Actor and critic of a family."""

    config: AgentConfig
    actor: Actor
    surrogate: Surrogate
    """Stands in for the scores of candidates."""

    def save(self, folder: Path) -> None:
        """Write ``config.json``, ``actor.safetensors`` and ``surrogate.safetensors``. Equal agents give equal bytes."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, state in (("actor", self.actor.state()), ("surrogate", self.surrogate.state())):
            save_file({key: value.contiguous() for key, value in state.items()}, part / f"{name}.safetensors")
        config = {"version": VERSION, **asdict(self.config)}
        (part / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)


def load_agent(folder: Path) -> Agent:
    """The agent that was saved in a folder.

    Raises:
        BadInput: a file is missing or damaged, or the agent is of another version.
    """
    remedy, label = "train it again (hm3 stage train)", f"{folder.name}: not a whole agent: config.json"
    with reading(f"{folder.name}: not a whole agent", remedy):
        fields = parse_object(read_text(folder / "config.json", label), label)
        version = fields.pop("version")
        if version != VERSION:
            raise BadInput(f"{folder.name}/config.json: version: {version}, but this hm3 reads {VERSION}; {remedy}")
        config = validate(AgentConfig, fields, f"{folder.name}/config.json", remedy=remedy)
        actor = Actor(config.experts, _tensors(folder, "actor.safetensors")["matrix"])
        tasks = len(config.scale.names) - (config.scale.names[-1] == LAYERS)
        if tuple(actor.matrix.shape) != (1 + tasks, len(config.experts), config.layers):
            raise ValueError(f"actor.safetensors: matrix: is {list(actor.matrix.shape)}, which is not for this family")
        return Agent(config, actor, Surrogate.load(_tensors(folder, "surrogate.safetensors")))


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        opened = open_tensors(folder, name)
    except BadInput as error:
        raise BadInput(f"{folder.name}: not a whole agent: {error}") from None
    tensors = {one: opened.get_tensor(one) for one in opened.keys()}  # noqa: SIM118 (it is no mapping)
    if wrong := [one for one, tensor in tensors.items() if bool(tensor.isnan().any())]:
        raise BadInput(f"{folder.name}: not a whole agent: {name}: {wrong[0]}: holds what no training gives")
    return tensors
