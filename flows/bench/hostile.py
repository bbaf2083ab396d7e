"""`hm3 bench hostile`: damaged and hostile files of every kind, and what hm3 makes of them."""

from __future__ import annotations

from pathlib import Path

from flows.commands.options import emit
from flows.processes.children import hold
from flows.processes.settle import settle
from flows.screen.watch import output, shown
from models.errors import Failed
from tasks.project.workspace import find_root, state_folder

RESULTS = Path("docs/results")


def bench_hostile(cases: int, seed: int, workers: int, *, small: bool, as_json: bool) -> None:
    """Try so many cases of a seed and print what became of them, kind by kind.

    Args:
        cases: to try.
        seed: of kinds, files and changes.
        workers: processes.
        small: write no result.
        as_json: print one JSON object in place of the table.

    Raises:
        Failed: a case was neither refused nor sound.
    """
    root = find_root()
    settle(root, state_folder(root), 1, hub=False)
    from tasks.bench.hostile.page import BAD, counted, keep, sheet
    from tasks.bench.hostile.run import try_cases
    from tasks.bench.setup import describe_setup

    console, done, setup = output(stderr=True), [], describe_setup(root, seed, workers)
    lock = state_folder(root) / "locks" / "bench.lock"
    with (
        hold(lock, "a benchmark", console.print),
        shown(console) as progress,
        progress.bar("hostile files", cases, "cases") as bar,
    ):
        for case in try_cases(cases, seed, workers):
            done.append(case)
            bar.advance()
    rows = counted(done, setup)
    if not small:
        keep(rows, root / RESULTS)
    if as_json:
        emit({"cases": len(done), "rows": rows.to_dict("records")})
    else:
        output().print(sheet(rows).rich())
    if failed := [one for one in done if one.outcome in BAD]:
        first = failed[0]
        raise Failed(
            f"{len(failed)} of {cases} cases: the first is number {first.number} of seed {first.seed}, "
            f"{first.kind}, {first.file}, {first.change}: {first.outcome} {first.said}"
        )
