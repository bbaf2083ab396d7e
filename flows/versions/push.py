"""What a run made goes to DVC's default remote: a clone of the project has the front then, without computing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flows.servers.local import environment, last_line, run_logged
from models.errors import Unavailable
from tasks.doctor.buckets import default_remote, require_remote
from tasks.project.workspace import Workspace

WAITS = (5.0, 30.0, 120.0)
"""Seconds before another try: what is there already is not sent again."""


def push(workspace: Workspace, stages: Sequence[str]) -> str:
    """Send the outs of stages, such as ``search@tiny``, to the default remote, and say so; what is there is left alone.

    Raises:
        BadInput: DVC has no default remote.
        Unavailable: DVC could not send everything; another try may help.
    """
    require_remote(workspace.root)
    log = workspace.state / "logs" / f"push-{workspace.name}.log"
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "push", *stages]
    if run_logged(command, cwd=workspace.root, env=environment(workspace.state), log=log) != 0:
        raise Unavailable(f"dvc push: {last_line(log)}; see {log}; `dvc push` goes on from there")
    return f"outs are in the DVC remote {default_remote(workspace.root)}: {last_line(log)}"
