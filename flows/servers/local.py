"""What the servers of this machine share: their environment, their ports, and how one waits for them."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flows.processes.settle import variables
from models.errors import Failed
from tasks.project.workspace import remote_state

START_SECONDS = 240.0
"""Longest wait for a server. MLflow takes 45 s at its first start on a slow machine."""


def environment(state: Path) -> dict[str, str]:
    """The environment of child processes, servers and stages: this one, with what hm3 sets where the user did not."""
    return {"PREFECT_HOME": str(state / "prefect"), **variables(), "HM3_STATE": remote_state() or str(state)}


def run_logged(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Exit status of a command whose output goes to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, seconds: float = 2.0, *, refusing: bool = False) -> bool:
    """Whether a GET of the address succeeds; ``refusing``: an error that a server sends (no access) will do."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as reply:  # noqa: S310 (http on loopback, or the user's own)
            return bool(reply.status == 200)
    except urllib.error.HTTPError:
        return refusing
    except (OSError, ValueError):
        return False


def wait_for(url: str, ended: Callable[[], int | None], log: Path, name: str) -> None:
    """Wait until a server is healthy.

    Raises:
        Failed: it ended, or took longer than ``START_SECONDS``.
    """
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if ended() is not None:
            raise Failed(f"{name} did not start: {last_line(log)}; see {log}")
        if time.monotonic() > deadline:
            raise Failed(f"{name} does not answer at {url} after {START_SECONDS:.0f} s; see {log}")
        time.sleep(0.1)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
