"""The models whose layers a path may use, as Hugging Face modules that are built when they are first needed."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from models.candidate import Candidate
from models.errors import BadInput
from models.files import reading
from models.paths.ends import Ends, Listener
from models.sources.architecture import ENDS, architecture_of, module_of
from models.sources.checkpoint import Source

Built = TypeVar("Built", bound=nn.Module)
Filled = TypeVar("Filled", bound=nn.Module)


class Job(Protocol):
    """Something to compute with the models on candidates' paths.

    It holds no model, so that it can be sent to where they are; only then do several run at once.
    """

    def run(self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]) -> list[Any]:
        """What comes of each candidate: numbers, texts, and tensors on the CPU.

        ``on_done`` is told how many more candidates are done, in parts of them.
        """


class Pool:
    """Models by name, all of one architecture; what is built of them is kept in an LRU that is bounded in bytes."""

    def __init__(
        self, config: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32, max_bytes: int = 2**30
    ) -> None:
        """A pool without models.

        Args:
            config: the base's ``config.json``.
            max_bytes: what blocks and ends may hold together; the one in use is always held.

        Raises:
            BadInput: the architecture is unknown.
        """
        self.architecture = architecture_of(config)
        self.config = config
        self.device = self.home = torch.device(device)
        self.dtype = dtype
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.skeleton = _skeleton(config, self.device)
        live = self.architecture.live
        self._blocks = live(self.architecture.blocks)
        self._norm = module_of(live(self.architecture.norm))
        self._head = module_of(live(self.architecture.head or ""))
        self._listening: PreTrainedModel = shallow_clone(self.skeleton)
        self._listening.set_submodule(self._blocks, nn.ModuleList(Listener() for _ in range(self.layers)))
        self._sources: dict[str, Source] = {}
        self._digests: dict[tuple[str, str], str] = {}
        self._kept: OrderedDict[tuple[str, int | str], nn.Module] = OrderedDict()
        self._lock = threading.RLock()

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, in the order in which they were added."""
        return tuple(self._sources)

    @property
    def layers(self) -> int:
        """Number of layers of the base, L."""
        return self.architecture.layers(self.config)

    @property
    def max_length(self) -> int:
        """Longest sequence that the models take, in tokens."""
        return int(self.skeleton.config.max_position_embeddings)

    def add(self, name: str, source: Source) -> None:
        """Let a model take part.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._sources:
            raise ValueError(f"{name} is in the pool already")
        self._sources[name] = source

    def discard(self, name: str) -> None:
        """Forget a model and what was built of it."""
        with self._lock:
            self._sources.pop(name, None)
            for key in [key for key in self._kept if key[0] == name]:
                self._drop(key)
            for group in [group for group in self._digests if group[0] == name]:
                del self._digests[group]

    @property
    def lanes(self) -> int:
        """How many jobs it takes at once."""
        return 1

    def run(self, job: Job, candidates: Sequence[Candidate], on_done: Callable[[float], None]) -> list[Any]:
        """What a job makes of each candidate; see :class:`Job`."""
        return job.run(self, candidates, on_done)

    def check(self, candidate: Candidate) -> None:
        """Refuse a candidate that can't be built from this pool.

        Raises:
            BadInput: its path is empty, or it names an unknown model or layer.
        """
        if not candidate.path:
            raise BadInput(f"candidate {candidate.id}: path: is empty; give it at least one layer")
        for model in candidate.models:
            self._source(model)
        for model, layer in candidate.path:
            if not 0 <= layer < self.layers:
                raise BadInput(
                    f"candidate {candidate.id}: path: {model} has no layer {layer}; it has 0 to {self.layers - 1}"
                )

    def block(self, model: str, layer: int) -> nn.Module:
        """A decoder layer whose parameters are the model's tensors, not copies where dtype and device allow it.

        Raises:
            BadInput: the pool has no such model.
        """

        def build() -> nn.Module:
            clone: nn.Module = shallow_clone(self.skeleton.get_submodule(f"{self._blocks}.{layer}"))
            return self._filled(clone, self._source(model), f"{self._blocks}.{layer}.")

        return self._keep((model, layer), build)

    def ends(self, host: str) -> Ends:
        """Embedding, final norm and head of a model. A tied head shares the embedding's parameter.

        Raises:
            BadInput: the pool has no such model.
        """

        def build() -> Ends:
            source = self._source(host)
            if self.architecture.classes == "texts" and self.architecture.head not in source.names():
                raise BadInput(
                    f"{host}: {self.architecture.head}: missing; give it the one of the whole model it is from"
                )
            model = self._filled(shallow_clone(self._listening), source)
            if self.architecture.head not in source.names() and not self.architecture.classes:
                head = model.get_submodule(self._head)
                head._parameters["weight"] = model.get_input_embeddings().weight
            return self.around(model)

        return self._keep((host, ENDS), build)

    def around(self, model: PreTrainedModel) -> Ends:
        """A model with listeners for blocks, as ends."""
        return Ends(model, self._norm, self._head)

    def with_blocks(self, host: str, blocks: Sequence[nn.Module]) -> PreTrainedModel:
        """The host's model with other blocks than its own, sharing every parameter."""
        model: PreTrainedModel = shallow_clone(self.ends(host).model)
        model.set_submodule(self._blocks, nn.ModuleList(blocks))
        return model

    def digest(self, candidate: Candidate) -> str:
        """Hex sha256 of the content that decides its scores: the host's ends and each layer in order.

        Raises:
            BadInput: the candidate can't be built from this pool.
        """
        self.check(candidate)
        groups = [(candidate.host, ENDS), *((model, f"layer.{layer}") for model, layer in candidate.path)]
        for group in groups:
            if group not in self._digests:
                self._digests[group] = self._source(group[0]).digest(group[1])
        return hashlib.sha256("\n".join(self._digests[group] for group in groups).encode()).hexdigest()

    def fitting(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Candidates by their index, in order, in groups whose blocks and ends can be held together.

        More than that would push each other out, and be built anew for every batch of requests. A candidate that
        doesn't fit alone is a group of its own.
        """
        layers = self.skeleton.get_submodule(self._blocks).children()
        blocks = [parameter_bytes(layer, self.dtype) for layer in layers]
        ends = parameter_bytes(self.skeleton, self.dtype) - sum(blocks)
        groups: list[list[int]] = []
        held: set[tuple[str, int | str]] = set()
        for index, candidate in enumerate(candidates):
            needed: set[tuple[str, int | str]] = {(candidate.host, ENDS), *candidate.path}
            size = sum(blocks[part] if isinstance(part, int) else ends for _, part in held | needed)
            if not groups or size > self.max_bytes:
                groups.append([])
                held = set()
            groups[-1].append(index)
            held |= needed
        return groups

    def _source(self, model: str) -> Source:
        if model not in self._sources:
            raise BadInput(f"model {model!r}: not in the pool; there are {', '.join(self.names) or 'none'}")
        return self._sources[model]

    def _filled(self, module: Filled, source: Source, prefix: str = "") -> Filled:
        """Give a part of the skeleton a model's tensors as its parameters.

        Args:
            module: clone of the part, changed in place.
            source: the model.
            prefix: of the part's names in the whole model, as they are in memory.

        Raises:
            BadInput: a tensor is missing, or of another shape than the config says.
        """
        stored = {self.architecture.live(name): name for name in source.names()}
        for name, parameter in list(module.named_parameters()):
            if prefix + name not in stored:
                if module_of(name) == self._head:
                    continue  # it is tied
                raise BadInput(f"{prefix}{name}: tensor is missing, by config.json; fetch or copy the model again")
            tensor = source.tensor(stored[prefix + name]).to(device=self.device, dtype=self.dtype)
            if tensor.shape != parameter.shape:
                given, wanted = list(tensor.shape), list(parameter.shape)
                raise BadInput(f"{prefix}{name}: is {given}, but config.json makes {wanted}; fetch or copy it again")
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        return module

    def _keep(self, key: tuple[str, int | str], build: Callable[[], Built]) -> Built:
        """What was built for a key, built now if it isn't held; what was used least recently makes room for it."""
        with self._lock:
            if key not in self._kept:
                # scoring runs in inference mode, but what is kept must be fit for use outside of it too
                with torch.inference_mode(False), torch.no_grad():
                    self._kept[key] = build()
                self.held_bytes += parameter_bytes(self._kept[key])
            self._kept.move_to_end(key)
            while self.held_bytes > self.max_bytes and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))
            built: Built = self._kept[key]  # type: ignore[assignment] # a key is built by one kind of build
            return built

    def _drop(self, key: tuple[str, int | str]) -> None:
        self.held_bytes -= parameter_bytes(self._kept.pop(key))


def unwatched(_: float) -> None:
    """What is told how far a job is, where nobody watches."""


def _skeleton(config: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """The family's model with its buffers, and without memory for its parameters."""
    with reading("config.json"), init_empty_weights(include_buffers=False):
        made: PreTrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(config)
        family: type[PreTrainedModel] = getattr(transformers, config["architectures"][0])
        model = family(made).eval()  # the module's inference mode
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model


def shallow_clone(module: Filled) -> Filled:
    """A module of its own, down to the leaves, that shares every tensor with the given one."""
    # the constructor would allocate, and copy.copy takes ten times as long
    clone: Filled = object.__new__(type(module))
    for name, value in vars(module).items():
        # parameters, buffers, children and hooks lie in dictionaries that a copy would share; most of them are empty
        vars(clone)[name] = (value.copy() if value else type(value)()) if isinstance(value, dict) else value
    for name, child in module._modules.items():
        if child is not None:
            clone._modules[name] = shallow_clone(child)
    return clone


def parameter_bytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of a module's parameters, each counted once, in a number format or their own."""
    return sum(parameter.numel() * (dtype or parameter.dtype).itemsize for parameter in module.parameters())
