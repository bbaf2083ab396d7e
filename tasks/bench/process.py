"""What work costs: a process with all its children, a call in this process, or layers to be computed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil

from models.candidate import Candidate
from models.errors import BadInput, Failed
from models.paths.prefix import trie

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

POLL_SECONDS = 0.25
"""Time between two looks at the memory of a process."""

MEGABYTE = 1e6


@dataclass(frozen=True)
class Usage:
    """What something took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of user and system time over all threads and children."""
    memory: float = 0.0
    """Peak resident memory of the process and its children together, in megabytes (10⁶ bytes)."""


def timed(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> tuple[Result, Usage]:
    """What a call in this process gives and takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*args, **kwargs)
    return result, Usage(time.perf_counter() - wall, time.process_time() - cpu)


def run_measured(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Usage:
    """Run a process to its end.

    ``ru_maxrss`` would not do: a child starts with its parent's. The peak is the greater of the process's own
    high-water mark, which the kernel keeps from its start on, and the sum over it and its children at every look.

    Args:
        command: program and arguments.
        folder: its working directory.
        environment: variables beside those of this process.

    Raises:
        Failed: it ended with another status than 0.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(command), cwd=folder, env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT
        )
        watch = _Watch(process.pid)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            watch.ended.set()
            watch.join()
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Failed(f"{Path(command[0]).name}: ended with {process.returncode}: {' '.join(last) or 'no message'}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, watch.peak / MEGABYTE)


class _Watch(threading.Thread):
    """Looks at the resident memory of a process and its children until told that it has ended."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Look every ``POLL_SECONDS``."""
        while not self.ended.wait(POLL_SECONDS):
            try:
                root = psutil.Process(self.pid)
                tree = [root, *root.children(recursive=True)]
                now = sum(one.memory_info().rss for one in tree)
            except psutil.Error:
                continue
            self.peak = max(self.peak, now, high_water_mark(self.pid))


def high_water_mark(pid: int) -> int:
    """Most bytes that a process has had resident, as Linux counts them; 0 where it doesn't."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def program(name: str) -> str:
    """A command of this Python's environment.

    Raises:
        BadInput: it isn't installed.
    """
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise BadInput(f"{name}: is not installed, and this benchmark runs it; install hm3[dev]")
    return str(path)


def edges(candidates: Sequence[Candidate]) -> int:
    """Distinct layers of the trie of some candidates: what scoring them together computes for each item."""
    count, left = 0, list(trie(candidates).values())
    while left:
        children = left.pop().children
        count += len(children)
        left += children.values()
    return count
