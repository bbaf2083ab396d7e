"""`hm3 bench`: the lab, a command a benchmark. What one runs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from flows.commands.options import JsonOption, ProfileOption

app = typer.Typer(
    help="Measure hm3 against other ways to do the same.\n\nWhat was measured is kept in docs/results/raw/, so an "
    "interrupted benchmark goes on where it ended. Then its page in docs/results/ is written again.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


def _list(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


@app.callback()
def bench(
    listed: Annotated[bool, typer.Option("--list", callback=_list, is_eager=True, help="The same as --help.")] = False,
) -> None:
    """Take the one option that belongs to no benchmark; the group's help is said above."""


Repetitions = Annotated[int | None, typer.Option(help="Of each case. Default: the benchmark's own number.")]
Small = Annotated[bool, typer.Option("--small", help="Try it on small input; measures nothing, writes no result.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what is measured already.")]
Seeds = Annotated[
    int | None, typer.Option(help="Searches of each arm on each family. Default: the benchmark's own number.")
]
Families = Annotated[int | None, typer.Option(help="Families to make, where they are made. Default: 3.")]
Arms = Annotated[list[str] | None, typer.Option(help="Run only this arm; may be repeated.")]
Budget = Annotated[int | None, typer.Option(help="Item evaluations of each run. Default: the benchmark's own number.")]
NoDepth = Annotated[bool, typer.Option("--no-depth", help="Task scores are all objectives.")]

ENGINE = {
    "merge": "Merge with `hm3 merge` and with mergekit's command: time and memory of whole processes.",
    "candidate": "Score candidates in memory, and with mergekit to disk and lm-eval on the folder.",
    "prefix": "Score paths with their shared prefixes computed once, and one by one.",
    "memory": "Watch the resident memory while anchors are added to a pool.",
    "scale": "Time a candidate as layers, experts, width and items grow.",
    "ray": "Score candidates on Ray workers of this machine and in one process; reckon what larger clusters take.",
    "load": "Show a front of 1,000 members and an archive of a million candidates; open a journal of 5,000 segments.",
}
"""Benchmarks of the engine: each says what it compares, and checks that the results are right."""

SEARCHES = {
    "front": "Compare searches and baselines at equal budgets.\n\nThe default is four searches of each arm on each of "
    "three families. Runs that ended are kept; one that was interrupted finds its scores again. Writes "
    "docs/results/search.md and a page for each profile.\n\nExample: `hm3 bench front --profile tiny --seeds 4`",
    "confirm": "Compare searches on families that nobody has looked at.\n\nThese have other seeds than those of "
    "`front`, which profiles and search were changed for."
    "\n\nExample: `hm3 bench confirm --profile tiny-vision --families 6`",
    "headroom": "Search recipes, paths and deleted layers generously, to see what there is to gain.\n\nThe default is "
    "one search of each kind with ten times `search.budget`, without learning. Writes docs/results/headroom.md."
    "\n\nExample: `hm3 bench headroom --profile tiny --no-depth`",
}
"""Comparisons of searches."""


def of_engine(name: str) -> Callable[..., None]:
    """The command of a benchmark of the engine."""

    def command(
        repetitions: Repetitions = None, small: Small = False, fresh: Fresh = False, as_json: JsonOption = False
    ) -> None:
        from flows.bench.engine import bench_engine

        bench_engine(name, repetitions, small=small, fresh=fresh, as_json=as_json)

    return command


def of_searches(name: str) -> Callable[..., None]:
    """The command of a comparison of searches."""

    def command(
        profile: ProfileOption = None,
        seeds: Seeds = None,
        families: Families = None,
        arm: Arms = None,
        budget: Budget = None,
        no_depth: NoDepth = False,
        small: Small = False,
        fresh: Fresh = False,
        as_json: JsonOption = False,
    ) -> None:
        from flows.bench.searches import bench_searches

        asked = {"seeds": seeds, "families": families, "arms": tuple(arm or ()), "budget": budget}
        bench_searches(name, profile, asked | {"depth": not no_depth, "small": small, "fresh": fresh}, as_json)

    return command


for _name, _help in ENGINE.items():
    _example = f"Example: `hm3 bench {_name} --repetitions 3`"
    app.command(_name, help=f"{_help}\n\nWrites docs/results/engine.md.\n\n{_example}")(of_engine(_name))
for _name, _help in SEARCHES.items():
    app.command(_name, help=_help)(of_searches(_name))


@app.command()
def amortisation(
    profile: ProfileOption = None,
    seeds: Seeds = None,
    families: Families = None,
    budget: Budget = None,
    as_json: JsonOption = False,
) -> None:
    """Search for new preferences, from where a search stands and from nothing.

    Both are compared with the members of the front, which cost nothing. Writes docs/results/amortisation.md.

    Example: `hm3 bench amortisation --profile tiny --families 3`
    """
    from flows.bench.searches import bench_searches

    bench_searches("amortisation", profile, {"seeds": seeds, "families": families, "budget": budget}, as_json)


@app.command()
def faults(
    minutes: Annotated[float, typer.Option(help="How long runs are disturbed.", min=0)] = 60.0,
    fault: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the times at which runs are disturbed.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Kill and disturb whole runs at random times, and see whether the next run makes good for it.

    Writes docs/results/faults.md.

    Example: `hm3 bench faults --minutes 10 --fault "stage killed"`
    """
    from flows.bench.faults import bench_faults

    bench_faults(minutes, seed, fault or [], as_json)


@app.command()
def hostile(
    cases: Annotated[int, typer.Option(help="Changed files to try.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Of kinds, files and changes.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    small: Small = False,
    as_json: JsonOption = False,
) -> None:
    """Hand hm3 damaged and hostile files of every kind, and count what it makes of them.

    Fails where one ends in a traceback, an unusable success or a hang. Writes docs/results/hostile.md.

    Example: `hm3 bench hostile --cases 1000 --seed 7`
    """
    from flows.bench.hostile import bench_hostile

    bench_hostile(cases, seed, workers, small=small, as_json=as_json)


@app.command()
def repair(
    family: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    small: Small = False,
    fresh: Fresh = False,
    as_json: JsonOption = False,
) -> None:
    """Leave layers out, repair the seams in several ways, and see what is lost.

    Families: smollm2, tiny-20, vision-10. Studies: depth, cost, tokens, moves, foreign, halves, savings. Writes
    docs/results/repair.md.

    Example: `hm3 bench repair --family smollm2 --study depth`
    """
    from flows.bench.repair import bench_repair

    bench_repair(family or [], study or [], small=small, fresh=fresh, as_json=as_json)
