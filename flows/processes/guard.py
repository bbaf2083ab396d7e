"""Runs a command that ends with whoever asked for it, even when that process is killed outright.

Started as ``python -m flows.processes.guard GRACE COMMAND …`` with a pipe as standard input. Nobody writes to the pipe;
its other end closes when the asking process is gone, however it went. Guard and command each lead a session of their
own, so a signal to the asker's process group reaches neither. What it needs at the end it imports then: it must start
at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

POLL_SECONDS = 0.05


def main(grace: float, command: list[str]) -> int:
    """Exit status of the command as a shell gives it, or 143 when it was told to end.

    Args:
        grace: seconds between the interrupt and the kill.
        command: program and arguments.
    """
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not asked:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    status = child.poll()
    end(child, grace)
    if status is None:
        return 143
    return status if status >= 0 else 128 - status


def end(child: subprocess.Popen[bytes], grace: float) -> None:
    """Interrupt the child and everything under it, and kill what is left after ``grace`` seconds."""
    import psutil

    from tasks.project.processes import is_alive

    try:
        under = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        under = []

    def runs(one: psutil.Process) -> bool:
        return one.is_running() and is_alive(one.pid)

    signal_group(child.pid, signal.SIGINT)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and (child.poll() is None or any(runs(one) for one in under)):
        time.sleep(POLL_SECONDS)
    signal_group(child.pid, signal.SIGKILL)
    for one in under:
        if runs(one):
            one.kill()
    child.wait()


def signal_group(leader: int, number: signal.Signals) -> None:
    """Signal a process group that may be empty by now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
