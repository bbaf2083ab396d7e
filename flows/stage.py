"""One stage, bare: what dvc.yaml calls. Nothing here knows of DVC, Prefect or MLflow."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable

from rich.console import Console
from safetensors import SafetensorError

from flows.processes.retry import TRY_AGAIN, is_full, may_pass
from flows.processes.settle import claimed
from flows.screen.watch import shown
from models.errors import BadInput, Failed, Unavailable, one_line
from tasks.project.processes import end_with_owner
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace, open_workspace

STAGES = ("zoo", "sample", "dataset", "train", "search", "pareto")


def run_stage(name: str, profile: str | None, console: Console) -> None:
    """Run ``tasks.NAME.run`` in the project's folder.

    Raises:
        BadInput: there is no such stage, or the stage finds something that the user can mend.
        Failed: the stage's work failed, or the disk is full.
        SystemExit: with ``TRY_AGAIN``: a disk or a network did not answer.
    """
    if name not in STAGES:
        raise BadInput(f"stage {name!r}: unknown; there are {', '.join(STAGES)}")
    end_with_owner()
    workspace = open_workspace(profile)
    label = f"stage {name}@{workspace.name}"
    with claimed(workspace, label, console.print, lock=workspace.name, computes=True):
        run: Callable[[Workspace, Progress], None] = importlib.import_module(f"tasks.{name}").run
        events = workspace.state / "progress" / workspace.name / f"{name}.jsonl"
        try:
            with shown(console, events) as progress:
                run(workspace, progress)
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_full(error):
                said = one_line(error, 200)
                raise Failed(
                    f"{name}@{workspace.name}: {said}: make room and run it again; what was scored is kept"
                ) from error
            if not (isinstance(error, OSError | Unavailable) and may_pass(error)):
                raise
            traceback.print_exc()
            sys.stderr.write(f"hm3: {one_line(error)}\n")
            sys.exit(TRY_AGAIN)
