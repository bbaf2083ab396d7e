"""Runs a benchmark: what is measured already is kept, every repetition is written down at once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import BadInput
from tasks.bench.engine.page import write_engine
from tasks.bench.engine.registry import Bench, Benchmark, Todo, find_benchmark
from tasks.bench.engine.rows import raw_file
from tasks.bench.engine.summary import Step, Verdict, steps, summarise
from tasks.bench.setup import describe_setup
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace

SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What is known of a benchmark after a run."""

    benchmark: Benchmark
    verdicts: list[Verdict]
    steps: list[Step]
    page: Path
    """The page that was written."""


def run_benchmark(
    workspace: Workspace,
    name: str,
    progress: Progress,
    *,
    repetitions: int | None = None,
    small: bool = False,
    fresh: bool = False,
) -> Outcome:
    """Measure what is missing and write the page of all results again.

    Args:
        workspace: project, and the profile on which candidates are scored.
        name: of the benchmark.
        progress: shows the repetitions.
        repetitions: of each case; by default the benchmark's own number.
        small: try it on small input. Its rows are kept in the state folder until the next small run.
        fresh: forget what was measured, and the families that were made for it.

    Raises:
        BadInput: there is no such benchmark, a tool isn't installed, or a file of rows is damaged.
        Failed: one of the sides ended without a result.
    """
    benchmark = find_benchmark(name)
    if repetitions is not None and repetitions < 1:
        raise BadInput(f"--repetitions {repetitions}: must be 1 or more")
    state = workspace.state / "bench"
    results = state / "small" if small else workspace.root / "docs" / "results"
    raw, folder = raw_file(results, benchmark), state / "work" / name
    if fresh or small:
        raw.path.unlink(missing_ok=True)
    if fresh:
        shutil.rmtree(state / "families", ignore_errors=True)
    done = raw.done()
    count = repetitions or (1 if small else benchmark.repetitions)
    cases = benchmark.small_cases if small else benchmark.cases
    left = [(case, repetition) for repetition in range(count) for case in cases if (case, repetition) not in done]
    setup = describe_setup(workspace.root, SEED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if left:
            # Journal and caches of what is measured stay away from the user's: no score may be known already.
            apart = replace(workspace, state=folder / "state")
            bench = Bench(apart, folder, state / "families", small, SEED, progress)
            for new in benchmark.run(bench, _todo(left, len(cases) * count, progress, name)):
                raw.append(new, setup)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = raw.read()
    return Outcome(benchmark, summarise(benchmark, rows), steps(rows), write_engine(results))


def _todo(left: list[tuple[str, int]], total: int, progress: Progress, name: str) -> Todo:
    """What is left, with a bar that moves as each is taken up."""
    with progress.bar(f"bench {name}", total, "measurements") as bar:
        bar.advance(total - len(left))
        for case, repetition in left:
            bar.advance(0, f"{case}, repetition {repetition + 1}")
            yield case, repetition
            bar.advance()
