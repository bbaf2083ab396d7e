"""The models whose layers a path may use, as Hugging Face modules that are built when they are first needed."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate
from transformers.models.auto import CONFIG_MAPPING

from models.architecture import ENDS, architecture_of
from models.candidate import Candidate
from models.checkpoint import Source
from models.errors import BadInput

Built = TypeVar("Built", bound=nn.Module)


class Ends(nn.Module):
    """What lies outside the blocks and belongs to a path's host."""

    def __init__(
        self, config: PreTrainedConfig, embedding: nn.Module, rotary: nn.Module, norm: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.rotary = rotary
        self.norm = norm
        self.head = head

    def embed(self, ids: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """Hidden states ``(B, T, D)`` of token ids ``(B, T)``, and what each of the L layers takes beside them."""
        hidden = self.embedding(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        shared = {"position_ids": positions, "position_embeddings": self.rotary(hidden, positions)}
        masks = create_masks_for_generate(self.config, hidden, None, None, positions)
        kinds = masks if isinstance(masks, dict) else {None: masks}
        of_layers = self.config.layer_types if isinstance(masks, dict) else [None] * self.config.num_hidden_layers
        return hidden, [{**shared, "attention_mask": kinds[kind]} for kind in of_layers]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(…, V)`` of the last block's hidden states ``(…, D)``."""
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Pool:
    """Models by name, all of one architecture; what is built of them is kept in an LRU that is bounded in bytes."""

    def __init__(
        self,
        config: dict[str, Any],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_bytes: int = 2**30,
    ) -> None:
        """A pool without models.

        Args:
            config: the base's ``config.json``.
            device: where blocks live and scoring runs.
            dtype: number format of every parameter.
            max_bytes: what blocks and ends may hold together; the one in use is always held.

        Raises:
            BadInput: the architecture is unknown.
        """
        self.architecture = architecture_of(config)
        self.config = config
        self.device = torch.device(device)
        self.dtype = dtype
        self.max_bytes = max_bytes
        self.held_bytes = 0
        with torch.device("meta"):
            described = CONFIG_MAPPING[config["model_type"]].from_dict(config)
            self.skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(described).eval()
        with self.device:
            self.rotary: nn.Module = type(self.skeleton.base_model.rotary_emb)(config=self.skeleton.config)
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
        path = f"{self.architecture.blocks}.{layer}"
        return self._keep((model, layer), lambda: self._filled(path, self._source(model)))

    def ends(self, host: str) -> Ends:
        """Embedding, rotary embedding, final norm and head of a model. A tied head shares the embedding's parameter.

        Raises:
            BadInput: the pool has no such model.
        """

        def build() -> Ends:
            source = self._source(host)
            embedding, norm = self._filled(self.embedding, source), self._filled(self.norm, source)
            if self.architecture.head in source.names():
                head = self._filled(self.head, source)
            else:
                head = shallow_clone(self.skeleton.get_submodule(self.head))
                head.weight = embedding.weight
            return Ends(self.skeleton.config, embedding, self.rotary, norm, head)

        return self._keep((host, ENDS), build)

    @property
    def embedding(self) -> str:
        """Where the embedding is in the Hugging Face model."""
        return self.architecture.embedding.removesuffix(".weight")

    @property
    def norm(self) -> str:
        """Where the final norm is in the Hugging Face model."""
        return self.architecture.norm.removesuffix(".weight")

    @property
    def head(self) -> str:
        """Where the head is in the Hugging Face model."""
        return self.architecture.head.removesuffix(".weight")

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

    def _source(self, model: str) -> Source:
        if model not in self._sources:
            raise BadInput(f"model {model!r}: not in the pool; there are {', '.join(self.names) or 'none'}")
        return self._sources[model]

    def _filled(self, path: str, source: Source) -> nn.Module:
        """A part of the skeleton with a model's tensors as its parameters."""
        template = self.skeleton.get_submodule(path)
        clone = shallow_clone(template)
        for name, _ in template.named_parameters():
            tensor = source.tensor(f"{path}.{name}").to(device=self.device, dtype=self.dtype)
            owner, _, leaf = name.rpartition(".")
            clone.get_submodule(owner)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        return clone

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


def shallow_clone(module: nn.Module) -> nn.Module:
    """A module of its own, down to the leaves, that shares every tensor with the given one."""
    clone = copy.copy(module)
    # parameters, buffers, children and hooks lie in dictionaries that a copy would share
    vars(clone).update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    for name, child in module.named_children():
        clone._modules[name] = shallow_clone(child)
    return clone


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters, each counted once."""
    return sum(parameter.nbytes for parameter in module.parameters())
