"""`hm3 evaluate`: scores of a checkpoint, a recipe or a member, on the profile's objectives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import JsonOption, ProfileOption, check_split, emit, progress_of_command
from flows.processes.settle import prepare
from flows.screen.watch import output


def evaluate(
    target: Annotated[
        str, typer.Argument(help="Checkpoint folder, here or in S3, recipe file, or member of the front.")
    ],
    profile: ProfileOption = None,
    split: Annotated[str, typer.Option(help="Items: test, selection or search.")] = "test",
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint, a recipe or a member of the front on the profile's objectives.

    Example: `hm3 evaluate runs/tiny/zoo/math --split selection`
    """
    from tasks.project.workspace import open_workspace

    workspace, here = open_workspace(profile), Path.cwd()
    check_split(split)
    prepare(workspace)
    from tasks.registry.aliases import target_of
    from tasks.scoring.evaluation import evaluate as evaluation_of
    from tasks.storage.folders import fetched

    with progress_of_command() as progress, fetched(target, progress, workspace.state / "scratch") as found:
        model, place = target_of(workspace, found, here)
        evaluation = replace(evaluation_of(workspace, model, split, place, progress), target=target)
    if as_json:
        emit(evaluation.to_json())
    else:
        output().print(evaluation.shown())
