"""The commands of the documentation, and whether one can be right: program, subcommands, options and files all exist.

Nothing is run here: each program's own parser looks at the words.
"""

import argparse
import ast
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import typer
from typer.exceptions import TyperException

from tests import infra_files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/operating.md", "docs/promotion.md")
OURS = ("hm3", "prefect", "mlflow", "dvc", "make", "docker", "kubectl")
PLAIN = {"cat", "cp", "chmod", "mkdir", "export", "source", "cd", "tar", "crontab", "id", "curl"}
"""Programs of any system, whose words are taken as they are."""


class WrongCommandError(Exception):
    """The command can't be right; the message says why."""


def commands(page: str) -> list[str]:
    """Commands of a page: after `$` in console blocks, in bash blocks, and what tables and sentences quote of ours."""
    text = (ROOT / page).read_text()
    found = []
    for kind, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
        if kind == "console":
            found += [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif kind == "bash":
            found += [line for line in lines if line and not line.startswith("#")]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return found + [one for one in re.findall(r"`([^`\n]+)`", prose) if one.split()[0] in OURS and " " in one]


def programs(line: str) -> Iterator[list[str]]:
    """The programs of a line: what pipes and `;` join; redirections, comments and quotes dealt with."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|;&"):
            parts.append([])
        else:
            parts[-1].append(word)
    for words in filter(None, parts):
        yield [
            word
            for number, word in enumerate(words)
            if word not in "<>" and (number == 0 or words[number - 1] not in "<>")
        ]


def check(words: Sequence[str]) -> None:
    """Raise WrongCommandError unless every program in the command takes these words."""
    program, *rest = words
    known = {
        "hm3": hm3,
        "prefect": prefect,
        "mlflow": mlflow,
        "dvc": dvc,
        "make": make,
        "git": git,
        "python": python,
        "docker": docker,
        "kubectl": kubectl,
        "uv": uv,
    }
    if program in known:
        known[program](rest)
    elif program.startswith("pg_") or program == "psql":
        by_help([program], rest)
    elif program not in PLAIN:
        raise WrongCommandError(f"{program}: nobody knows how to check it")


def clicked(command: Any, words: Sequence[str], path: str) -> None:
    """A command of click or typer, below a group or not, parsed as if it were to run."""
    while hasattr(command, "commands"):
        name, *words = words or ["--help"]
        if name in ("-h", "--help", "--version"):
            return
        if name not in command.commands:
            raise WrongCommandError(f"{path} {name}: there is no such command")
        command, path = command.commands[name], f"{path} {name}"
    try:
        command.make_context(path, list(words))
    except (click.exceptions.Exit, typer.Exit):  # --help
        return
    except (click.ClickException, TyperException) as error:  # typer brings a click of its own
        raise WrongCommandError(f"{path} {' '.join(words)}: {error.format_message()}") from None


def hm3(words: Sequence[str]) -> None:
    from flows.cli import app

    clicked(typer.main.get_command(app), words, "hm3")


def mlflow(words: Sequence[str]) -> None:
    from mlflow.cli import cli

    clicked(cli, words, "mlflow")


def prefect(words: Sequence[str]) -> None:
    from cyclopts import CycloptsError
    from prefect.cli._app import _app

    rest = [word for word in words if word not in ("--prompt", "--no-prompt")]
    try:
        _app.parse_args(rest, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise WrongCommandError(f"prefect {' '.join(words)}: {error}") from None
    for option in ("--base-job-template",):
        for path in values(rest, option):
            infra_files.in_repository(path)


def dvc(words: Sequence[str]) -> None:
    from dvc.cli import DvcParserError, parse_args

    try:
        parse_args(list(words))
    except (DvcParserError, argparse.ArgumentError, SystemExit) as error:
        raise WrongCommandError(f"dvc {' '.join(words)}: {error}") from None


def make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    if wrong := set(words) - targets:
        raise WrongCommandError(f"make {' '.join(sorted(wrong))}: no such target")


def python(words: Sequence[str]) -> None:
    words = [word for word in words if word not in ("-P", "-E")]
    if words[0] == "-c":
        ast.parse(words[1])
    elif words[0] == "-m":
        if find_spec(words[1]) is None:
            raise WrongCommandError(f"python -m {words[1]}: no such module")
    else:
        infra_files.in_repository(words[0])


def docker(words: Sequence[str]) -> None:
    kind, *rest = words
    files(rest, ("--file", "--env-file"))
    if kind in ("build", "push"):
        return
    if kind == "buildx":
        if words[-1] not in {one.partition("@")[0] for one in infra_files.images()}:
            raise WrongCommandError(f"docker {' '.join(words)}: no image of infra/")
        return
    if kind != "compose":
        raise WrongCommandError(f"docker {kind}: nobody knows how to check it")
    services = infra_files.compose()["services"]
    rest = without_values(rest, ("--file", "--env-file", "--env", "--project-name", "--tail"))
    verb, *rest = rest
    plain = [word for word in rest if not word.startswith("-")]
    if verb in ("exec", "run"):
        if not plain or plain[0] not in services:
            raise WrongCommandError(f"docker compose {verb}: no service {plain[:1]}")
        check(rest[rest.index(plain[0]) + 1 :])
    elif verb in ("logs", "stop", "start", "restart", "up", "ps", "build", "pull", "down", "config"):
        if wrong := [word for word in plain if word not in services]:
            raise WrongCommandError(f"docker compose {verb}: no service {wrong}")
    else:
        raise WrongCommandError(f"docker compose {verb}: unknown")


def kubectl(words: Sequence[str]) -> None:
    files(words, ("--filename", "--kustomize", "--from-env-file", "--from-file"))
    names = {(one["kind"].lower(), one["metadata"]["name"]) for one in infra_files.manifests()}
    for word in words:
        kind, slash, name = word.partition("/")
        if slash and kind in {one[0] for one in names} and (kind, name) not in names:
            raise WrongCommandError(f"kubectl {' '.join(words)}: no {word} in the manifests")


def git(words: Sequence[str]) -> None:
    rest = without_values(words, ("-C",))
    if subprocess.run(["git", rest[0], "-h"], capture_output=True).returncode not in (0, 129):
        raise WrongCommandError(f"git {rest[0]}: unknown")


def uv(words: Sequence[str]) -> None:
    end = next(number for number, word in enumerate(words) if word.startswith("-"))
    by_help(["uv", *words[:end]], words[end:])
    files(words, ("--constraints", "--requirements"))


def by_help(command: Sequence[str], words: Sequence[str]) -> None:
    """Options of a program that only its ``--help`` tells."""
    if shutil.which(command[0]) is None and infra_files.postgres_program(command[0]) is None:
        return
    text = help_of(*command)
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text):
            raise WrongCommandError(f"{' '.join(command)}: no option {option}")


@cache
def help_of(*command: str) -> str:
    program = infra_files.postgres_program(command[0]) or command[0]
    return subprocess.run([str(program), *command[1:], "--help"], capture_output=True, text=True).stdout


def values(words: Sequence[str], option: str) -> list[str]:
    """Values of an option, given as ``--option value`` or ``--option=value``."""
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return joined + [after for word, after in pairwise(words) if word == option]


def without_values(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words less options that take a value, with it."""
    kept, skip = [], False
    for word in words:
        if not skip and word not in options and not any(word.startswith(f"{one}=") for one in options):
            kept.append(word)
        skip = not skip and word in options
    return kept


def files(words: Sequence[str], options: Sequence[str]) -> None:
    """Files that the options name are in the repository, or have an example beside them that is to be copied."""
    for option in options:
        for value in values(words, option):
            path = ROOT / value.rpartition("=")[2]
            if not path.exists() and not path.with_name(path.name + ".example").exists():
                raise WrongCommandError(f"{option} {value}: no such file")
