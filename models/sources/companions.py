"""What lies beside the weights of a checkpoint: tokenizer, chat template, generation config, and that they agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.files import JSON_BYTES, YAML_BYTES, Foreign, find_inside, inside, read_object, require_regular
from models.sources.fields import COMPANIONS

TEMPLATES = "additional_chat_templates"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    TEMPLATES,
    "generation_config.json",
    "preprocessor_config.json",
)
"""What is copied, where it is there."""

CODE = "auto_map"
"""Key that names Python files, which are never copied: transformers has the classes of all families here."""

NAMES_A_FILE = ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "name_or_path")
"""Keys of a tokenizer's config that say where it once was."""


def copy_companions(source: Path, out: Path) -> None:
    """Copy what lies beside a checkpoint into the folder of another.

    Raises:
        BadInput: a file leads out of the folder, is no regular one, or can't be read as what it should be.
    """
    for name in FILES:
        if name == TEMPLATES and (source / name).is_dir():
            (out / name).mkdir()
            for template in sorted(path.name for path in (source / name).glob("*.jinja")):
                _copy(source, f"{name}/{template}", out)
        elif find_inside(source, name):
            if name.endswith(".json"):
                read_object(source, name, COMPANIONS.get(name, Foreign))
            _copy(source, name, out)


def _copy(source: Path, name: str, out: Path) -> None:
    path = inside(source, name)
    require_regular(path, f"{source}: {name}", JSON_BYTES if name.endswith((".json", ".model", ".txt")) else YAML_BYTES)
    shutil.copyfile(path, out / name)


def settle_companions(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Let what was copied name nothing that isn't there; the config with the end of text that generation heeds."""
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        content = _object(out, name)
        lost = [key for key in NAMES_A_FILE if key in content and not _is_here(out, content[key])]
        lost += [CODE] if CODE in content else []
        if lost:
            _write(out / name, {key: value for key, value in content.items() if key not in lost})
    settled = {key: value for key, value in config.items() if key != CODE}
    end = _object(out, "generation_config.json").get("eos_token_id")
    end = _end_of_tokenizer(out) if end is None else end
    if end is not None and settled.get("eos_token_id") != end:
        settled["eos_token_id"] = end
    return settled


def _object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    return read_object(folder, name, COMPANIONS.get(name, Foreign)) if find_inside(folder, name) else {}


def _is_here(folder: Path, value: Any) -> bool:
    return isinstance(value, str) and "/" not in value and (folder / value).is_file()


def _end_of_tokenizer(folder: Path) -> int | None:
    """Id of the token that the tokenizer ends texts with."""
    token = _object(folder, "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    content = _object(folder, "tokenizer.json")
    ids = {one["content"]: one["id"] for one in content.get("added_tokens") or []}
    vocab = (content.get("model") or {}).get("vocab")
    ids |= vocab if isinstance(vocab, dict) and token not in ids else {}
    return ids.get(token)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
