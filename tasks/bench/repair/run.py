"""Runs the benchmark `repair`: families one after the other, studies in the order in which they matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from models.errors import BadInput
from tasks.bench.repair.families import FAMILIES, SMALL, Kind, open_family
from tasks.bench.repair.ground import Ground
from tasks.bench.repair.measure import Lab
from tasks.bench.repair.rows import Book
from tasks.bench.repair.studies import cost, depth, foreign, halves, moves, savings, tokens
from tasks.bench.setup import describe_setup
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace

STUDIES: Mapping[str, Callable[[Lab], None]] = {
    one.__name__: one for one in (depth, cost, tokens, moves, foreign, halves, savings)
}
"""By name, in order."""


def measure(
    user: Workspace, results: Path, families: Sequence[str], studies: Sequence[str], small: bool, progress: Progress
) -> None:
    """Measure what isn't there yet.

    Args:
        user: the user's project.
        results: folder of the raw rows.
        families: by default all.
        studies: by default all.
        small: a tiny family in place of them.
        progress: shows what is being measured.

    Raises:
        BadInput: there is no such family or study; or a family's models aren't there.
    """
    kinds: Mapping[str, Kind] = SMALL if small else FAMILIES
    for option, asked, there in (("--family", families, kinds), ("--study", studies, STUDIES)):
        for one in asked:
            if one not in there:
                raise BadInput(f"{option} {one}: unknown; there are {', '.join(there)}")
    folder = user.state / "bench" / "repair"
    for name in families or kinds:
        kind = kinds[name]
        own = open_family(user, folder, kind, progress)
        book = Book(results, describe_setup(user.root, kind.seed))
        with progress.bar(f"repair: {name}", None, "") as bar:
            lab = Lab(Ground(name, kind, own), book, lambda text: bar.advance(0, text))
            for study in studies or STUDIES:
                STUDIES[study](lab)
