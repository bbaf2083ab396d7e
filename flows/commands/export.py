"""`hm3 export`: a member as a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import ProfileOption, progress_of_command
from flows.screen.watch import output


def export(
    member: Annotated[
        str, typer.Argument(help="Id of a member or of what `hm3 choose --search` found, or an alias such as balanced.")
    ],
    out: Annotated[str, typer.Argument(help="Folder to write, or s3://bucket/prefix; it must not exist yet.")],
    profile: ProfileOption = None,
) -> None:
    """Write a member of the front as a Hugging Face checkpoint with tokenizer, recipe and model card.

    Example: `hm3 export balanced exported/` or `hm3 export balanced s3://bucket/balanced`
    """
    from tasks.project.workspace import open_workspace

    workspace = open_workspace(profile)
    from tasks.front.checkpoint import write_member
    from tasks.front.front import Front
    from tasks.registry.aliases import named
    from tasks.storage.folders import destination

    found = named(workspace, Front.read(workspace.run), member)
    with progress_of_command() as progress, destination(out, progress, workspace.state / "scratch") as folder:
        write_member(workspace, found, folder, progress)
    output().print(f"{out}: member {found.id}", highlight=False)
