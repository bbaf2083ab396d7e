"""Jobs for Ray workers that say who took them up, and a look at the workers."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.processes.children import command_line
from models.candidate import Candidate


@dataclass(frozen=True)
class Nap:
    """Sleeps; each worker that takes it up writes a file with its process id as name."""

    folder: Path
    seconds: float

    def run(self, pool, candidates, on_done):
        (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds)
        return [os.getpid()] * len(candidates)


@dataclass(frozen=True)
class Deadly:
    """Ends the process."""

    folder: Path

    def run(self, pool, candidates, on_done):
        (self.folder / str(os.getpid())).touch()
        os._exit(1)


PATH = Candidate.identity("a", 3)

PATIENCE = 180
"""Seconds until a worker is taken for lost: to start one takes over a minute where cores are busy."""


def ignore(_):
    pass


def workers():
    """Processes of the workers of this process's clusters; other tests may have some, too."""
    under = psutil.Process().children(recursive=True)
    return [one for one in under if "".join(command_line(one)[:1]).startswith("ray::Worker")]


def taken(folder, count, seconds=PATIENCE):
    """Process ids of workers that took up a job."""
    wait_until(lambda: len(list(folder.glob("[0-9]*"))) >= count, seconds)
    return [int(one.name) for one in folder.glob("[0-9]*")]


def clear(folder):
    for one in folder.glob("[0-9]*"):
        one.unlink()


def wait_until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@contextmanager
def in_background(pool, job):
    """A call in a thread; gives what waits for its answer."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(pool.run, job, [PATH], ignore)
        yield lambda: future.result(PATIENCE)
