"""Models as named tensors: safetensors folders that are read, and written, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.errors import BadInput
from models.files import find_inside, read_object, reading
from models.sources.architecture import (
    Architecture,
    architecture_of,
    encoder_config,
    is_tied,
    named_config,
)
from models.sources.companions import copy_companions, settle_companions
from models.sources.fields import Config, Index
from models.sources.loadable import check_loadable
from models.sources.shards import Shard, write_shards
from models.sources.tensors import open_tensors, require_finite, require_floating
from models.sources.vocabulary import Vocabulary, read_vocabulary

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Of the files that are written, as with mergekit."""

REMEDY = "only fine-tunes of one base can be merged"


class Source(Protocol):
    """A model as named tensors, read one at a time."""

    config: dict[str, Any]

    def names(self) -> list[str]:
        """Names of its tensors, sorted. A head that is tied to the embedding is absent."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, floating point, in the stored dtype."""

    def digest(self, group: str) -> str:
        """Hex sha256 of the content of one tensor group (``layer.3``, ``ends``), whatever the layer's index."""


class Model(Source, Protocol):
    """A model that lies on the disk."""

    label: str
    """What messages call it."""
    architecture: Architecture
    tokenizer: Path
    """Folder of its tokenizer."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Which token each row of its embedding belongs to."""

    def release(self) -> None:
        """Let go of what reading holds in memory; reading on takes it up again."""


class Checkpoint:
    """A Hugging Face folder with safetensors, one file or several, read through memory maps."""

    def __init__(self, path: Path) -> None:
        """Read the config and the index.

        Raises:
            BadInput: there is no such folder, config or safetensors file, or the architecture is unknown.
        """
        self.path = self.tokenizer = path
        self.label = str(path)
        with reading(f"{path}: {CONFIG}"):
            self.config: dict[str, Any] = named_config(encoder_config(_read_config(path)))
        self.architecture: Architecture = architecture_of(self.config, f"{path}: {CONFIG}")
        self._maps: dict[str, Any] = {}
        self._views: dict[str, Tensor] = {}
        self._digests: dict[str, str] = {}
        canonical = self.architecture.canonical
        self._places = {
            canonical(name): (file, name)
            for name, file in _tensor_files(self).items()
            if not self.architecture.is_buffer(canonical(name))
        }
        """Names of tensors, and the file and the name under which each is stored."""
        stored: dict[str, list[str]] = {}
        for file, name in self._places.values():
            stored.setdefault(file, []).append(name)
        for file, names in stored.items():
            require_floating(self.map(file), names, str(path))
        if is_tied(self.config):
            self._tie()

    def _tie(self) -> None:
        """Leave one of embedding and head, as transformers loads them: either alone is both, two that differ stay."""
        embedding, head = self.architecture.embedding, str(self.architecture.head)
        if head not in self._places:
            return
        if embedding in self._places and not torch.equal(self.tensor(embedding), self.tensor(head)):
            self.config["tie_word_embeddings"] = False
            return
        stored = self._places.pop(head)
        self._places.setdefault(embedding, stored)
        self._views.clear()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Which token each row of its embedding belongs to."""
        return read_vocabulary(self.path, int(self.config.get("vocab_size") or 0))

    def names(self) -> list[str]:
        """Names of its tensors, sorted. A head that is tied to the embedding is absent."""
        return sorted(self._places)

    def tensor(self, name: str) -> Tensor:
        """One tensor as it lies in the file: a view of the memory map, so never write into it."""
        view = self._views.get(name)  # another thread may release at any time
        if view is None:
            file, stored = self._places[name]
            view = self._views[name] = self.map(file).get_tensor(stored)
        return view

    def digest(self, group: str) -> str:
        """Of names inside the block, dtypes, shapes and bytes; see ``Source``."""
        if group not in self._digests:
            digest = hashlib.sha256()
            for name in self.names():
                if self.architecture.group(name) == group:
                    tensor = self.tensor(name).contiguous()
                    digest.update(f"{self.architecture.split(name)[1]} {tensor.dtype} {list(tensor.shape)}\n".encode())
                    digest.update(tensor.view(torch.uint8).numpy().data)
            self._digests[group] = digest.hexdigest()
        return self._digests[group]

    def map(self, file: str) -> Any:
        """The memory map of one file.

        Raises:
            BadInput: it is missing, leads out of the folder, or is no whole safetensors file.
        """
        opened = self._maps.get(file)
        if opened is None:
            opened = self._maps[file] = open_tensors(self.path, file)
        return opened

    def release(self) -> None:
        """Let the memory maps go, and with them the pages that count as resident; reading opens them again."""
        self._maps.clear()
        self._views.clear()


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of which every file could be opened and no tensor is missing.

    Raises:
        BadInput: files or tensors are missing, truncated, pickled, quantised or unknown to the architecture.
    """
    source = Checkpoint(path)
    architecture = source.architecture
    names = set(source.names())
    held = {index for index, _ in map(architecture.split, names) if index is not None}
    layers = range(min(architecture.layers(source.config), 1 + len(held)))  # a config may claim any number
    inner = {part for index, part in map(architecture.split, names) if index == 0}
    wanted = {architecture.join(layer, part) for layer in layers for part in inner}
    wanted |= {architecture.embedding, architecture.norm}
    if architecture.head and not architecture.classes and not is_tied(source.config):  # encoders may lack theirs
        wanted.add(architecture.head)
    if not inner or wanted - names:
        missing = min(wanted - names, default=architecture.join(0, "…"))
        raise BadInput(f"{path}: {missing}: tensor is missing; fetch or copy the checkpoint again")
    for key in architecture.per_layer:
        if len(source.config.get(key) or layers) != len(layers):
            raise BadInput(
                f"{path}: {CONFIG}: {key}: must have an entry a layer, {len(layers)}; fetch or copy it again"
            )
    rows = source.config.get("vocab_size")
    if rows and not architecture.classes and source.tensor(architecture.embedding).shape[0] != rows:
        shape = source.tensor(architecture.embedding).shape
        raise BadInput(f"{path}: {architecture.embedding}: has {shape[0]} rows, but {CONFIG} has vocab_size {rows}")
    unknown = {name for name in names - wanted if not (architecture.is_before(name) or architecture.is_after(name))}
    if unknown:
        raise BadInput(f"{path}: {min(unknown)}: tensor is unknown to {source.config['architectures'][0]}; {REMEDY}")
    return source


def check_finite(source: Source, label: str) -> None:
    """Read every tensor and refuse what is no number.

    Raises:
        BadInput: a tensor holds NaN or infinity.
    """
    for name in source.names():
        require_finite(source.tensor(name), f"{label}: {name}")


def write_checkpoint(
    out: Path,
    config: dict[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tokenizer_from: Path,
    extra: Mapping[str, str | bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Stream tensors into a Hugging Face folder, which appears under its name when it is whole.

    Each tensor is on the disk before the next is asked for. The bytes depend on nothing but the arguments.

    Args:
        out: folder to make, with its parents.
        config: ``config.json``; ``dtype`` is set to that of the tensors.
        tensors: names and finite tensors in the order in which they are stored; a tied head is left out.
        tokenizer_from: folder whose tokenizer, chat template and generation config are copied.
        extra: further files by name, and what stands instead of a copied one.
        shard_bytes: a file holds at most so many bytes of tensors, or one tensor.

    Raises:
        BadInput: ``out`` is there already, or transformers can't load what was written.
    """
    require_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        shards, dtype = write_shards(partial, tensors, shard_bytes)
        _name_shards(partial, shards)
        copy_companions(tokenizer_from, partial)
        for name, text in (extra or {}).items():
            (partial / name).write_bytes(text.encode() if isinstance(text, str) else text)
        settled = settle_companions(partial, config)
        described = {key: value for key, value in settled.items() if key not in ("_name_or_path", "torch_dtype")}
        _write_json(partial / CONFIG, {**described, "dtype": dtype})
        check_loadable(partial, str(out))
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_new(out: Path) -> None:
    """Refuse to write over something.

    Raises:
        BadInput: a file or a folder that is not empty has this name.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: is there already; name another folder or remove it")


def _name_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Give the files the names that transformers looks for, and write their index if there are several."""
    if len(shards) == 1:
        shards[0].path.rename(folder / WEIGHTS)
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for shard, file in zip(shards, files, strict=True):
        shard.path.rename(folder / file)
    weight_map = {name: file for shard, file in zip(shards, files, strict=True) for name in shard.names}
    total = sum(shard.bytes for shard in shards)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _tensor_files(source: Checkpoint) -> dict[str, str]:
    """File of each tensor: of the one file, else of those that the index names, in the order of transformers."""
    path, named = source.path, source.config.get("transformers_weights")
    if named is not None:
        raise BadInput(f"{path}: config.json: transformers_weights: isn't supported; rename {named!r} to {WEIGHTS}")
    whole, parts = (find_inside(path, name) is not None for name in (WEIGHTS, INDEX))
    if whole:
        files = dict.fromkeys(source.map(WEIGHTS).keys(), WEIGHTS)
        if parts:
            _refuse_other_weights(source, files)
        return files
    if parts:
        return _indexed(source)
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
    if pickles:
        convert = f"M.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        command = f"python -c {shlex.quote(f'from transformers import AutoModelForCausalLM as M; {convert}')}"
        raise BadInput(
            f"{path}: {pickles[0]}: a pickled checkpoint can run code and is refused; if you trust it, run: {command}"
        )
    raise BadInput(f"{path}: {WEIGHTS}: no safetensors file; fetch or copy the checkpoint again")


def _indexed(source: Checkpoint) -> dict[str, str]:
    path = source.path
    index: dict[str, str] = read_object(path, INDEX, Index)["weight_map"]
    held = {(file, name) for file in sorted(set(index.values())) for name in source.map(file).keys()}  # noqa: SIM118
    for name, file in sorted(index.items()):
        if (file, name) not in held:
            raise BadInput(f"{path}: {file}: lacks {name}, which {INDEX} promises; fetch the checkpoint again")
    return index


def _refuse_other_weights(source: Checkpoint, files: Mapping[str, str]) -> None:
    """Two sets of weights lie in one folder: that is well where they are the same."""
    index = _indexed(source)
    same = index.keys() == files.keys() and all(
        torch.equal(source.map(WEIGHTS).get_tensor(name), source.map(file).get_tensor(name))
        for name, file in index.items()
    )
    if not same:
        raise BadInput(
            f"{source.path}: {WEIGHTS} and {INDEX}: hold different weights; remove the one that isn't meant"
            " (transformers reads the first)"
        )


def _read_config(path: Path) -> dict[str, Any]:
    what = "a model is a folder with config.json and safetensors"
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; {what}")
    if find_inside(path, CONFIG) is None:
        raise BadInput(f"{path}: {CONFIG}: missing; {what}")
    return read_object(path, CONFIG, Config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
