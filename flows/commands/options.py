"""What the commands of the command line share: options, bars, and how a result goes out as JSON."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from flows.screen.watch import output, shown
from models.errors import BadInput
from tasks.project.progress import Progress

ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", "-p", help="Model family, a file in profiles/. Default: the first of params.yaml."),
]
PromptOption = Annotated[
    str, typer.Option(help="Template of the prompt, with fields of a row. Default: the field prompt.")
]
CompletionOption = Annotated[
    str, typer.Option(help="Template of the answer. Default: the field completion, or text without a prompt.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

SPLITS = ("test", "selection", "search")


def progress_of_command() -> AbstractContextManager[Progress]:
    """Bars on the terminal while a command works."""
    return shown(output(stderr=True))


def emit(data: Any) -> None:
    """JSON on standard output."""
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def templates(prompt: str, completion: str) -> tuple[str, str]:
    """Templates of prompt and answer as they are meant where a shell passes ``\\n`` on as two characters."""
    return prompt.replace("\\n", "\n"), completion.replace("\\n", "\n")


def check_split(split: str) -> str:
    """The split, if it is one; raises BadInput otherwise."""
    if split not in SPLITS:
        raise BadInput(f"--split {split}: unknown; there are {', '.join(SPLITS)}")
    return split
