"""`hm3 promote`: the command line's side of :mod:`tasks.registry.promotion`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import JsonOption, ProfileOption, emit, progress_of_command
from flows.screen.watch import output
from models.errors import BadInput, Failed

if TYPE_CHECKING:
    from tasks.project.workspace import Workspace


def promote(
    member: Annotated[
        str | None,
        typer.Argument(help="Id of a member or of what a search found, its beginning, its name, or an alias."),
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias that is to name it. Default: champion.")] = None,
    prefer: Annotated[
        str | None,
        typer.Option(metavar="OBJECTIVE=WEIGHT,…", help="Instead of a member: what matters how much."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move it even if a gate fails; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")] = "",
    rollback: Annotated[bool, typer.Option("--rollback", help="Bring the alias back to the version before.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Show who moved what, when and why.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move an alias of the MLflow registry to a member, or to what a search found, if it passes the gates; or back.

    The member is fetched from the registry and scored again on `selection`; it must score as recorded, not below the
    alias's present holder by more than the profile's tolerance, and not below the profile's floors.

    Example: `hm3 promote balanced --alias champion`, or `hm3 promote --prefer translation=0.5,math=0.5`, or
    `hm3 promote --rollback`
    """
    if rollback and history:
        raise BadInput("promote: --rollback and --history: give one of them")
    other = "--rollback" if rollback else "--history"
    if (rollback or history) and (member or prefer or force or (history and (alias or reason))):
        raise BadInput(f"promote: {other} takes no member and nothing that picks or forces one; leave that out")
    from flows.processes.settle import prepare
    from tasks.project.workspace import open_workspace

    workspace = open_workspace(profile)
    if history:
        show_history(workspace, as_json=as_json)
        return
    if rollback:
        from tasks.registry.promotion import CHAMPION
        from tasks.registry.promotion import rollback as bring_back

        move = bring_back(workspace, alias or CHAMPION, reason)
        if as_json:
            emit(asdict(move))
        else:
            output().print(f"{move.alias} is back at version {move.to}, was {move.before}", highlight=False)
        return
    prepare(workspace)
    send(workspace, as_json=as_json, member=member, alias=alias, prefer=prefer, force=force, reason=reason)


def send(workspace: Workspace, *, as_json: bool, alias: str | None, **given: str | bool | None) -> None:
    """Look at the gates, show them, and move the alias; raises Failed where a gate holds it up."""
    from models.files import validate
    from tasks.registry.gates import gate_table
    from tasks.registry.promotion import CHAMPION, Request
    from tasks.registry.promotion import promote as decide

    request = validate(Request, {"alias": CHAMPION if alias is None else alias, **given}, "promote")
    with progress_of_command() as progress:
        result = decide(workspace, request, progress)
    if as_json:
        emit(result.to_json())
    elif result.decision.checks:
        output().print(gate_table(result.decision.title, result.decision.checks), "")
    if result.refused:
        raise Failed(str(result))
    if not as_json:
        output().print(str(result), highlight=False)


def show_history(workspace: Workspace, *, as_json: bool) -> None:
    """The audit trail, and what it doesn't know of."""
    from tasks.registry import trail
    from tasks.registry.promotion import history

    name, moves, notes = history(workspace)
    if as_json:
        emit({"name": name, "moves": trail.as_data(moves), "notes": notes})
        return
    if moves:
        output().print(trail.history_table(name, moves))
    else:
        output().print(f"{name}: nothing was promoted yet", highlight=False)
    for note in notes:
        output().print(note, style="yellow", highlight=False)
