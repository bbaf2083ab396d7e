"""Actor and critic, each for all preferences at once (method.md, section 4).

Shapes: N paths, T actions, A actions in the space, R preferences, K objectives, H = hidden.
Dropout takes its noise from a generator that is passed in; without one there is none.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from models.agent.surrogate import Surrogate
from models.errors import BadInput
from models.files import parse_object, read_text, reading, validate
from models.front import Array, Scale
from models.search.environment import PathRules, PathSpace
from models.search.reward import Reward
from models.sources.tensors import open_tensors

VERSION = 3
"""Version of the saved agent. A change of networks or of their meaning raises it."""


LARGEST = 4096
"""Size of anything in an agent's config, and of any weight: trained ones are thousands of times smaller."""


@dataclass(frozen=True)
class AgentConfig:
    """What an agent was made for, and its sizes."""

    models: tuple[str, ...]  # the pool, in the order of the actions
    layers: int  # L
    rules: PathRules
    scale: Scale  # objectives with ideal and nadir point, `layers` last where depth is one
    features: int  # F, statistics a source layer
    hidden: int = 64  # H, width of the GRU; 256 gives about 0.75 million parameters in all
    embedding: int = 32  # width of each of the embeddings of model, layer, statistics
    proto: int = 16  # dimensions of the proto-action
    dropout: float = 0.1


@dataclass(frozen=True)
class Memory:
    """What an encoder carries from one step to the next."""

    gru: Tensor  # (1, N, H)
    used: Tensor  # (N, L), 1 where a layer index was used
    sum: Tensor  # (N, 3·embedding), sum of the source layers' embeddings

    def take(self, index: Tensor) -> Memory:
        """The memory of those states, in that order."""
        return Memory(self.gru[:, index], self.used[index], self.sum[index])


class Encoder(nn.Module):
    """State s_t of a path's first t actions: a GRU over [ψ_m(m); ψ_l(l); φ(θ_{m,l})] (the paper's Eq. 7).

    To the GRU's output come linear maps of t, of which layer indices are used, and of the sum of the embeddings. What a
    path lacks decides most of its score, and a GRU alone is slow to learn that from a few hundred paths.
    """

    statistics: Tensor

    def __init__(self, config: AgentConfig, space: PathSpace) -> None:
        super().__init__()
        width = 3 * config.embedding
        self.layers, self.stop, self.dropout = config.layers, space.stop, config.dropout
        self.register_buffer("statistics", torch.zeros(len(config.models) * config.layers, config.features))
        self.model = nn.Embedding(len(config.models), config.embedding)
        self.layer = nn.Embedding(config.layers, config.embedding)
        self.statistic = nn.Linear(config.features, config.embedding)
        self.special = nn.Parameter(torch.randn(2, width))  # STOP, and the start of every path
        self.gru = nn.GRU(width, config.hidden, batch_first=True)
        self.position = nn.Embedding(space.longest + 2, config.hidden)
        self.used = nn.Linear(config.layers, config.hidden)
        self.sum = nn.Linear(width, config.hidden)

    def tokens(self) -> Tensor:
        """(A + 1, 3·embedding): every action, then the start."""
        m = self.model.weight.repeat_interleave(self.layers, dim=0)
        l = self.layer.weight.repeat(self.model.num_embeddings, 1)  # noqa: E741
        return torch.cat([torch.cat([m, l, self.statistic(self.statistics)], dim=1), self.special])

    def state(self, gru: Tensor, used: Tensor, total: Tensor, position: Tensor) -> Tensor:
        """(..., H) from its parts; the layer indices enter as those that are missing."""
        out: Tensor = gru + position + self.used(used - 1) + self.sum(total / self.layers)
        return out

    def forward(self, actions: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """States (N, T + 1, H) before and after each of the actions (N, T). Behind -1 they mean nothing."""
        tokens = self.tokens()
        inputs = functional.pad(actions.clamp_min(0), (1, 0), value=len(tokens) - 1)
        is_layer = functional.pad((actions >= 0) & (actions < self.stop), (1, 0))
        embedded = tokens[inputs]
        used = functional.one_hot(inputs % self.layers, self.layers) * is_layer[..., None]
        states = self.state(
            self.gru(embedded)[0],
            used.cumsum(dim=1).clamp_max(1).float(),
            (embedded * is_layer[..., None]).cumsum(dim=1),
            self.position.weight[: inputs.shape[1]],
        )
        return drop(states, self.dropout, noise)

    def start(self, count: int) -> tuple[Tensor, Memory]:
        """State (N, H) and memory of so many empty paths."""
        tokens = self.tokens()
        gru = self.gru(tokens[-1].expand(count, 1, -1))[1]
        memory = Memory(gru, torch.zeros(count, self.layers), torch.zeros(count, tokens.shape[1]))
        return self.state(gru[0], memory.used, memory.sum, self.position.weight[0]), memory

    def step(self, actions: Tensor, memory: Memory, t: int) -> tuple[Tensor, Memory]:
        """State (N, H) and memory after the t-th action (N,) of each path, t from 1."""
        embedded = self.tokens()[actions]
        is_layer = (actions < self.stop)[:, None]
        used = functional.one_hot(actions % self.layers, self.layers) * is_layer
        memory = Memory(
            self.gru(embedded[:, None], memory.gru)[1],
            (memory.used + used).clamp_max(1),
            memory.sum + embedded * is_layer,
        )
        return self.state(memory.gru[0], memory.used, memory.sum, self.position.weight[t]), memory


class Conditioned(nn.Module):
    """An MLP on a state that FiLM (Perez et al. 2018) scales and shifts by the preference."""

    def __init__(self, config: AgentConfig, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden)
        self.film = nn.Linear(len(config.scale.names), 2 * config.hidden)
        self.inner = nn.Linear(config.hidden, config.hidden)
        self.outer = nn.Linear(config.hidden, out)
        self.dropout = config.dropout

    def forward(self, states: Tensor, preferences: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """(..., out) from states (..., H) and preferences (..., K), broadcast against each other."""
        scale, shift = self.film(preferences).chunk(2, dim=-1)
        inner = functional.gelu(self.inner(self.norm(states) * (1 + scale) + shift))
        out: Tensor = self.outer(drop(inner, self.dropout, noise))
        return out


class Actor(nn.Module):
    """π(a|s,λ) ∝ mask · exp(-‖ē - e_a‖²/2σ²), with ē the proto-action and e_a a learned action embedding."""

    def __init__(self, config: AgentConfig, space: PathSpace) -> None:
        super().__init__()
        self.encoder = Encoder(config, space)
        self.head = Conditioned(config, config.proto)
        self.embed = nn.Linear(3 * config.embedding, config.proto)
        self.log_sigma = nn.Parameter(torch.tensor(0.7))

    def log_policy(
        self, states: Tensor, preferences: Tensor, legal: Tensor, noise: torch.Generator | None = None
    ) -> Tensor:
        """log π (..., A) in states (..., H) under preferences (..., K); -inf where not ``legal`` (..., A).

        The nearest legal actions to ē, Wolpertinger's set, are those of greatest probability.
        """
        proto = self.head(states, preferences, noise)
        actions = self.embed(self.encoder.tokens()[:-1])  # (A, D)
        squared = proto.square().sum(-1, keepdim=True) - 2 * proto @ actions.T + actions.square().sum(-1)
        logits: Tensor = -squared * torch.exp(-2 * self.log_sigma) / 2
        return logits.masked_fill(~legal, -torch.inf).log_softmax(-1)


class Critic(nn.Module):
    """V(s, λ), which with γ = 1 and deterministic transitions also gives Q(s, a, λ) = V(s∘a, λ)."""

    def __init__(self, config: AgentConfig, space: PathSpace) -> None:
        super().__init__()
        self.encoder = Encoder(config, space)
        self.head = Conditioned(config, 1)

    def value(self, states: Tensor, preferences: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """(...) from states (..., H) and preferences (..., K)."""
        value: Tensor = self.head(states, preferences, noise)[..., 0]
        return value


def drop(x: Tensor, share: float, noise: torch.Generator | None) -> Tensor:
    """Dropout with noise from a generator; none without one."""
    if noise is None or share == 0:
        return x
    return x * (torch.rand(x.shape, generator=noise) >= share) / (1 - share)


class Agent:
    """Actor and critic for the paths over one pool, and the surrogate that stands in for the scores."""

    def __init__(self, config: AgentConfig, statistics: Array, seed: int, surrogate: Surrogate | None = None) -> None:
        """New networks; there is no surrogate before any training.

        ``statistics`` (M, L, F) are those of :func:`models.search.features.layer_statistics`.
        """
        self.surrogate = surrogate
        self.config = config
        self.space = PathSpace(config.models, config.layers, config.rules)
        self.reward = Reward(config.scale, config.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Actor(config, self.space)
            self.critic = Critic(config, self.space)
        for module in self.networks().values():
            for part in module.modules():
                if isinstance(part, Encoder):
                    part.statistics.copy_(torch.from_numpy(statistics).reshape(part.statistics.shape))

    def networks(self) -> dict[str, nn.Module]:
        """The two by name."""
        return {"actor": self.actor, "critic": self.critic}

    @property
    def parameters(self) -> int:
        """How many parameters the networks have in all."""
        return sum(p.numel() for network in self.networks().values() for p in network.parameters())

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and a safetensors file a network. Equal agents give equal bytes."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        states = {name: network.state_dict() for name, network in self.networks().items()}
        if self.surrogate is not None:
            states["surrogate"] = self.surrogate.state()
        for name, state in states.items():
            save_file({key: value.contiguous() for key, value in state.items()}, part / f"{name}.safetensors")
        config = {"version": VERSION, "surrogate": self.surrogate is not None, **asdict(self.config)}
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
        has_surrogate = fields.pop("surrogate")
        config = validate(AgentConfig, fields, f"{folder.name}/config.json", remedy=remedy)
        if max(config.layers, config.features, config.hidden, config.embedding, config.proto) > LARGEST:
            raise BadInput(f"{folder.name}/config.json: claims larger networks than there are; {remedy}")
        agent = Agent(config, np.zeros((len(config.models), config.layers, config.features)), seed=0)
        for name, network in agent.networks().items():
            network.load_state_dict(_tensors(folder, name, LARGEST))
        if has_surrogate:
            agent.surrogate = Surrogate.load(_tensors(folder, "surrogate", math.inf))
    return agent


def _tensors(folder: Path, name: str, most: float) -> dict[str, Tensor]:
    try:
        opened = open_tensors(folder, f"{name}.safetensors")
    except BadInput as error:
        raise BadInput(f"{folder.name}: not a whole agent: {error}") from None
    tensors = {one: opened.get_tensor(one) for one in opened.keys()}  # noqa: SIM118 (it is no mapping)
    if wrong := [one for one, tensor in tensors.items() if not bool((tensor.abs() <= most).all())]:
        raise BadInput(
            f"{folder.name}: not a whole agent: {name}.safetensors: {wrong[0]}: holds what no training gives"
        )
    return tensors
