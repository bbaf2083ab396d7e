"""`hm3 bench`: measures the engine against other ways to do the same."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from flows.bench.searches import SEARCHES, bench_front
from flows.screen.watch import output

FAULTS = {"faults": ("pipelines that are killed and disturbed at random times", "every next run gives the same outs")}
"""What is no comparison."""


def bench(
    name: Annotated[
        str | None,
        typer.Argument(
            help="merge, candidate, prefix, memory, scale, ray, front, confirm, headroom, amortisation or faults."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List all benchmarks and what they should reach.")] = False,
    repetitions: Annotated[int | None, typer.Option(help="Of each case. Default: the benchmark's own number.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Try it on small input; measures nothing, writes no result.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is measured already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    profile: Annotated[
        str | None, typer.Option(help="front, confirm, headroom: model family. Default: the first of params.yaml.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="front, confirm, headroom: searches of each arm on each family. Default: 4, headroom 1."),
    ] = None,
    families: Annotated[
        int | None, typer.Option(help="front, confirm, headroom: families to make, where they are made. Default: 3.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="front, confirm, headroom: run only this arm; may be repeated.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="Item evaluations of each run. Default: search.budget, headroom ten times that."),
    ] = None,
    no_depth: Annotated[
        bool, typer.Option("--no-depth", help="front, confirm, headroom: task scores are all objectives.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="faults: how long runs are disturbed.", min=0)] = 60.0,
    fault: Annotated[list[str] | None, typer.Option(help="faults: only this one; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="faults: of the times at which runs are disturbed.", min=0)] = 0,
) -> None:
    """Run a benchmark: each measures two sides in one run, compares their results, and holds the ratio to a target.

    A repetition that was measured is kept in docs/results/raw/, so an interrupted run goes on where it ended. Then
    docs/results/engine.md is written again.

    `front` runs searches and baselines side by side, at equal budgets: every run that ended is kept likewise, one that
    was interrupted finds its scores again, and docs/results/search.md is written. `confirm` runs the same on three
    families of other seeds, which nobody has looked at while a profile or the search was changed. `headroom` measures
    in the same way what there is to gain, with ten times the budget, for docs/results/headroom.md; `amortisation`,
    what a trained agent is worth for new preferences, for docs/results/amortisation.md. `faults` kills and disturbs
    whole runs at random times, for as long as it is told to, and prints how many the next run made good for, for
    docs/results/faults.md.

    Example: `hm3 bench prefix --repetitions 3`, `hm3 bench front --profile tiny --seeds 4`
    """
    from flows.processes.children import hold
    from flows.stage import prepare
    from models.errors import BadInput
    from tasks.bench.engine.registry import check_name
    from tasks.project.progress import Progress
    from tasks.project.workspace import open_workspace, profiles

    if listed:
        _list(as_json)
        return
    if name is None:
        raise BadInput("NAME: missing; `hm3 bench --list` shows all benchmarks")
    asked = {"seeds": seeds, "families": families, "arms": tuple(arm or ()), "budget": budget, "depth": not no_depth}
    if name == "faults":
        from flows.bench.faults import faults_command

        faults_command(minutes, seed, fault or [], as_json)
        return
    if name in SEARCHES:
        if repetitions is not None:
            raise BadInput(f"--repetitions: is not for {name}; say --seeds and --families")
        given = {key: value for key, value in asked.items() if value is not None}
        if name == "amortisation" and (arm or no_depth or fresh or small):
            raise BadInput(f"{name}: takes --profile, --seeds, --families and --budget alone")
        bench_front(name, profile, {**given, "fresh": fresh, "small": small}, as_json)
        return
    check_name(name)
    if profile or no_depth or arm or any(asked[key] is not None for key in ("seeds", "families", "budget")):
        names = ", ".join(SEARCHES)
        raise BadInput(f"{name}: --profile, --seeds, --families, --arm, --budget and --no-depth are for {names} alone")
    first = open_workspace()
    workspace = open_workspace("tiny") if "tiny" in profiles(first.root) else first
    console = output(stderr=True)
    prepare(workspace)
    from tasks.bench.engine.run import run_benchmark
    from tasks.bench.engine.summary import steps_table, verdict_data, verdict_table

    with hold(workspace.state / "locks" / "bench.lock", "a benchmark", console.print), Progress(None, console) as bars:
        outcome = run_benchmark(workspace, name, bars, repetitions=repetitions, small=small, fresh=fresh)
    if as_json:
        data = verdict_data(outcome.benchmark, outcome.verdicts, outcome.steps)
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return
    output().print(verdict_table(outcome.benchmark, outcome.verdicts))
    if outcome.steps:
        output().print("", steps_table(outcome.steps))


def _list(as_json: bool) -> None:
    """All benchmarks and what they should reach."""
    from rich.table import Table

    from tasks.bench.engine.registry import benchmarks

    known = benchmarks()
    if as_json:
        data = [{"name": one.name, "title": one.title, "reach": one.reach} for one in known]
        data += [{"name": one, "title": title, "reach": reach} for one, (title, reach) in (SEARCHES | FAULTS).items()]
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("benchmark", "measures", "to reach"):
        table.add_column(column)
    for one in known:
        table.add_row(one.name, one.title, one.reach)
    for other, words in (SEARCHES | FAULTS).items():
        table.add_row(other, *words)
    output().print(table)
