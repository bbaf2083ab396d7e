"""Tries changed files by the thousand, in processes of their own, and counts what came of them."""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from models.errors import BadInput, Failed

SECONDS = 20
"""Longest time for one case; whatever takes longer hangs."""

MEMORY_BYTES = 8 * 2**30
"""Of addresses that a process may take beside those that it begins with."""

LARGE = 2**26
"""Bytes of a file that is not changed a second time."""

BATCH = 25
"""Cases that a process is given at once."""


@dataclass(frozen=True)
class Case:
    """A changed file, and what came of it."""

    seed: int
    number: int
    kind: str
    file: str
    change: str
    outcome: str
    """``sound``, ``refused``, ``traceback``, ``unusable``, ``left`` (refused, but something was written), ``hang``,
    ``killed``."""
    seconds: float
    megabytes: int
    """Peak of the process so far."""
    said: str


class Hang(BaseException):
    """A case took longer than ``SECONDS``."""


def try_cases(count: int, seed: int, workers: int) -> Iterator[Case]:
    """Cases 0 to ``count`` − 1 of a seed, each in a fresh copy of the valid project, as they end.

    Args:
        count: of cases.
        seed: decides, with the number of a case, kind, file and change.
        workers: processes.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="hm3-hostile-") as folder:
        left = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)][::-1]
        first = _Worker(context, Path(folder), "made").ask([seed, range(0)])  # it makes the valid project
        if not (Path(folder) / "valid").is_dir():
            raise Failed("the valid project could not be made, or is not taken as it is")
        first.ask([seed, left.pop()])
        running, names = {first.pipe: first}, itertools.count()
        while left or running:
            while left and len(running) < workers:
                worker = _Worker(context, Path(folder), str(next(names)))
                worker.ask([seed, left.pop()])
                running[worker.pipe] = worker
            for pipe in wait(list(running), timeout=2 * SECONDS) or list(running):
                worker = running[pipe]
                yield from worker.answers()
                if worker.idle and left:
                    worker.ask([seed, left.pop()])
                elif worker.idle:
                    worker.close()
                    del running[pipe]
                elif worker.lost:
                    yield worker.end(seed)
                    del running[pipe]
                    if worker.rest:
                        left.append(worker.rest)


class _Worker:
    """A process that tries cases, and what it has been given."""

    def __init__(self, context: Any, folder: Path, name: str) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, str(folder), name), daemon=True)
        self.process.start()
        theirs.close()
        self.rest = range(0)
        self.told = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether all that it was given is done."""
        return not self.rest

    @property
    def lost(self) -> bool:
        """Whether it died, or is silent for longer than a case may take."""
        return not self.process.is_alive() or time.monotonic() - self.told > 2 * SECONDS

    def ask(self, work: Any) -> _Worker:
        """Give it cases."""
        self.rest, self.told = work[1], time.monotonic()
        self.pipe.send(work)
        if not work[1]:
            with contextlib.suppress(EOFError, OSError):
                self.pipe.recv()
        return self

    def answers(self) -> Iterator[Case]:
        """Cases that it has done by now."""
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                case = self.pipe.recv()
                self.rest, self.told = self.rest[1:], time.monotonic()
                yield case

    def end(self, seed: int) -> Case:
        """Kill it; the case that it was at."""
        died = not self.process.is_alive()
        self.close()
        number, self.rest = self.rest[0], self.rest[1:]
        return Case(seed, number, "", "", "", "killed" if died else "hang", 2 * SECONDS, 0, "")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, folder: str, name: str) -> None:
    """Try what comes through the pipe until it is closed."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from transformers.utils import logging

    from tasks.bench.hostile.kinds import KINDS
    from tasks.bench.hostile.made import make_project

    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, _alarm)
    base = Path(folder)
    if not (base / "valid").exists():
        with contextlib.redirect_stderr(io.StringIO()):
            make_project(base / "making")
            for kind in KINDS:
                kind.act(base / "making")
                shutil.rmtree(base / "making" / "out", ignore_errors=True)
                shutil.rmtree(base / "making" / ".hm3" / "models", ignore_errors=True)
        (base / "making").rename(base / "valid")
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
    with contextlib.suppress(EOFError, OSError):
        while True:
            seed, numbers = pipe.recv()
            if not numbers:
                pipe.send(None)
            for number in numbers:
                pipe.send(_try(base, base / name, seed, number))


def _alarm(*_: object) -> None:
    raise Hang


def _try(base: Path, root: Path, seed: int, number: int) -> Case:
    """One case."""
    from tasks.bench.hostile.kinds import KINDS, Unusable
    from tasks.bench.hostile.mutations import SENTINEL, mutate

    rng = Random(f"{seed} {number}")  # noqa: S311 (nothing is to be secret)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(base / "valid", root / "project", copy_function=os.link)
    beside = root / "beside.json"
    beside.write_text(f'{{"words": "{SENTINEL}"}}', encoding="utf-8")
    project = root / "project"
    kind = KINDS[rng.randrange(len(KINDS))]
    files = sorted(path for pattern in kind.files for path in project.glob(pattern) if path.is_file())
    if not files:
        return Case(seed, number, kind.name, "", "", "skipped", 0, 0, "needs a package that is missing")
    file = rng.choice(files)
    shutil.copyfile(file, root / "own")  # the others are links to the valid ones
    (root / "own").replace(file)
    changes = [mutate(file, beside, rng)]
    if rng.random() < 0.2 and file.is_file() and not file.is_symlink() and file.stat().st_size < LARGE:
        changes.append(mutate(file, beside, rng))
    before = _written(project)
    began, said = time.monotonic(), ""
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            kind.act(project)
        outcome = "sound"
    except Hang:
        outcome = "hang"
    except (BadInput, Failed) as error:
        outcome, said = "refused" if _written(project) == before else "left", str(error)
    except Unusable as error:
        outcome, said = "unusable", str(error)
    except BaseException as error:  # noqa: BLE001 (a traceback is what is looked for)
        outcome, said = "traceback", f"{type(error).__name__}: {error} @ {_place(error)}"
    finally:
        signal.alarm(0)
    seconds = time.monotonic() - began
    shutil.rmtree(root, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    where = file.relative_to(project).as_posix()
    return Case(seed, number, kind.name, where, ", ".join(changes), outcome, round(seconds, 2), peak, said[:300])


def _written(project: Path) -> list[str]:
    """What lies where results are written."""
    return sorted(str(path) for place in (project, project / ".hm3" / "models") for path in place.glob("[!.]*"))


def _place(error: BaseException) -> str:
    """Where an exception came from, the innermost place in the packages."""
    found, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/models/" in code.co_filename or "/tasks/" in code.co_filename:
            found = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
