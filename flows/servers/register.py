"""What hm3 keeps on a Prefect server: deployments, the limit of GPUs, and the end of runs that are gone.

``python -m flows.servers.register`` in the project's folder. Repeated it changes nothing but deployments, which
follow prefect.yaml and params.yaml; the limit and the automation belong to the user once they are there.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.servers.gpu import ensure_limit
from tasks.project.workspace import read_yaml

AUTOMATION = "hm3: a run without a heartbeat has crashed"

SILENCE = timedelta(minutes=10)
"""Time without a heartbeat after which a run counts as gone; Prefect's default is a heartbeat every three minutes."""


def main() -> None:
    """Register everything on the server of ``PREFECT_API_URL``; exits as `prefect deploy` does."""
    with get_client(sync_client=True) as client:
        ensure_automation(client)
        pools = {one.name for one in client.read_work_pools()}
    ensure_limit()
    sys.exit(deploy(Path.cwd(), pools))


def deploy(root: Path, pools: set[str]) -> int:
    """Register the deployments of ``prefect.yaml`` whose work pool the server has; the exit status of Prefect."""
    described: list[dict[str, Any]] = read_yaml(root / "prefect.yaml")["deployments"]
    names = [one["name"] for one in described if one["work_pool"]["name"] in pools]
    wanted = [word for name in names for word in ("--name", name)]
    return subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", *wanted], cwd=root).returncode


def ensure_automation(client: SyncPrefectClient) -> None:
    """Make the automation that ends runs whose process is gone; a server of one's own has none by itself."""
    if client.read_automations_by_name(AUTOMATION):
        return
    ended = (f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "flow", "prefect.resource.name": ["hm3", "hm3-search", "promote"]}
        ),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ended},
        threshold=1,
        within=SILENCE,
    )
    crash = ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {SILENCE}: its process is gone.")
    about = "A run that was killed with its machine would stay Running for ever."
    client.create_automation(AutomationCore(name=AUTOMATION, description=about, trigger=trigger, actions=[crash]))


if __name__ == "__main__":
    main()
