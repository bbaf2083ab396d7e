"""Whether a process still runs, how one ends with that for which it works, and work without collecting garbage."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

OWNER = "HM3_RUN_PID"
"""Variable in the environment of a child: the process for which it works, and with which it ends."""


def birth(pid: int) -> float:
    """What tells a process from a later one of the same number, and stays when the clock is set.

    Linux counts from the boot, in ticks; psutil adds the boot's time, which moves with the clock.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:
        return psutil.Process(pid).create_time()


def is_alive(pid: int, born: float | None = None) -> bool:
    """Whether a process runs; with ``born`` whether it is the one whose :func:`birth` that is.

    One that has ended and that nobody has waited for yet does not run.
    """
    try:
        same = born is None or birth(pid) == born
        return same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_with_owner(seconds: float = 0.5) -> None:
    """End this process from a thread of its own once the process that ``OWNER`` names is gone, if it names one."""
    owner = os.environ.get(OWNER)
    if not owner:
        return

    def watch(pid: int) -> None:
        while is_alive(pid):
            time.sleep(seconds)
        os._exit(143)

    threading.Thread(target=watch, args=(int(owner),), name="watch-owner", daemon=True).start()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, for work that makes millions of objects and keeps them.

    It would look at all of them again and again, which takes a fifth to a third of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
