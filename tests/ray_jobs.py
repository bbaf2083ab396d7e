"""Jobs for Ray workers that say who took them up."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


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
