"""Child processes that end with us, and locks that say who holds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

GRACE_SECONDS = 5.0
"""Time that a child has for ending after it was interrupted."""


class Guarded:
    """A command behind :mod:`flows.processes.guard`: it, and all that it started, ends when this process does."""

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path):
        guard = [sys.executable, "-P", "-m", "flows.processes.guard", str(GRACE_SECONDS)]
        self.process = start([*guard, *command], cwd=cwd, env=env, log=log, stdin=subprocess.PIPE)

    def poll(self) -> int | None:
        """Exit status, once it has ended."""
        return self.process.poll()

    def stop(self) -> int:
        """End it if it still runs, and wait until it and all under it are gone."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.process.wait()


def start(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with its output in a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=cwd, env=env, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def command_line(process: psutil.Process) -> list[str]:
    """Its command with the arguments; empty once it has ended, also before anybody has waited for it."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def hold(path: Path, label: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock of the workspace, waiting for whoever has it.

    Args:
        path: the lock's file. The operating system frees it when its holder dies.
        label: what is done under it, for those who wait.
        say: gets one line if it has to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True, thread_local=False)
    holder = path.with_suffix(".holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{label} waits for {read_holder(holder)}")
        lock.acquire()
    try:
        if lock.lock_counter == 1:
            since = datetime.now().astimezone().isoformat(timespec="minutes")
            holder.write_text(json.dumps({"label": label, "pid": os.getpid(), "since": since}), encoding="utf-8")
        yield
    finally:
        lock.release()


def read_holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.fromisoformat(data["since"])
        return f"{data['label']} (process {data['pid']}, since {since:%Y-%m-%d %H:%M})"
    except (OSError, ValueError, KeyError):
        return "another process"
