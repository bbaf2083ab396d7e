"""Time and memory of the commands that show a front, where very much was found; and of opening a long journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.bench.engine.large import make_journal, make_project
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.bench.process import MEGABYTE, program, run_measured, timed
from tasks.project.workspace import Workspace
from tasks.scoring.journal import Journal

COMMANDS = {
    "front": ["front"],
    "front as JSON": ["front", "--json"],
    "choose": ["choose", "--prefer", "translation=0.5,math=0.3,code=0.2", "--require", "math>=0.4"],
    "report": ["report"],
}
JOURNAL = "journal"
MEMBERS, CANDIDATES = 1_000, 1_000_000
SEGMENTS, ENTRIES = 5_000, 16
SECONDS, OPENING_SECONDS = 5.0, 2.0
BYTES = 2**30
PAGE_BYTES = 4 * 2**20
"""Of a report that a browser shows at once."""


@benchmark(
    "load",
    f"a front of {MEMBERS:,} members and an archive of {CANDIDATES:,} candidates shown, whole processes; a journal of "
    f"{SEGMENTS:,} segments with {ENTRIES} candidates each opened. What stands as theirs is what it may take",
    f"each command within {SECONDS:g} s and 1 GiB of resident memory, the journal within {OPENING_SECONDS:g} s",
    f"the command ends well, the report's page is at most {PAGE_BYTES // 2**20} MiB, every entry is there",
    cases=[*COMMANDS, JOURNAL],
    measures=[Measure("*", "wall", bound=1.0), Measure("*", "memory", bound=1.0), Measure("*", "cpu")],
    repetitions=3,
)
def load(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Make one large project and one long journal, and run each command on it."""
    share = 100 if bench.small else 1
    with bench.progress.bar("making a large project"):
        workspace = make_project(bench.folder / "project", MEMBERS // share, CANDIDATES // share, bench.seed)
        folder = bench.folder / "journal"
        entries = make_journal(folder, SEGMENTS // share, ENTRIES, bench.seed)
    for case, repetition in todo:
        if case == JOURNAL:
            journal, usage = timed(Journal, folder)
            right = len(journal) == entries
            yield [
                Row(case, repetition, "wall", "s", usage.wall, OPENING_SECONDS, checked=right),
                Row(case, repetition, "cpu", "s", usage.cpu, OPENING_SECONDS, checked=right),
            ]
            del journal
            continue
        environment = {"HM3_STATE": str(workspace.state), "MLFLOW_TRACKING_URI": ""}
        usage = run_measured([program("hm3"), *COMMANDS[case]], workspace.root, environment)
        right = case != "report" or usable(workspace)
        yield [
            Row(case, repetition, "wall", "s", usage.wall, SECONDS, checked=right),
            Row(case, repetition, "memory", "MB", usage.memory, BYTES / MEGABYTE, checked=right),
            Row(case, repetition, "cpu", "s", usage.cpu, SECONDS, checked=right),
        ]


def usable(workspace: Workspace) -> bool:
    """Whether the report is there and small."""
    page = workspace.run / "report.html"
    return page.is_file() and page.stat().st_size <= PAGE_BYTES
