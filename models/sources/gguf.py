"""GGUF files as checkpoints: dequantised to float32 once, and written as a folder of safetensors with the tokenizer.

transformers reads the file (names, rotary order of the heads, tokenizer); what is written depends on its bytes alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from models.errors import BadInput
from models.files import find_inside, read_object, reading, require_regular
from models.sources.architecture import architecture_of, is_tied
from models.sources.checkpoint import write_checkpoint
from models.sources.fields import TokenizerFile
from models.sources.loadable import OFFLINE, quiet_transformers
from models.sources.tensors import require_finite
from models.sources.vocabulary import TOKENIZER

ENDING = ".gguf"
MAGIC = b"GGUF"
REMEDY = "fetch it again, or take the model's safetensors"

STRING, ARRAY = 8, 9
SHORT = 256
"""Bytes of a name that are looked at."""
CLAIMS = (
    *("block_count", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "vocab_size"),
    *("key_length", "value_length", "dimension_count"),
)
"""Sizes that no tensor can be smaller than."""
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a setting's value, by its kind."""


def convert(file: Path, out: Path) -> None:
    """Write the model of a GGUF file as a checkpoint in float32.

    The whole model is in memory while this goes on: four bytes a parameter, twice.

    Args:
        file: of a decoder family that transformers reads from GGUF, such as Llama or Qwen2.
        out: folder to make.

    Raises:
        BadInput: the file is missing, no whole GGUF file, or of another family; the package gguf is missing.
    """
    check(file)
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(f"{file.name}: reading a GGUF file needs the package gguf; run: pip install gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": file.name, **OFFLINE}
    with reading(str(file), REMEDY, "can't be read"), quiet_transformers():
        asked: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, **place}
        model, info = AutoModelForCausalLM.from_pretrained(str(file.parent), **asked)
        if lacking := sorted(map(str, info["missing_keys"])):
            raise ValueError(f"it lacks {lacking[0]}")
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **place)
    config = {key: value for key, value in model.config.to_diff_dict().items() if key != "quantization_config"}
    config["architectures"] = [type(model).__name__]
    architecture = architecture_of(config, str(file))
    left_out = architecture.head if is_tied(config) else None
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != left_out}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        _drop_tokens_without_rows(Path(folder), model.config.vocab_size)
        model.generation_config.save_pretrained(folder)
        finite = ((name, require_finite(tensor, f"{file}: {name}")) for name, tensor in sorted(tensors.items()))
        write_checkpoint(out, config, finite, tokenizer_from=Path(folder))


def _drop_tokens_without_rows(folder: Path, rows: int) -> None:
    """Leave out tokens that the tokenizer's class adds by itself, where the file had none of that name."""
    if find_inside(folder, TOKENIZER) is None:
        return
    content = read_object(folder, TOKENIZER, TokenizerFile)
    kept = [one for one in content.get("added_tokens") or [] if one["id"] < rows]
    (folder / TOKENIZER).write_text(json.dumps({**content, "added_tokens": kept}, ensure_ascii=False), encoding="utf-8")


def check(file: Path) -> None:
    """Refuse what is no GGUF file, or claims more settings and tensors than it holds.

    Raises:
        BadInput: it is missing or something else.
    """
    require_regular(file, str(file))
    with reading(str(file), REMEDY, "can't be read"), file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise BadInput(f"{file}: no GGUF file; fetch it again, or name a folder with safetensors")
        _walk(opened, file.stat().st_size)


def _walk(file: BinaryIO, size: int) -> None:
    """Go through the settings at the head of a file of so many bytes: what they claim to hold must be there.

    The package that reads them counts to whatever number stands there.
    """

    def number(form: str) -> int:
        content = file.read(struct.calcsize(form))
        return int(struct.unpack(form, content)[0])

    def skip(count: int) -> None:
        if not 0 <= count <= size - file.tell():
            raise ValueError(f"claims {count} bytes, and {size - file.tell()} follow")
        file.seek(count, os.SEEK_CUR)

    def value(kind: int, depth: int) -> None:
        if kind == STRING:
            skip(number("<Q"))
        elif kind == ARRAY and depth:
            inner, count = number("<I"), number("<Q")
            if inner in WIDTHS:
                skip(count * WIDTHS[inner])
            else:
                for _ in range(count):  # each takes eight bytes at least
                    value(inner, depth - 1)
        else:
            skip(WIDTHS[kind])

    def text() -> bytes:
        length = number("<Q")
        start = file.read(min(length, SHORT))
        skip(length - len(start))
        return start

    version, tensors, settings = number("<I"), number("<Q"), number("<Q")
    if version not in (2, 3):
        raise ValueError(f"version {version} isn't supported, 2 and 3 are")
    claimed, blocks, sides = dict.fromkeys(CLAIMS, 0), set(), {0}
    for _ in range(settings):
        name, kind = text(), number("<I")
        key = name.rpartition(b".")[2].decode("ascii", "replace")
        if key in claimed and kind in WIDTHS:  # some have one for each layer
            claimed[key] = int.from_bytes(file.read(WIDTHS[kind]), "little")
        else:
            value(kind, depth=2)
    for _ in range(tensors):
        name = text()
        blocks |= {name.split(b".")[1]} if name.startswith(b"blk.") else set()
        sides |= {number("<Q") for _ in range(number("<I"))}
        skip(4 + 8)
    largest = max(sides)
    for key, count in claimed.items():
        if count > (len(blocks) if key == "block_count" else largest):
            raise ValueError(f"{key} is {count}, for {len(blocks)} layers and tensors of up to {largest}")
