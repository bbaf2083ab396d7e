"""`hm3 run`: everything around the flow. A Prefect server is there, and nothing stays behind."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console

from flows.processes.settle import claimed
from flows.screen.watch import Screen
from flows.servers.api import prefect_api
from flows.versions import reproduce
from flows.versions.experiments import with_settings
from tasks.families.profile import list_profile
from tasks.project.workspace import find_root, open_workspace
from tasks.scoring.where import engine_name


def run_pipeline(
    profile: str | None, settings: Sequence[str], *, fresh: bool, push: bool, engine: str | None, console: Console
) -> dict[str, Any]:
    """Run the flow in this process, with the options of `hm3 run`; gives what there is to say about the front.

    Raises:
        BadInput: parameters, models or data can't be used.
        Failed: a stage or a server failed.
    """
    root = find_root()
    workspace = open_workspace(profile, root)
    if workspace.name not in workspace.params.profiles:
        list_profile(root, workspace.name)
        console.print(f"params.yaml: {workspace.name} is listed under profiles now", highlight=False)
        workspace = open_workspace(workspace.name, root)
    if push:
        from tasks.doctor.buckets import require_remote

        require_remote(root)
    workspace = replace(workspace, engine=engine_name(engine))
    params = with_settings(root, settings, workspace.profile.params) if settings else workspace.params
    label = f"hm3 run --profile {workspace.name}"
    with (
        Screen(console) as screen,
        claimed(workspace, label, screen.line, lock="run", computes=False),
        prefect_api(workspace.state) as server,
    ):
        screen.spin("starting" if server is None else "starting a Prefect server for this run")
        asked = reproduce.ask(workspace) if params == workspace.params else None
        from flows.form import filled
        from flows.pipeline import as_flow, drain, run_all

        if server is not None:
            server.wait()
        screen.clear()
        # Prefect ends the flow in good order, and then sends the signal once more.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run = partial(run_all, workspace, screen, params, fresh=fresh, push=push, asked=asked)
        shown = {"profile": workspace.name, "fresh": fresh, "push": push, "engine": workspace.engine}
        try:
            return as_flow(run, **shown, **filled(params))
        except KeyboardInterrupt:
            screen.line("interrupted; the next `hm3 run` goes on from here", "yellow")
            raise
        finally:
            drain()
