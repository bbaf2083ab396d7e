"""`hm3 choose --search N` as a Prefect flow: with the same parameters it finds the same model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from rich.console import Console

from flows.form import project_params
from flows.processes.settle import enter
from flows.screen.artifacts import Gauge
from flows.screen.watch import Screen
from flows.servers.gpu import slot
from flows.targeted import search_on
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.scoring.where import EngineName


@flow(name="hm3-search", persist_result=False)
def hm3_search(
    profile: str = project_params().profiles[0],
    prefer: str = "",
    require: tuple[str, ...] = (),
    max_layers: int = 0,
    search: int = 100,
    engine: EngineName = "inline",
) -> dict[str, Any]:
    """Search on for one preference, from all that is known; the front stays as it is.

    What is found has an id, by which it is exported, evaluated and promoted like a member.

    Args:
        profile: The model family, a file in profiles/.
        prefer: What matters how much, such as `translation=0.5,math=0.3`. Empty: all tasks alike, depth ignored.
        require: Bounds on scores, such as `math>=0.6`.
        max_layers: Most layers that a token may pass. 0: any number.
        search: Fully scored candidates whose cost may be spent.
        engine: Where candidates are scored: `inline`, in this process, or by the workers of a `ray` cluster.
    """
    enter()
    workspace = replace(open_workspace(profile), engine=engine)
    from tasks.front.choice import Wish
    from tasks.front.front import Front
    from tasks.front.table import member_data

    say, gauge = get_run_logger().info, Gauge(f"preference-{workspace.name}")
    screen = Screen(Console(quiet=True), say)

    def tell(event: dict[str, Any]) -> None:
        screen.event("search", event)
        gauge.show(event)

    front = Front.read(workspace.run)
    wish = Wish.parse(front, prefer.strip() or None, require, max_layers or None)
    with slot(workspace.profile.device):
        found = search_on(workspace, front, wish, search, Progress(tell=tell), say)
    gauge.finish()
    say(f"for {prefer.strip() or 'all tasks alike'}: {found.member.id}\n{found}")
    return member_data(front, found.member) | {"search": found.to_json()}
