"""Runs a comparison of searches, with the plan before and the tables after."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.commands.options import emit
from flows.processes.children import hold
from flows.processes.settle import prepare
from flows.screen.watch import output, shown
from tasks.project.workspace import open_workspace

if TYPE_CHECKING:  # it imports torch
    from tasks.bench.searches.compare import Outcome


def bench_searches(name: str, profile: str | None, wanted: dict[str, Any], as_json: bool) -> None:
    """Compare searches on a profile, and print what came of it.

    Args:
        name: of the benchmark.
        profile: by default the first of params.yaml.
        wanted: the fields of ``tasks.bench.searches.compare.Wanted``.
        as_json: print one JSON object in place of tables.
    """
    workspace = open_workspace(profile)
    console = output(stderr=True)
    prepare(workspace)
    from tasks.bench.searches.amortisation import measure
    from tasks.bench.searches.compare import Outcome, Wanted, compare_fronts
    from tasks.bench.searches.sheets import sheets

    asked: Wanted = Wanted(**wanted, kind="front" if name == "amortisation" else name)
    asked.chosen()
    lock = workspace.state / "locks" / f"bench-front-{workspace.name}.lock"
    with hold(lock, f"a benchmark of {workspace.name}", console.print), shown(console) as bars:
        if name == "amortisation":
            outcome = Outcome([], *measure(workspace, bars, asked.families, asked.seeds, asked.budget))
        else:
            outcome = compare_fronts(workspace, asked, bars, lambda plan: console.print(str(plan)))
    if as_json:
        emit(data(outcome))
        return
    for sheet in outcome.sheets:
        output().print(sheet.rich(), sheet.note, "")
    for study in outcome.studies:
        output().print(f"{study.title}\n")
        for sheet in sheets(study):
            output().print(sheet.rich(), sheet.note, "")


def data(outcome: Outcome) -> dict[str, Any]:
    """For ``--json``: tables, comparisons as numbers, and where the page is."""
    from tasks.bench.searches.sheets import sheets

    return {
        "page": outcome.page.name,
        **({"tables": [asdict(sheet) for sheet in outcome.sheets]} if outcome.sheets else {}),
        "studies": [
            {
                "profile": study.profile,
                "depth": study.depth,
                "tables": [asdict(sheet) for sheet in sheets(study)],
                "comparisons": {
                    title: [asdict(one) | {"significant": one.significant} for one in made]
                    for title, made in study.comparisons.items()
                },
                "noninferiority": [asdict(one) for one in study.noninferiority],
            }
            for study in outcome.studies
        ],
    }
