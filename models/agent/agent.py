"""What a search has learned of a family, as files: what it was made for, and the surrogate of its scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.agent.surrogate import Surrogate
from models.errors import BadInput
from models.files import parse_object, read_text, reading, validate
from models.front import Scale
from models.search.environment import PathRules
from models.sources.tensors import open_tensors

VERSION = 4
"""Version of the saved agent. A change of what it holds, or of its meaning, raises it."""


@dataclass(frozen=True)
class AgentConfig:
    """What an agent was made for."""

    models: tuple[str, ...]  # the pool of paths
    layers: int  # L
    rules: PathRules
    scale: Scale  # objectives with ideal and nadir point, `layers` last where depth is one


@dataclass(frozen=True)
class Agent:
    """The surrogate that stands in for the scores of a family's candidates."""

    config: AgentConfig
    surrogate: Surrogate

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``surrogate.safetensors``. Equal agents give equal bytes."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        state = {key: value.contiguous() for key, value in self.surrogate.state().items()}
        save_file(state, part / "surrogate.safetensors")
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
        return Agent(config, Surrogate.load(_tensors(folder, "surrogate.safetensors")))


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        opened = open_tensors(folder, name)
    except BadInput as error:
        raise BadInput(f"{folder.name}: not a whole agent: {error}") from None
    tensors = {one: opened.get_tensor(one) for one in opened.keys()}  # noqa: SIM118 (it is no mapping)
    if wrong := [one for one, tensor in tensors.items() if bool(tensor.isnan().any())]:
        raise BadInput(f"{folder.name}: not a whole agent: {name}: {wrong[0]}: holds what no training gives")
    return tensors
