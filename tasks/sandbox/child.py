"""The process inside a sandbox: it forks for each program, confines the fork, and says what became of it.

``sandbox`` starts it. A line of JSON on standard input is a program, a line on standard output its verdict. A fork
takes about a tenth of another start. Standard library alone: nothing else is to be seen in there.

A program has passed when it runs to its end. Its process then reads a key and answers with the digest of it, so that
neither leaving early nor writing at random counts as the end.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import random
import resource
import secrets
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tasks.sandbox.system_calls import die_with, drop_capabilities, install_filter  # found through the line above

del sys.path[0]

COMMON = (
    *("abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "heapq", "inspect", "itertools", "math", "numbers", "operator", "queue", "re"),
    *("statistics", "string", "struct", "textwrap", "time", "typing"),
)
"""Modules that programs often import: once here, instead of in each of them."""

OUTPUT, VERDICT, KEY = 1, 3, 4
"""Descriptors of a program's process; 0 is at its end, 2 is the same as 1."""

LONGEST_VERDICT = 1024
BLOCK = 2**16

FILES = 4096
"""Files, folders and links that a program may make, about: each takes 1 KB of the kernel's memory."""

TICK = 0.02
"""Seconds between two looks at a program that says nothing."""


def confine(limits: Mapping[str, Any], parent: int) -> None:
    """Give up all that a program needn't have, and live no longer than the parent, which has this number.

    Raises:
        OSError, ValueError: the machine doesn't hold a limit or the filter.
    """
    memory, seconds = limits["memory_bytes"], limits["cpu_seconds"]
    for limit, most in {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_FSIZE: (limits["file_bytes"], limits["file_bytes"]),
        resource.RLIMIT_NOFILE: (limits["open_files"], limits["open_files"]),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTPRIO: (0, 0),
        resource.RLIMIT_SIGPENDING: (limits["open_files"], limits["open_files"]),
    }.items():
        resource.setrlimit(limit, most)
    drop_capabilities()
    die_with(parent)
    if not install_filter() and limits["isolated"]:
        raise OSError(f"system calls of {platform.machine()} are not listed")


def become(program: str, limits: Mapping[str, Any], parent: int) -> NoReturn:
    """Be the process of a program: confined, it runs it, reports and ends."""
    # what the program may replace is taken before
    read, write, end, digest = os.read, os.write, os._exit, hashlib.sha256
    try:
        confine(limits, parent)
        random.seed(0)
        sys.modules["__main__"] = type(sys)("__main__")
    except (OSError, ValueError) as error:
        write(VERDICT, f"not confined: {error}".encode())
        end(1)
    try:
        exec(compile(program, "<program>", "exec"), {})  # noqa: S102 # what a sandbox is for
        verdict = digest(read(KEY, 64)).hexdigest()
    except BaseException as error:  # noqa: BLE001 # a program may raise anything, SystemExit too
        verdict = f"{type(error).__name__}: {str(error)[:200]}"
    write(VERDICT, verdict.encode(errors="replace")[:LONGEST_VERDICT])
    end(0)


def start(program: str, limits: Mapping[str, Any], key: bytes) -> tuple[int, int, int]:
    """Fork for a program: number of the process, and the descriptors from which verdict and output are read."""
    (no_input, input_end), (key_end, key_to) = os.pipe(), os.pipe()
    (output, output_to), (verdict, verdict_to) = os.pipe(), os.pipe()
    os.write(key_to, key)
    parent = os.getpid()
    process = os.fork()
    if process:
        for descriptor in (no_input, input_end, key_end, key_to, output_to, verdict_to):
            os.close(descriptor)
        return process, verdict, output
    try:
        os.setsid()
        # through numbers above all that are used, so that none is overwritten before it is moved
        moved = [os.dup(one) for one in (no_input, output_to, output_to, verdict_to, key_end)]
        for target, descriptor in enumerate(moved):
            os.dup2(descriptor, target)
        os.closerange(KEY + 1, 256)
        become(program, limits, parent)
    finally:
        os._exit(1)


def follow(process: int, verdict: int, output: int, limits: Mapping[str, Any], folder: int) -> tuple[bytes, str | None]:
    """What a program says of its end, and why it has to be ended before that, if it has.

    What it prints is read and dropped, because a full pipe would stop it.
    """
    said, open_ones, deadline = b"", [verdict, output], time.monotonic() + limits["wall_seconds"]
    while verdict in open_ones and len(said) <= LONGEST_VERDICT:
        for descriptor in select.select(open_ones, [], [], TICK)[0]:
            data = os.read(descriptor, BLOCK)
            if not data:
                open_ones.remove(descriptor)
            elif descriptor == verdict:
                said += data
        if time.monotonic() > deadline:
            return said, f"out of time: not done after {limits['wall_seconds']:g} s"
        state = os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state and state.si_code == os.CLD_STOPPED:  # only another process could let it go on, and there is none
            return said, "stopped itself"
        if limits["isolated"] and files_of(folder) > FILES:
            return said, f"made more than {FILES} files"
    return said, None


def files_of(folder: int) -> int:
    """Inodes of the file system of an open folder, which is the programs' own where they are isolated."""
    found = os.fstatvfs(folder)
    return found.f_files - found.f_ffree


def watch(program: str, limits: Mapping[str, Any], folder: int) -> str | None:
    """Run one program, which works in a folder that is open here: ``None`` if it ran to its end, else why not."""
    key = secrets.token_bytes(32)
    process, verdict, output = start(program, limits, key)
    said, ended = follow(process, verdict, output, limits, folder)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(verdict)
    os.close(output)
    if said.decode(errors="replace") == hashlib.sha256(key).hexdigest():
        return None
    if ended:
        return ended
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return f"out of time: {limits['cpu_seconds']} s of a processor"
    if os.WIFSIGNALED(status) and not said:
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return said.decode(errors="replace")[:LONGEST_VERDICT] or "left before its end"


def folder_state() -> tuple[int, ...] | None:
    """What changes when anything is made, removed or changed in the working folder; ``None`` if it is gone."""
    try:
        found = Path().stat()
    except OSError:
        return None
    return found.st_mode, found.st_nlink, found.st_mtime_ns, found.st_ctime_ns


def main() -> None:
    """Answer programs until there are no more, or one left something behind that the next could find."""
    limits = json.loads(sys.stdin.readline())
    os.environ.clear()
    for name in COMMON:
        importlib.import_module(name)
    untouched, folder = folder_state(), os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    if reason := watch("", limits, folder):  # lest a machine that can't confine lets every program fail
        sys.exit(f"a program that does nothing fails: {reason}")
    print("ready", flush=True)  # noqa: T201
    while line := sys.stdin.readline():
        reason = watch(json.loads(line), limits, folder)
        last = folder_state() != untouched
        print(json.dumps({"reason": reason, "last": last}), flush=True)  # noqa: T201
        if last:
            return


if __name__ == "__main__":
    main()
