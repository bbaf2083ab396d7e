"""`hm3 choose`: the command line's side of :mod:`tasks.front.choice` and :mod:`flows.targeted`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import JsonOption, ProfileOption, emit, progress_of_command
from flows.screen.watch import output


def choose(
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="OBJECTIVE=WEIGHT,…", help="What matters how much. Default: all tasks alike, depth ignored."
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="OBJECTIVE>=NUMBER", help="A bound on a score; may be given several times."),
    ] = None,
    max_layers: Annotated[int | None, typer.Option(help="Most layers that a token may pass.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score the model that is made for this, and keep it under its id.")
    ] = False,
    search: Annotated[
        int | None,
        typer.Option(metavar="N", help="First search on for exactly this, at the cost of N fully scored candidates."),
    ] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the model for a preference: the nearest member of the front, and one that is made for exactly this.

    Members are chosen by their scores on the selection split. With `--prefer` the trained actor makes a model for this
    very preference, of as many layers as it asks for; its scores are foreseen, and with `--evaluate` measured.

    With `--search N` the search first goes on for something better, from all that is known. What it finds has an
    id, which `hm3 export`, `hm3 evaluate` and `hm3 promote` take; the front stays as it is. The same command gives the
    same model, and one that was interrupted goes on.

    Example: `hm3 choose --prefer translation=0.5,math=0.3,code=0.2 --require 'math>=0.6' --max-layers 11`, or
    `hm3 choose --prefer translation=0.5,math=0.3,code=0.2 --search 100`
    """
    from models.errors import BadInput
    from tasks.front.choice import Wish, choose_among
    from tasks.front.front import Front
    from tasks.front.table import made_table, member_data, member_table
    from tasks.project.workspace import open_workspace

    workspace = open_workspace(profile)
    front = Front.read(workspace.run)
    wish = Wish.parse(front, prefer, require or [], max_layers)
    found = made = None
    if evaluate or (prefer is not None and search is None):
        from flows.targeted import made_for

        say = output(stderr=True).print
        try:
            with progress_of_command() as progress:
                made = made_for(workspace, front, wish, evaluate, progress, say)
        except BadInput as error:
            if evaluate:
                raise
            say(f"no model was made for exactly this: {error}", markup=False, highlight=False)
    if search is not None:
        from flows.targeted import search_on

        with progress_of_command() as progress:
            found = search_on(workspace, front, wish, search, progress, output(stderr=True).print)
    member = found.member if found else choose_among(front, front.members, wish)
    if as_json:
        more = {"search": found.to_json()} if found else {}
        emit(member_data(front, member) | more | ({"made": made.to_json()} if made else {}))
        return
    output().print(member_table(front, member))
    if found:
        output().print(str(found), highlight=False)
    if made:
        output().print("\nmade for exactly this", made_table(made), sep="\n", highlight=False)
