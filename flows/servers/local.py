"""What the processes of this machine share: their environment, their ports, and how one waits for a server."""

from __future__ import annotations

import atexit
import gc
import os
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.errors import Failed
from tasks.project.workspace import remote_state

START_SECONDS = 240.0
"""Longest wait for a server. MLflow takes 45 s at its first start on a slow machine."""


def environment(state: Path) -> dict[str, str]:
    """The environment of servers and stages: this one, with what hm3 sets where the user set nothing.

    Args:
        state: the workspace's state folder.
    """
    ours = {
        "HM3_STATE": str(state),
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
    }
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join([scripts, *filter(lambda one: one != scripts, os.environ.get("PATH", "").split(os.pathsep))])
    return {**ours, **os.environ, "HM3_STATE": remote_state() or str(state), "PATH": path}


def prepare_environment(state: Path) -> None:
    """Give this process :func:`environment`, before anything imports prefect or mlflow."""
    (state / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.update(environment(state))
    atexit.register(gc.freeze)  # or the interpreter collects 400,000 objects of libraries as it ends: seconds


def run_logged(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Exit status of a command whose output is added to a log."""
    with log.open("ab") as output:
        return subprocess.run(
            list(command),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
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
