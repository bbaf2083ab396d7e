"""Changes to a valid file: any file, and what JSON, YAML, safetensors and Parquet say inside."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import yaml

ESCAPE = "\x1b[2J\x1b]0;x\x07"
SENTINEL = "the user's own words, which nobody else is to see"
"""What the file beside says that links lead to."""

NAMES = ("x[/]", ESCAPE, "<script>alert(1)</script>", "`a`|b", "../x", "/etc/passwd", "a\nb", "\u202ex", "\x00", "")
NUMBERS = (-1, 0, 1, 2, 7, 10**7, 10**12, 10**30, -(10**18), 0.5, 1e-320, 1e308, True)
VALUES: tuple[Any, ...] = (None, False, [], {}, [[]], {"": None}, [None] * 3, *NAMES, *NUMBERS, "a" * 10**5, "(a+)+$")
RARELY = 0.01
"""Share of changes that take long to make."""

RAW = ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "1" * 5000, "[" * 2000, '{"a":' * 2000, "nul", "'x'")
"""Texts that stand where a value stood: JSON that Python reads, and some that nobody does."""


def mutate(path: Path, beside: Path, rng: Random) -> str:
    """Change a file in place, once or a few times; what was done, in a word.

    Args:
        path: a valid file.
        beside: a file outside of its folder that links are to lead to.
        rng: decides everything.
    """
    kinds: list[Callable[[Path, Random], str]] = [cut, flip, junk]
    inner = INNER.get(path.suffix, [])
    if rng.random() < 0.12:
        return replace(path, beside, rng)
    change = rng.choice(inner) if inner and rng.random() < 0.75 else rng.choice(kinds)
    try:
        return change(path, rng)
    except Exception:  # noqa: BLE001 (it was changed before, and is no longer of its kind)
        return flip(path, rng)


def replace(path: Path, beside: Path, rng: Random) -> str:
    """Put something else where the file was."""
    name = rng.choice(("missing", "empty", "link out", "pipe", "device", "folder", "circle", "sparse", "folder link"))
    path.unlink()
    if name == "empty":
        path.touch()
    elif name == "link out":
        path.symlink_to(beside)
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "device":
        path.symlink_to("/dev/zero")
    elif name == "folder":
        path.mkdir()
    elif name == "circle":
        path.symlink_to(path.name)
    elif name == "sparse":
        with path.open("wb") as file:
            file.truncate(2**31)
    elif name == "folder link":
        path.symlink_to(beside.parent)
    return name


def cut(path: Path, rng: Random) -> str:
    """Cut the end off."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])
    return "cut"


def flip(path: Path, rng: Random) -> str:
    """Change a few bytes, most of them near the start, where formats say what follows."""
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(rng.choice((1, 2, 8))):
        reach = len(content) if rng.random() < 0.5 else min(len(content), 256)
        content[rng.randrange(reach)] = rng.randrange(256)
    path.write_bytes(content)
    return "bytes"


def junk(path: Path, rng: Random) -> str:
    """Put something in between."""
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    given = rng.choice(
        (b"\0" * 9, b"\xff\xfe", "\ufeff".encode(), b"\n" * 10**4, os.urandom(0) + b"{" * 500, b"- " * 5)
    )
    path.write_bytes(content[:at] + given + content[at:])
    return "junk"


def json_value(path: Path, rng: Random) -> str:
    """Another value, key or shape somewhere in a JSON file."""
    text, what = changed_json(path.read_text(encoding="utf-8"), rng)
    path.write_text(text, encoding="utf-8")
    return what


def json_line(path: Path, rng: Random) -> str:
    """The same in one line of JSON lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    at = rng.randrange(len(lines))
    lines[at], what = changed_json(lines[at], rng)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return what


def yaml_value(path: Path, rng: Random) -> str:
    """Another value, key or shape somewhere in a YAML file."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    at = rng.randrange(len(documents))
    documents[at], what = changed(documents[at], rng)
    path.write_text(yaml.safe_dump_all(documents, allow_unicode=True), encoding="utf-8")
    return what


def yaml_text(path: Path, rng: Random) -> str:
    """What YAML can say and JSON can't."""
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    given = {
        "bomb": bomb,
        "circle": "a: &a {b: *a}\n",
        "tag": "x: !!python/object/apply:os.system ['true']\n",
        "deep": "x: " + "[" * 5000 + "\n",
        "deep map": "x: " + "{a: " * 5000 + "\n",
        "date": "x: 2001-99-99\n",
        "number": f"x: {'1' * 6000}\n",
        "binary": "x: !!binary 'é'\n",
        "merge": "<<: [1, 2]\n",
        "document": "---\n--- x\n",
        "key": "? [a, b]\n: c\n",
        "set": "x: !!set {a, b}\n",
    }
    name = rng.choice(sorted(given))
    text = path.read_text(encoding="utf-8")
    path.write_text(rng.choice((given[name] + text, text + "\n" + given[name], given[name])), encoding="utf-8")
    return f"yaml {name}"


def tensors(path: Path, rng: Random) -> str:
    """Another list of tensors, or other numbers, in a safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length].decode(), bytearray(content[8 + length :])
    if rng.random() < 0.25:
        given = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff\xff\xff\xff"))
        at = rng.randrange(max(1, len(data) // 4)) * 4
        data[at : at + 4] = given
        what = "number"
    elif rng.random() < 0.2:
        size = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1, length + 1, length - 1))
        path.write_bytes(struct.pack("<Q", size) + content[8:])
        return "header length"
    else:
        header, what = changed_header(header, rng)
    encoded = header.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return what


def changed_header(header: str, rng: Random) -> tuple[str, str]:
    """A list of tensors with another type, shape, place or name in it."""
    listed = json.loads(header)
    names = [name for name in listed if name != "__metadata__"]
    name = rng.choice(names)
    what = rng.choice(("dtype", "shape", "offsets", "name", "drop", "swap", "json"))
    what = "many" if rng.random() < RARELY else what
    if what == "dtype":
        listed[name]["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "x"))
    elif what == "shape":
        shape = listed[name]["shape"]
        listed[name]["shape"] = rng.choice((shape[::-1], [0, *shape], [1, *shape], shape[:1], [2**62, 2**62], [-1], []))
    elif what == "offsets":
        listed[name]["data_offsets"] = rng.choice(([0, 0], [0, 2**62], [8, 4], [-4, 4], [0], "x"))
    elif what == "name":
        listed[rng.choice((*NAMES, "model.layers.99999999.x", "model.layers.-1.x", "model.layers.01.x"))] = listed.pop(
            name
        )
    elif what == "drop":
        del listed[name]
    elif what == "swap":
        other = rng.choice(names)
        listed[name], listed[other] = listed[other], listed[name]
    elif what == "many":
        listed |= {f"x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(10**5)}
    else:
        return changed_json(header, rng)[0], "header"
    return json.dumps(listed), f"tensor {what}"


def table(path: Path, rng: Random) -> str:
    """Other columns, types or values in a Parquet file."""
    found = pd.read_parquet(path)
    column = rng.choice(list(found))
    what = rng.choice(("drop", "text", "null", "value", "none", "nested"))
    if what == "drop":
        found = found.drop(columns=column)
    elif what == "text":
        found[column] = [rng.choice(NAMES) for _ in range(len(found))]
    elif what == "null":
        found[column] = None
    elif what == "nested":
        found[column] = pd.Series([{"a": [1]}] * len(found), dtype=object)
    elif what == "none":
        found = found[:0]
    else:
        found[column] = found[column].astype(object)
        found.loc[rng.randrange(len(found)), column] = rng.choice((None, float("nan"), -1, 1e300))
        found[column] = found[column].infer_objects()
    found.to_parquet(path)
    return f"column {what}"


INNER: dict[str, list[Callable[[Path, Random], str]]] = {
    ".json": [json_value],
    ".jsonl": [json_line],
    ".yaml": [yaml_value, yaml_value, yaml_text],
    ".safetensors": [tensors],
    ".parquet": [table],
}
"""Changes inside, by the ending of a file's name."""


def changed_json(text: str, rng: Random) -> tuple[str, str]:
    """A JSON text with one thing changed, and what."""
    if rng.random() < 0.15:
        mark = "\u0001mark\u0001"
        content, _ = changed(json.loads(text), rng, value=mark)
        return json.dumps(content).replace(json.dumps(mark), rng.choice(RAW)), "json text"
    if rng.random() < RARELY:
        content = json.loads(text)
        many = {f"k{number}": number for number in range(10**5)}
        return json.dumps({**content, **many} if isinstance(content, dict) else content), "json many"
    content, what = changed(json.loads(text), rng)
    return json.dumps(content), what


def changed(content: Any, rng: Random, value: Any = None) -> tuple[Any, str]:
    """A value with one thing inside changed: replaced, removed, called otherwise, doubled or put a level deeper."""
    found = _place(content, rng)
    if found is None:
        return rng.choice(VALUES) if value is None else value, "whole"
    holder, key = found
    what = "value" if value is not None else rng.choice(("value", "value", "value", "drop", "name", "deeper", "more"))
    if what == "value":
        holder[key] = rng.choice(VALUES) if value is None else value
    elif what == "drop":
        del holder[key]
    elif what == "name" and isinstance(holder, dict):
        holder[rng.choice(NAMES)] = holder.pop(key)
    elif what == "more" and isinstance(holder, dict):
        holder[rng.choice((*NAMES, "unknown"))] = rng.choice(VALUES)
    elif what == "more":
        holder.append(rng.choice(VALUES))
    else:
        holder[key] = rng.choice(([holder[key]], {"x": holder[key]}))
    return content, what


def _place(content: Any, rng: Random) -> tuple[Any, Any] | None:
    """Where a value stands inside another, at any depth: holder and key; None where there is nothing inside."""
    found = None
    while isinstance(content, dict | list) and content and (found is None or rng.random() < DEEPER):
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        found, content = (content, key), content[key]
    return found


DEEPER = 0.65
"""Share of the changes that go a level deeper, where there is one."""
