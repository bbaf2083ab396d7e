"""What the commands of the command line share: options, bars, and how a result goes out as JSON."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from flows.screen.watch import output
from models.errors import BadInput
from tasks.project.progress import Progress

ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", "-p", help="Model family, a file in profiles/. Default: the first of params.yaml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

SPLITS = ("test", "selection", "search")


def progress_of_command() -> Progress:
    """Bars on the terminal while a command works."""
    return Progress(console=output(stderr=True))


def emit(data: Any) -> None:
    """JSON on standard output."""
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def check_split(split: str) -> str:
    """The split, if it is one; raises BadInput otherwise."""
    if split not in SPLITS:
        raise BadInput(f"--split {split}: unknown; there are {', '.join(SPLITS)}")
    return split
