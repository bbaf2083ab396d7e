"""One stage, bare: what dvc.yaml calls. Nothing here knows of DVC, Prefect or MLflow."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError

from flows.processes.children import hold, watch_owner
from flows.processes.retry import TRY_AGAIN, is_full, may_pass
from models.errors import BadInput, Failed, one_line
from tasks.project.offline import offline_environment
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace, open_workspace, remote_state

STAGES = ("zoo", "sample", "dataset", "train", "search", "pareto")

OWNER = "HM3_RUN_PID"
"""Variable that names the process for which a stage runs; the stage ends with it."""


def run_stage(name: str, profile: str | None, console: Console) -> None:
    """Run ``tasks.NAME.run`` in the project's folder.

    Args:
        name: the stage.
        profile: the model family, by default the first of params.yaml.
        console: where bars and messages go.

    Raises:
        BadInput: there is no such stage, or the stage finds something that the user can mend.
        Failed: the stage's work failed, or the disk is full.
        SystemExit: with ``TRY_AGAIN``: a disk or a network did not answer.
    """
    if name not in STAGES:
        raise BadInput(f"stage {name!r}: unknown; there are {', '.join(STAGES)}")
    owner = os.environ.get(OWNER)
    if owner:
        watch_owner(int(owner))
    workspace = open_workspace(profile)
    lock = workspace.state / "locks" / f"{workspace.name}.lock"
    with hold(lock, f"stage {name}@{workspace.name}", console.print):
        prepare(workspace)
        run: Callable[[Workspace, Progress], None] = importlib.import_module(f"tasks.{name}").run
        events = workspace.state / "progress" / workspace.name / f"{name}.jsonl"
        try:
            with Progress(events, console) as progress:
                run(workspace, progress)
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_full(error):
                said = one_line(error, 200)
                raise Failed(
                    f"{name}@{workspace.name}: {said}: make room and run it again; what was scored is kept"
                ) from error
            if not (isinstance(error, OSError) and may_pass(error)):
                raise
            traceback.print_exc()
            sys.stderr.write(f"hm3: {one_line(error)}\n")
            sys.exit(TRY_AGAIN)


def prepare(workspace: Workspace) -> None:
    """Go to the project's folder, offline, with a fixed number of threads and deterministic kernels.

    Waiting OpenMP threads must not spin: on a busy machine that made two threads 5 to 24 times slower. Libraries read
    these variables when they are imported, so torch and datasets must not be imported before.
    """
    settle(workspace.root, workspace.state, workspace.profile.threads, hub=workspace.profile.uses_hub)


def settle(root: Path, state: Path, threads: int, *, hub: bool) -> None:
    """:func:`prepare` before there is a profile.

    Args:
        root: the project's folder.
        state: its state folder.
        threads: of torch on the CPU.
        hub: whether models or data may come from the hub.
    """
    settings = {
        "HM3_STATE": remote_state() or str(state),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    os.environ.update(settings | offline_environment(state, hub=hub))
    os.chdir(root)
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
