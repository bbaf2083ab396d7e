"""Promotion as a Prefect flow: the gates as a table on the run's page, and the same function as `hm3 promote`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from flows.form import project_params
from flows.processes.settle import prepare
from flows.screen.artifacts import key_of
from models.errors import Failed
from models.files import validate
from models.text import code, markdown
from tasks.project.progress import Progress
from tasks.project.workspace import find_root, open_workspace


@flow(name="promote", persist_result=False)
def promote(
    profile: str = project_params().profiles[0],
    member: str = "",
    alias: str = "champion",
    prefer: str = "",
    force: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Move an alias of the MLflow registry to a member of the front, or to what a search found, if it passes the gates.

    Args:
        profile: The model family, a file in profiles/.
        member: Id of a member or of what a search found, or an alias such as `balanced` or `best-math`.
        alias: Alias that is to name it: letters, digits, _ and -.
        prefer: Instead of a member: what matters how much, such as `translation=0.5,math=0.3`.
        force: Move the alias even if a gate fails; needs a reason.
        reason: Why; kept in the audit trail.
    """
    workspace = open_workspace(profile, find_root())
    prepare(workspace)
    from tasks.registry import promotion
    from tasks.registry.gates import gate_markdown

    given = {"member": member or None, "alias": alias, "prefer": prefer or None, "force": force, "reason": reason}
    result = promotion.promote(workspace, validate(promotion.Request, given, "promote"), Progress())
    create_markdown_artifact(
        gate_markdown(result.decision.title, result.decision.checks) + f"\n\n{markdown(str(result))}",
        key=key_of("promotion", workspace.name),
        description=f"Gates of the last promotion of {code(workspace.name)}",
    )
    get_run_logger().info("%s", result)
    if result.refused:
        raise Failed(str(result))
    return result.to_json()
