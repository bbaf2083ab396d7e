"""GGUF files as checkpoints: dequantised to float32 once, and written as a folder of safetensors with the tokenizer.

transformers reads the file (names, rotary order of the heads, tokenizer); what is written depends on its bytes alone.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from models.errors import BadInput
from models.files import find_inside, read_object, reading, require_regular
from models.sources.architecture import architecture_of, is_tied
from models.sources.checkpoint import write_checkpoint
from models.sources.fields import TokenizerFile
from models.sources.loadable import quiet_transformers
from models.sources.vocabulary import TOKENIZER

ENDING = ".gguf"
MAGIC = b"GGUF"


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

    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with reading(str(file), "fetch it again, or take the model's safetensors", "can't be read"), quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **place)
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
        write_checkpoint(out, config, sorted(tensors.items()), tokenizer_from=Path(folder))


def _drop_tokens_without_rows(folder: Path, rows: int) -> None:
    """Leave out tokens that the tokenizer's class adds by itself, where the file had none of that name."""
    if find_inside(folder, TOKENIZER) is None:
        return
    content = read_object(folder, TOKENIZER, TokenizerFile)
    kept = [one for one in content.get("added_tokens") or [] if one["id"] < rows]
    (folder / TOKENIZER).write_text(json.dumps({**content, "added_tokens": kept}, ensure_ascii=False), encoding="utf-8")


def check(file: Path) -> None:
    """Refuse what is no GGUF file by its first bytes.

    Raises:
        BadInput: it is missing or something else.
    """
    require_regular(file, str(file))
    with reading(str(file), "name a GGUF file or a folder with safetensors"), file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    if start != MAGIC:
        raise BadInput(f"{file}: no GGUF file; fetch it again, or name a folder with safetensors")
