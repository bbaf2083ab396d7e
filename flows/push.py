"""What a run made goes to DVC's default remote: a clone of the project has the front then, without computing it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.local import environment, last_line, run_logged
from models.errors import BadInput, Failed
from tasks.buckets import default_remote, require_remote
from tasks.workspace import Workspace

RETRY_SECONDS = [5.0, 30.0, 120.0]
"""Waits before another try: what is there already is not sent again."""


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another try may help."""
    try:
        state.result()
    except BadInput:
        return False
    except Failed:
        return True
    return False


@task(
    name="push",
    task_run_name="push",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def push(workspace: Workspace, stages: Sequence[str]) -> str:
    """Send the outs of stages to the default remote; what is there is left alone.

    Args:
        workspace: the project whose dvc.lock says which versions.
        stages: such as ``search@tiny``.

    Returns:
        What was done, in words.

    Raises:
        BadInput: DVC has no default remote.
        Failed: DVC could not send everything.
    """
    require_remote(workspace.root)
    log = workspace.state / "logs" / f"push-{workspace.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "push", *stages]
    if run_logged(command, cwd=workspace.root, env=environment(workspace.state), log=log) != 0:
        raise Failed(f"dvc push: {last_line(log)}; see {log}; `dvc push` goes on from there")
    return f"outs are in the DVC remote {default_remote(workspace.root)}: {last_line(log)}"
