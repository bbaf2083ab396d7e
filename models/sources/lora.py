"""LoRA adapters of peft as models: ``MODEL+ADAPTER``, mergekit's notation, is the base with ΔW added to its weights.

ΔW = s·B·A with A ``(r, in)`` and B ``(out, r)``, s = α/r (Hu et al. 2021, section 4.1) or α/√r with ``use_rslora``
(Kalajdzievski 2023). It is added in single precision when a tensor is asked for; nothing is written.

PiSSA and OLoRA start from a part of W, which peft takes out of the base when it loads the adapter, and so do we. Of a
tied base, embedding and head are two weights as soon as an adapter changes one of them alone: the result has both.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import BadInput
from models.files import find_inside
from models.sources.architecture import is_tied
from models.sources.checkpoint import Checkpoint, Model, open_checkpoint
from models.sources.lora_settings import (
    CONFIG,
    CONVERSION,
    REMEDY,
    Scaling,
    read_settings,
    start_of,
    without_start,
)
from models.sources.tensors import open_tensors, require_finite, require_floating
from models.sources.vocabulary import TOKENIZER, Vocabulary, read_vocabulary

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")


@dataclass(frozen=True)
class Update:
    """What an adapter does to one weight: names in its file."""

    whole: str = ""
    """Stands instead of the base's weight."""
    a: str = ""
    b: str = ""
    scaling: float = 0.0
    start: str = ""
    """``pissa`` or ``olora``: what such a start takes out of the weight comes first."""
    transposed: bool = False
    """The weight lies as ``(in, out)``, as an embedding and GPT-2's Conv1D do."""


class LoraSource:
    """A checkpoint with an adapter. Implements :class:`models.sources.checkpoint.Model`."""

    def __init__(self, base: Checkpoint, adapter: Path) -> None:
        """Read the adapter's config, and see that each of its tensors fits one of the base's.

        Raises:
            BadInput: a file is missing or damaged, the kind of adapter isn't supported, or a tensor doesn't fit.
        """
        self.base = base
        self.adapter = adapter
        self.label = f"{base.label}+{adapter}"
        self.architecture = base.architecture
        self.tokenizer = adapter if find_inside(adapter, TOKENIZER) else base.tokenizer
        self._settings = read_settings(adapter)
        self._scaling = Scaling(self._settings, adapter)
        self._map: Any = _open(adapter)
        require_floating(self._map, list(self._map.keys()), f"{adapter}: {WEIGHTS}")
        self._head = self.architecture.head if is_tied(base.config) else None
        """Name of a head that the base hasn't, for it is tied."""
        self._updates = self._match(set(self._map.keys()))
        self._digests: dict[str, str] = {}
        untied = {"tie_word_embeddings": False} if self._head in self._updates else {}
        self.config: dict[str, Any] = {**base.config, **untied}
        if (update := self._updates.get(self.architecture.embedding)) and update.whole:
            self.config["vocab_size"] = self._part(update.whole).shape[0]

    def __repr__(self) -> str:
        return f"LoraSource({self.label!r})"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Which token each row of its embedding belongs to."""
        return read_vocabulary(self.tokenizer, int(self.config.get("vocab_size") or 0))

    def names(self) -> list[str]:
        """See ``Source``."""
        return sorted({*self.base.names(), *self._updates})

    def tensor(self, name: str) -> Tensor:
        """See ``Source``.

        Raises:
            BadInput: the adapter holds NaN or infinity.
        """
        weight = self._weight(name)
        update, dtype = self._updates.get(name), weight.dtype
        if update is None:
            return weight
        if update.whole:
            weight = self._part(update.whole)
        if update.start:
            weight = without_start(
                weight, update.start, update.scaling, update.transposed, self._map_shape(update.a)[0]
            )
        if update.a:
            a, b = self._part(update.a).float(), self._part(update.b).float()
            left, right = (a.T, b.T) if update.transposed else (b, a)
            weight = torch.addmm(weight.float(), left, right, alpha=update.scaling)
        return weight.to(dtype)

    def digest(self, group: str) -> str:
        """See ``Source``."""
        if group not in self._digests:
            digest = hashlib.sha256(self.base.digest(group).encode())
            updates = {name: one for name, one in self._updates.items() if self.architecture.group(name) == group}
            for name in sorted(updates):
                one = updates[name]
                described = [self.architecture.split(name)[1], one.scaling, one.transposed]
                described += [one.start] if one.start else []
                parts = [part for part in (one.whole, one.a, one.b) if part]
                digest.update(b"" if parts else f"{described[0]} of its own".encode())  # a head that is no longer tied
                for part in parts:
                    tensor = self._part(part).contiguous()
                    digest.update(json.dumps([*described, str(tensor.dtype), list(tensor.shape)]).encode())
                    digest.update(tensor.view(torch.uint8).numpy().data)
            self._digests[group] = digest.hexdigest() if updates else self.base.digest(group)
        return self._digests[group]

    def release(self) -> None:
        """See ``Model``."""
        self.base.release()
        self._map = None

    def _weight(self, name: str) -> Tensor:
        """The base's own, where a head may be its embedding."""
        return self.base.tensor(self.architecture.embedding if name == self._head else name)

    def _map_shape(self, key: str) -> list[int]:
        if self._map is None:
            self._map = _open(self.adapter)
        return list(self._map.get_slice(key).get_shape())

    def _part(self, key: str) -> Tensor:
        if self._map is None:
            self._map = _open(self.adapter)
        return require_finite(self._map.get_tensor(key), f"{self.adapter}: {key}")

    def _match(self, keys: set[str]) -> dict[str, Update]:
        """What the adapter does to each weight that it changes."""
        stored = [*self.base.names(), *([self._head] if self._head else [])]
        names = {name: name for name in stored} | {self.architecture.live(name): name for name in stored}
        bare = {key.removeprefix(PREFIX).replace(".base_layer.", "."): key for key in sorted(keys)}
        found: dict[str, Update] = {}
        shared = ""
        for inner, key in bare.items():
            if ".original_module." in inner:  # what a copy was made of, where that was resized
                shared = shared or key if self._name_of(inner.replace(".original_module.", "."), names) else shared
                continue
            inner, again = inner.replace(".modules_to_save.", "."), ".modules_to_save." in inner
            if again and inner in bare:
                continue
            part = PART.fullmatch(inner)
            name = self._name_of(f"{part['module']}.weight" if part else inner, names)
            if name is None:
                raise BadInput(f"{self.adapter}: {key}: fits no weight of {self.base.label}; take this base's adapter")
            update = found.get(name, Update())
            found[name] = self._with_factor(update, key, part, name) if part else replace(update, whole=key)
        if self._head:
            self._share_ends(found, self._head, shared)
        for name, update in found.items():
            self._check_shape(name, update)
        return found

    def _share_ends(self, found: dict[str, Update], head: str, shared: str) -> None:
        """Of a tied base: what either end gets, and no head of its own where both stay the same.

        peft trains a copy of a module in ``modules_to_save``; what it stores of any other is the weight that both
        share, which was resized. Factors work on their own end alone.
        """
        embedding = self.architecture.embedding
        ends = {name: found.pop(name, Update()) for name in (embedding, head)}
        shared = shared or next((one.whole for name, one in ends.items() if not self._is_copied(name)), "")
        first, second = (one if one.whole else replace(one, whole=shared) for one in ends.values())
        if second.start:
            raise BadInput(
                f"{self.adapter}: {CONFIG}: init_lora_weights: on a head that is tied to the embedding it changes"
                " both; save the merged model where it was trained"
            )
        if first != Update():
            found[embedding] = first
        if self._do_the_same(first, second):
            return
        found[head] = second
        rows = [
            self._map_shape(one.whole)[0] if one.whole else self._weight(embedding).shape[0] for one in (first, second)
        ]
        if rows[0] != rows[1]:
            raise BadInput(
                f"{self.adapter}: {WEIGHTS}: embedding and head have {rows[0]} and {rows[1]} rows;"
                " train with both in modules_to_save, or save the merged model where it was trained"
            )

    def _is_copied(self, name: str) -> bool:
        module = self.architecture.live(name).rpartition(".")[0]
        saved = self._settings.get("modules_to_save") or []
        return any(module == one or module.endswith(f".{one}") for one in saved)

    def _do_the_same(self, embedding: Update, head: Update) -> bool:
        """Whether the head stays the embedding; peft stores tied factors twice, once transposed."""
        wholes = (embedding.whole, head.whole)
        if bool(wholes[0]) != bool(wholes[1]) or bool(embedding.a) != bool(head.a):
            return False
        if wholes[0] != wholes[1] and not torch.equal(*map(self._part, wholes)):
            return False
        factors = ((embedding.a, head.b), (embedding.b, head.a)) if embedding.a and embedding.b and head.b else ()
        return embedding.scaling == head.scaling and all(
            torch.equal(self._part(one).T, self._part(other)) for one, other in factors
        )

    def _with_factor(self, update: Update, key: str, part: re.Match[str], name: str) -> Update:
        if "_B" in part["part"]:
            return replace(update, b=key)
        scaling = self._scaling.of(part["module"], self._map_shape(key)[0])
        # peft takes Conv1D as transposed whatever the adapter's config says
        flagged = self._settings["fan_in_fan_out"] or self.base.config.get("model_type") == "gpt2"
        in_block = self.architecture.split(name)[0] is not None
        of_embedding = "embedding" in part["part"]
        transposed = of_embedding or bool(flagged and in_block)
        start = "" if of_embedding else start_of(self._settings)
        if start == "olora" and transposed:
            raise BadInput(f"{self.adapter}: {CONFIG}: init_lora_weights: olora: not on {name}; {CONVERSION}")
        return replace(update, a=key, scaling=scaling, start=start, transposed=transposed)

    def _name_of(self, live: str, names: Mapping[str, str]) -> str | None:
        """Weight of the base; an adapter of the bare model, without a head, leaves the first part of names out."""
        first = self.architecture.live(self.architecture.blocks).partition(".")[0]
        return next((names[one] for one in (live, f"{first}.{live}") if one in names), None)

    def _check_shape(self, name: str, update: Update) -> None:
        weight = list(self._weight(name).shape)
        if update.whole:
            shape = list(self._map.get_slice(update.whole).get_shape())
            by_token = name in (self.architecture.embedding, self.architecture.head)
            if shape[1:] != weight[1:] or not (by_token or shape == weight):
                raise self._unfit(update.whole, shape, name, weight)
            weight = shape
        if bool(update.a) != bool(update.b):
            raise BadInput(
                f"{self.adapter}: {WEIGHTS}: has {update.a or update.b} without its counterpart; fetch or copy it again"
            )
        if update.a:
            for key in (update.a, update.b):
                if len(self._map_shape(key)) != 2:
                    raise self._unfit(key, self._map_shape(key), name, weight)
            (rank, inner), (outer, other) = (self._map.get_slice(key).get_shape() for key in (update.a, update.b))
            shape = [inner, outer] if update.transposed else [outer, inner]
            if shape != weight or rank != other:
                raise self._unfit(update.a, shape, name, weight)

    def _unfit(self, key: str, shape: Sequence[int], name: str, weight: Sequence[int]) -> BadInput:
        return BadInput(
            f"{self.adapter}: {key}: gives {shape}, but {name} of {self.base.label} is {weight};"
            " take the adapter of this base"
        )


def open_model(reference: str, find: Callable[[str], Path]) -> Model:
    """The model of a folder, or ``MODEL+ADAPTER``, as it stands in a recipe or a profile.

    ``find`` gives the folder of a model or an adapter.

    Raises:
        BadInput: a folder is missing or damaged, or the adapter doesn't fit.
    """
    model, plus, adapter = reference.rpartition("+")
    if not plus or find(reference).is_dir():
        return open_checkpoint(find(reference))
    if not model or ("+" in model and not find(model).is_dir()):
        raise BadInput(f"{reference}: a model takes one adapter, MODEL+ADAPTER; {REMEDY}")
    return LoraSource(open_checkpoint(find(model)), find(adapter))


def _open(adapter: Path) -> Any:
    if find_inside(adapter, WEIGHTS) is None and (adapter / "adapter_model.bin").is_file():
        pickled, safe = f"{adapter}/adapter_model.bin", f"{adapter}/{WEIGHTS}"
        program = (
            "import torch; from safetensors.torch import save_file; "
            # Nothing is loaded here: this is a command for the user, in which the folder's name is quoted, and
            # weights_only refuses everything but tensors.
            f"save_file(torch.load({pickled!r}, weights_only=True), {safe!r})"
        )
        command = f"python -c {shlex.quote(program)}"
        raise BadInput(f"{adapter}: adapter_model.bin: a pickled adapter is refused; run: {command}")
    return open_tensors(adapter, WEIGHTS)
