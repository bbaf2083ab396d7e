"""Processes that tests look for while some of them end."""

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """The command of a process; empty when it ended, a zombie has none either."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
