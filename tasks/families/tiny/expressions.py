"""Generated Python expressions, evaluated in a separate process that can do little and is killed when it overstays.

For a family whose tasks ask for one expression. It needs nothing of the machine, and it is no sandbox: whole programs
run in ``sandbox``. Each expression is one short text, checked against a list of allowed syntax before it runs
(``expressions_child``). The process has an empty environment, an empty temporary folder, no modules but the standard
library, limits on memory, processor time, open files, written bytes and processes, a session of its own that is killed
as a whole, and no network where the kernel lets a user make namespaces. What it lacks: it shares the file system and
the process table with its parent, and root is exempt from the limit on processes; only the list of allowed syntax keeps
an expression from these.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import Failed
from tasks.families.tiny import expressions_child

CHILD = Path(expressions_child.__file__)

START_SECONDS = 60.0
"""Longest start of the interpreter, on a busy machine."""

GRACE_SECONDS = 1.0
"""Time that a program which doesn't heed its alarm gets before its process is killed."""


def run_expressions(
    expressions: Sequence[str],
    inputs: Sequence[Sequence[Mapping[str, Any]]],
    *,
    seconds: float = 5.0,
    memory_bytes: int = 2**29,
) -> list[list[Any]]:
    """Evaluate each expression on each of its inputs. One that fails, hangs or fills memory spoils no other.

    Args:
        expressions: Python expressions, N of them.
        inputs: for each expression its inputs: values of variables, such as JSON holds.
        seconds: wall-clock limit of one expression on all of its inputs.
        memory_bytes: address space of the process.

    Returns:
        For each expression and input the value as JSON holds it (a tuple is a list), or ``None`` where there is none.

    Raises:
        Failed: the interpreter doesn't start.
    """
    results: list[list[Any]] = [[None] * len(cases) for cases in inputs]
    pending = list(range(len(expressions)))
    while pending:
        programs = [[expressions[index], list(inputs[index])] for index in pending]
        job = {"seconds": seconds, "memory_bytes": memory_bytes, "programs": programs}
        answered = 0
        with _child(json.dumps(job)) as pipe:
            for answer in _lines(pipe, seconds + GRACE_SECONDS):
                results[pending[answered]] = json.loads(answer)
                answered += 1
        # the first without an answer brought the process down: it has failed, and those behind it get a new process
        pending = pending[answered + 1 :]
    return results


@contextmanager
def _child(job: str) -> Iterator[int]:
    """The confined interpreter with a job on its standard input: the descriptor from which its answers are read.

    At the end it is killed with all that it started.
    """
    with tempfile.TemporaryDirectory(prefix="hm3-expressions-") as folder, tempfile.TemporaryFile() as file:
        file.write(job.encode())
        file.seek(0)
        ours, its = os.pipe()
        try:
            command = [sys.executable, "-I", "-S", "-B", str(CHILD)]
            streams: dict[str, Any] = {"stdin": file, "stdout": its, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=folder, env={}, start_new_session=True, **streams)
        finally:
            os.close(its)
        try:
            yield ours
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(ours)


def _lines(pipe: int, seconds: float) -> Iterator[str]:
    """The child's answers, until it ends or one takes longer than ``seconds``. The first line says that it is ready.

    Raises:
        Failed: it never was ready.
    """
    buffer, ready = b"", False
    deadline = time.monotonic() + START_SECONDS
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(pipe, 2**16)
        if not chunk:
            break
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if ready:
                yield line.decode()
            ready = True
        if lines:
            deadline = time.monotonic() + seconds
    if not ready:
        raise Failed(f"expressions: {sys.executable} did not start; run it by hand to see why")
