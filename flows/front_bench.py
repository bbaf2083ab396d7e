"""`hm3 bench front`: searches side by side, with the plan before and the tables after."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.watch import output

if TYPE_CHECKING:  # it imports torch
    from tasks.bench.front.compare import Outcome, Wanted

NAME, HEADROOM = "front", "headroom"
TITLE = "searches and baselines side by side, at equal budgets"
REACH = "a higher hypervolume than every baseline"
HEADROOM_TITLE = "generous searches of recipes, per-layer recipes, paths and deleted layers"
HEADROOM_REACH = "says what there is to gain over recipes"


def bench_front(profile: str | None, wanted: dict[str, Any], as_json: bool) -> None:
    """Compare searches on a profile, and print what came of it.

    Args:
        profile: by default the first of params.yaml.
        wanted: the fields of ``tasks.bench.front.compare.Wanted``.
        as_json: print one JSON object in place of tables.
    """
    from flows.processes import hold
    from flows.stage import prepare
    from tasks.progress import Progress
    from tasks.workspace import open_workspace

    workspace = open_workspace(profile)
    console = output(stderr=True)
    prepare(workspace)
    from tasks.bench.front.compare import Wanted, compare_fronts

    asked: Wanted = Wanted(**wanted)
    asked.chosen()
    lock = workspace.state / "locks" / f"bench-front-{workspace.name}.lock"
    with hold(lock, f"a benchmark of {workspace.name}", console.print), Progress(None, console) as bars:
        outcome = compare_fronts(workspace, asked, bars, lambda plan: console.print(str(plan)))
    if as_json:
        sys.stdout.write(json.dumps(data(outcome), indent=1, ensure_ascii=False) + "\n")
        return
    from tasks.bench.front.sheets import sheets

    for sheet in outcome.headroom:
        output().print(sheet.rich(), sheet.note, "")
    for study in outcome.studies:
        output().print(f"{study.profile}, {'with depth as an objective' if study.depth else 'task scores alone'}\n")
        for sheet in sheets(study):
            output().print(sheet.rich(), sheet.note, "")


def data(outcome: Outcome) -> dict[str, Any]:
    """For ``--json``: tables, comparisons as numbers, and where the page is."""
    from tasks.bench.front.sheets import sheets

    return {
        "page": outcome.page.name,
        **({"headroom": [asdict(sheet) for sheet in outcome.headroom]} if outcome.headroom else {}),
        "studies": [
            {
                "profile": study.profile,
                "depth": study.depth,
                "tables": [asdict(sheet) for sheet in sheets(study)],
                "comparisons": {
                    title: [asdict(one) | {"significant": one.significant} for one in made]
                    for title, made in study.comparisons().items()
                },
                "noninferiority": [asdict(one) for one in study.noninferiority()],
            }
            for study in outcome.studies
        ],
    }
