"""Files that a stranger may have made: which of them are opened, and how their text is read.

A model, an adapter, a front or a journal may come from anywhere. What is opened is a regular file inside the folder
that the user named. What it holds is read by one reader for each kind of text, in work bounded by its size, and checked
by a schema; whatever is wrong becomes one line that names the file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from models.errors import BadInput, Failed, Unavailable, one_line

Schema = TypeVar("Schema")

AGAIN = "fetch or copy it again"
JSON_BYTES = 2**28
"""Largest JSON that is read: a tokenizer of a quarter of a million tokens takes a tenth of it."""
YAML_BYTES = 2**22
"""Largest YAML that is read: a recipe of 10,000 slices takes half of it."""
YAML_NODES = 10**6
"""Values of a YAML at most, each counted as often as its aliases repeat it."""
DEPTH = 100
"""Lists and mappings within each other, at most."""

IN_DVC = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""A file in a cache of DVC, which may be set to link to it; nobody names one who doesn't know what is in it."""

PASSING = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENETUNREACH),
)
"""Errors of a disk or a network, not of a file."""


class Foreign(BaseModel):
    """The fields that are read of something that others write; it may have further ones, and no other types."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    most: ClassVar[int] = 10**3
    """Fields that the file may have."""

    @model_validator(mode="before")
    @classmethod
    def _is_bounded(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > cls.most:
            raise ValueError(f"{len(data)} fields, more than {cls.most}")
        return data


def find_inside(folder: Path, name: str) -> Path | None:
    """Where a file of a folder really lies; None where there is none of that name.

    Stores count as inside: the hub's, beside all its snapshots, and DVC's, whose files are called by their content.

    Raises:
        BadInput: the name or a link leads out of the folder, or what is there is no regular file.
    """
    if not is_plain(name):
        raise BadInput(f"{folder}: {name!r}: leads out of the folder; {AGAIN}")
    if not os.path.lexists(folder / name):
        return None
    root = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(folder / name))
    within = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    if not (any(real.is_relative_to(one) for one in within) or IN_DVC.search(real.as_posix())):
        raise BadInput(f"{folder}: {name}: is a link out of the folder; put a copy of the file there")
    if not real.is_file():
        raise BadInput(f"{folder}: {name}: is no regular file; {AGAIN}")
    return real


def inside(folder: Path, name: str) -> Path:
    """As :func:`find_inside`, of a file that must be there.

    Raises:
        BadInput: it is missing, too.
    """
    found = find_inside(folder, name)
    if found is None:
        raise BadInput(f"{folder}: {name}: missing; {AGAIN}")
    return found


def is_plain(name: str) -> bool:
    """Whether a name is that of a file below a folder, spelled without a way up or out."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and not name.startswith("/") and ".." not in parts and "\\" not in name


def read_text(path: Path, label: str, most: int = JSON_BYTES) -> str:
    """The text of a regular file of at most so many bytes.

    Raises:
        BadInput: it is missing, something else, too large, or no UTF-8.
    """
    require_regular(path, label, most)
    with reading(label):
        return path.read_text(encoding="utf-8")


def require_regular(path: Path, label: str, most: int | None = None) -> None:
    """Refuse what is no file of at most so many bytes, before it is opened: a pipe would wait for a writer.

    Raises:
        BadInput: it is missing, something else, or larger.
    """
    with reading(label):
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(f"{label}: is no regular file; {AGAIN}")
        if most is not None and about.st_size > most:
            raise BadInput(f"{label}: has {about.st_size} bytes, more than the {most} that are read; {AGAIN}")


@contextmanager
def reading(label: str, remedy: str = AGAIN, what: str = "not readable") -> Iterator[None]:
    """Whatever goes wrong in the block is the file's fault: one line that names it.

    Raises:
        BadInput: for any exception, a panic in a library's Rust among them.
        Unavailable: a disk or a network did not answer.
    """
    try:
        yield
    except (BadInput, Failed):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise Unavailable(f"{label}: {error.strerror}; try again") from error
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{label}: missing; {remedy}") from error
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{label}: {what} ({type(error).__name__}: {one_line(error, 200)}); {remedy}") from error


def parse_json(text: str | bytes, label: str) -> Any:
    """The value of a JSON text.

    Raises:
        BadInput: no JSON, a number that isn't finite, half a character, or lists within lists without end.
    """
    with reading(label, what="not readable as JSON"):
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if ("\\ud" if isinstance(text, str) else b"\\ud") in text.lower():  # type: ignore[operator]
            json.dumps(content, ensure_ascii=False).encode()  # half of a pair of surrogates can't be written again
        inner = [content] if isinstance(content, dict | list) else []
        for _ in range(DEPTH):
            parts = (part for one in inner for part in (one.values() if isinstance(one, dict) else one))
            inner = [part for part in parts if isinstance(part, dict | list)]
            if not inner:
                return content
        raise ValueError(f"more than {DEPTH} lists or objects within each other")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} isn't finite")
    return number


def read_object(folder: Path, name: str, schema: type[BaseModel] | None = None) -> dict[str, Any]:
    """The JSON object in a file of a folder, as it stands there.

    Raises:
        BadInput: the file can't be opened or read, holds something else, or a field isn't what the schema says.
    """
    return parse_object(read_text(inside(folder, name), f"{folder}: {name}"), f"{folder}: {name}", schema)


def parse_object(text: str | bytes, label: str, schema: type[BaseModel] | None = None) -> dict[str, Any]:
    """The JSON object of a text; see :func:`read_object`."""
    content = parse_json(text, label)
    if not isinstance(content, dict):
        raise BadInput(f"{label}: holds no JSON object; {AGAIN}")
    if schema is not None:
        validate(schema, content, label, remedy=AGAIN)
    return content


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def validate(schema: type[Schema], data: Any, label: str, block: str = "", remedy: str = "") -> Schema:
    """Data as a checked model or dataclass; ``block`` is what fields are called below in messages.

    Raises:
        BadInput: everything that is wrong, as one line with the file and each field.
    """
    try:
        with reading(label):
            checked: Schema = _adapter(cast(Hashable, schema)).validate_python({} if data is None else data)
            return checked
    except BadInput as problem:
        error = problem.__cause__
        if not isinstance(error, ValidationError):
            raise
    found: dict[str, str] = {}
    for one in error.errors(include_input=False, include_url=False):  # of several kinds, what the first of them says
        name = ".".join(str(part) for part in one["loc"]) or "top level"
        unknown = "unknown key; remove it or mend its spelling"
        found.setdefault(f"{block}{name}", unknown if one["type"] == "extra_forbidden" else one["msg"])
        if len(found) == MOST_PROBLEMS:
            break
    count = f"{len(found)} problems: " if len(found) > 1 else ""
    reasons = " | ".join(f"{name}: {reason}" for name, reason in found.items())
    raise BadInput(f"{label}: {count}{reasons}{'; ' if remedy else ''}{remedy}") from None


MOST_PROBLEMS = 20
"""Of one file that are told."""


def read_yaml(path: Path, label: str) -> Any:
    """The value of a YAML file.

    Raises:
        BadInput: see :func:`parse_yaml`; or the file can't be read.
    """
    documents = parse_yaml(read_text(path, label, YAML_BYTES), label)
    return documents[0] if documents else None


def parse_yaml(text: str, label: str) -> list[Any]:
    """The documents of a YAML text.

    Raises:
        BadInput: no YAML, a key given twice, more than ``DEPTH`` within each other, or aliases without end.
    """
    with reading(label, "mend it", "not readable as YAML"):
        _check_events(text)
        return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


@dataclass
class _Open:
    """A list or mapping whose end hasn't come yet."""

    keys: set[str] | None
    """Those so far, of a mapping."""
    anchor: str | None
    nodes: int = 1
    parts: int = 0
    """Keys and values so far, of a mapping."""


def _check_events(text: str) -> None:
    """Refuse what would take more than its size to build: depth, aliases of aliases; and keys given twice.

    The C loader recurses without a bound, and the values that it gives share what an alias repeats; those who walk them
    do not know that.
    """
    sizes: dict[str, int] = {}
    stack: list[_Open] = []
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"alias {event.anchor} stands within what it means, or means nothing")
            size = sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor:
                sizes[event.anchor] = size
            _note_key(stack, event)
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(set() if isinstance(event, yaml.MappingStartEvent) else None, event.anchor))
            if len(stack) > DEPTH:
                raise yaml.YAMLError(f"more than {DEPTH} lists or mappings within each other")
        elif isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()
            size = done.nodes
            if done.anchor:
                sizes[done.anchor] = size
        if size and stack:
            stack[-1].nodes += size
            stack[-1].parts += 1
            size = stack[-1].nodes
        if size > YAML_NODES:
            raise yaml.YAMLError(f"more than {YAML_NODES} values, aliases counted as what they repeat")


def _note_key(stack: list[_Open], event: yaml.ScalarEvent) -> None:
    inner = stack[-1] if stack else None
    if inner is None or inner.keys is None or inner.parts % 2:
        return
    if event.value in inner.keys:
        raise yaml.YAMLError(f"{event.value!r} is given twice")
    inner.keys.add(event.value)
