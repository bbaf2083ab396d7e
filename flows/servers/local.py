"""What the servers of this machine share: their environment, their ports, and how one waits for them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flows.processes.settle import variables
from models.errors import Failed, without_secrets
from tasks.project.records import write_text
from tasks.project.secret import USER, secret
from tasks.project.workspace import remote_state

STATE = "HM3_SERVED_STATE"
"""Variable that tells a server which state folder is its own."""

START_SECONDS = 240.0
"""Longest wait for a server. MLflow takes 45 s at its first start on a slow machine."""


def environment(state: Path) -> dict[str, str]:
    """The environment of child processes, servers and stages: this one, with what hm3 sets where the user did not."""
    return {"PREFECT_HOME": str(state / "prefect"), **variables(), "HM3_STATE": remote_state() or str(state)}


def served(name: str, port: int, *options: str) -> list[str]:
    """The command of a server behind :mod:`flows.servers.gate`; a log of requests would hold the opening address."""
    listens = ["--host", "127.0.0.1", "--port", str(port), "--lifespan", "on", "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", "--factory", f"flows.servers.gate:{name}", *listens, *options]


def server_environment(state: Path) -> dict[str, str]:
    """The environment of a server behind the gate, which alone asks for a password."""
    env = {**environment(state), STATE: str(state)}
    env.pop("PREFECT_SERVER_API_AUTH_STRING", None)
    return env


def password(state: Path) -> str:
    """``name:password`` for the servers of this state folder; only they may get it."""
    return f"{USER}:{secret(state)}"


def client_of(state: Path, url: str) -> dict[str, str]:
    """What Prefect's clients read, for a server of ours."""
    return {"PREFECT_API_URL": f"{url}/api", "PREFECT_API_AUTH_STRING": password(state)}


def run_logged(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Exit status of a command whose output goes to a log, without the passwords of addresses that it names."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    write_text(log, without_secrets(log.read_text(encoding="utf-8", errors="replace")))
    return done.returncode


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, seconds: float = 2.0, *, refusing: bool = False, login: str | None = None) -> bool:
    """Whether a GET of the address succeeds.

    Args:
        url: the address.
        seconds: longest wait.
        refusing: an error that a server sends (no access) will do.
        login: ``name:password``, for a server of ours.
    """
    import httpx

    name, _, word = (login or "").partition(":")
    try:
        reply = httpx.get(url, timeout=seconds, auth=(name, word) if login else None, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return reply.is_success or (refusing and reply.is_error)


def wait_for(url: str, ended: Callable[[], int | None], log: Path, name: str, login: str | None = None) -> None:
    """Wait until a server is healthy; ``login`` as in :func:`answers`.

    Raises:
        Failed: it ended, or took longer than ``START_SECONDS``.
    """
    deadline = time.monotonic() + START_SECONDS
    while not answers(url, login=login):
        if ended() is not None:
            raise Failed(f"{name} did not start: {last_line(log)}; see {log}")
        if time.monotonic() > deadline:
            raise Failed(f"{name} does not answer at {url} after {START_SECONDS:.0f} s; see {log}")
        time.sleep(0.1)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
