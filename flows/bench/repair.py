"""`hm3 bench repair`: what repairing seams gains, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flows.commands.options import emit
from flows.processes.children import hold
from flows.processes.settle import prepare
from flows.screen.watch import output, shown
from tasks.project.workspace import open_workspace

RESULTS = Path("docs/results")


def bench_repair(families: Sequence[str], studies: Sequence[str], *, small: bool, fresh: bool, as_json: bool) -> None:
    """Measure what is missing, write the page and print its tables.

    Args:
        families: by default all.
        studies: by default all.
        small: a tiny family; its rows are kept in the state folder until the next small run.
        fresh: forget what was measured.
        as_json: print one JSON object in place of the tables.
    """
    workspace = open_workspace()
    console = output(stderr=True)
    prepare(workspace)
    from tasks.bench.repair.page import known, write_repair
    from tasks.bench.repair.rows import ITEMS, ROWS
    from tasks.bench.repair.run import measure
    from tasks.bench.repair.summary import sheets

    results = workspace.state / "bench" / "small" if small else workspace.root / RESULTS
    if fresh or small:
        for path in (results / "raw" / ROWS, *(results / "raw").glob(ITEMS.format("*"))):
            path.unlink(missing_ok=True)
    with hold(workspace.state / "locks" / "bench.lock", "a benchmark", console.print), shown(console) as bars:
        measure(workspace, results / "raw", families, studies, small=small, progress=bars)
    page = write_repair(results)
    found = {one.family: sheets(one) for one in known(results)}
    if as_json:
        tables = {name: [asdict(sheet) for sheet in some] for name, some in found.items()}
        emit({"page": page.name, "families": tables})
        return
    for name, some in found.items():
        output().print(f"{name}\n")
        for sheet in some:
            output().print(sheet.rich(), sheet.note, "")
