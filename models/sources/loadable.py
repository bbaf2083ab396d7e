"""Whether transformers loads what was written: asked of transformers itself, before a checkpoint gets its name.

No weight is read for it: the model is built on torch's device ``meta``, which knows shapes alone.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import BadInput
from models.files import find_inside, read_object, reading
from models.sources.vocabulary import token_ids

OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
GENERATION = "generation_config.json"
REMEDY = "mend the model that it comes from; nothing was written"


def check_loadable(folder: Path, label: str) -> None:
    """Load config, tensors' names and shapes, tokenizer, chat templates and generation config.

    Args:
        folder: of the checkpoint.
        label: what messages call it.

    Raises:
        BadInput: transformers refuses one of them, would fill a tensor at random or leave one out, or the tokenizer
            has tokens without a row in the embedding.
    """
    with quiet_transformers():
        rows = _check_model(folder, label)
        if any(find_inside(folder, name) for name in TOKENIZERS):
            _check_tokenizer(folder, label, rows)
        if find_inside(folder, GENERATION):
            from transformers import GenerationConfig

            with reading(f"{label}: {GENERATION}", REMEDY, "can't be loaded"):
                GenerationConfig.from_pretrained(folder, **OFFLINE)


def _check_model(folder: Path, label: str) -> int:
    """The rows of its embedding."""
    import transformers

    content = read_object(folder, "config.json")
    with reading(f"{label}: config.json", REMEDY, "can't be loaded"):
        kind = getattr(transformers, content["architectures"][0])
        if not isinstance(found := transformers.AutoConfig.from_pretrained(folder, **OFFLINE), kind.config_class):
            raise TypeError(f"model_type is of a {type(found).__name__}")
        asked = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": "meta"}
        _, info = kind.from_pretrained(folder, **asked, **OFFLINE)
    for what, reason in (
        ("missing_keys", "is missing, by"),
        ("mismatched_keys", "has another shape than"),
        ("unexpected_keys", "has no place in"),
    ):
        if info[what]:
            first = min(info[what], key=str)
            name = first if isinstance(first, str) else ", ".join(map(str, first))
            raise BadInput(f"{label}: {name}: {reason} config.json; {REMEDY}")
    return int(content.get("vocab_size") or 0)


def load_tokenizer(folder: Path, label: str, remedy: str = REMEDY) -> Any:
    """The tokenizer of a folder, without any code that lies beside it.

    Raises:
        BadInput: there is none that loads.
    """
    from transformers import AutoTokenizer

    with reading(f"{label}: tokenizer", remedy, "can't be loaded"):
        return AutoTokenizer.from_pretrained(str(folder), **OFFLINE)


def _check_tokenizer(folder: Path, label: str, rows: int) -> None:
    try:
        tokenizer = load_tokenizer(folder, label)
    except BadInput as error:
        if isinstance(error.__cause__, ImportError):
            return  # it needs a package that isn't here, which says nothing of the file
        raise
    with reading(f"{label}: tokenizer", REMEDY, "can't be loaded"):
        tokenizer("one two", return_tensors="pt")
        ids: dict[str, int] = token_ids(folder) or tokenizer.get_vocab()
        templates = tokenizer.chat_template or {}
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        check_jinja(text, f"{label}: chat_template")
    last = max(ids, key=lambda token: ids[token], default="")
    if rows and ids and ids[last] >= rows:
        raise BadInput(
            f"{label}: tokenizer: {last!r} has the id {ids[last]}, but the embedding has {rows} rows; {REMEDY}"
        )


class Generation(Extension):
    """The block ``generation`` of transformers' templates."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_jinja(text: str, label: str) -> None:
    """Refuse what is no template. It is read, not compiled: jinja2 computes constants when it compiles.

    Raises:
        BadInput: with the reason.
    """
    with reading(label, "mend it", "no template"):
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(text)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no reports of transformers: what is wrong becomes an error."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
