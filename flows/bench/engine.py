"""Runs a benchmark of the engine, and prints what it says."""

from __future__ import annotations

from flows.commands.options import emit
from flows.processes.children import hold
from flows.processes.settle import prepare
from flows.screen.watch import output, shown
from tasks.project.workspace import open_workspace, profiles


def bench_engine(name: str, repetitions: int | None, *, small: bool, fresh: bool, as_json: bool) -> None:
    """Measure what is missing of a benchmark, on `tiny` where there is such a profile.

    Args:
        name: of the benchmark.
        repetitions: of each case; by default the benchmark's own number.
        small: try it on small input.
        fresh: forget what was measured.
        as_json: print one JSON object in place of tables.
    """
    first = open_workspace()
    workspace = open_workspace("tiny") if "tiny" in profiles(first.root) else first
    console = output(stderr=True)
    prepare(workspace)
    from tasks.bench.engine.run import run_benchmark
    from tasks.bench.engine.summary import steps_table, verdict_data, verdict_table

    with hold(workspace.state / "locks" / "bench.lock", "a benchmark", console.print), shown(console) as bars:
        outcome = run_benchmark(workspace, name, bars, repetitions=repetitions, small=small, fresh=fresh)
    if as_json:
        emit(verdict_data(outcome.benchmark, outcome.verdicts, outcome.steps))
        return
    output().print(verdict_table(outcome.benchmark, outcome.verdicts))
    if outcome.steps:
        output().print("", steps_table(outcome.steps))
