"""`hm3 doctor`, and what looks at a profile by the same checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.processes.settle import prepare

if TYPE_CHECKING:
    from tasks.doctor.doctor import Diagnosis


def look(profile: str | None, root: Path | None = None) -> Diagnosis:
    """All checks of a profile, with the libraries set up as stages have them.

    Raises:
        BadInput: params.yaml or the profile is refused.
    """
    from flows.servers.up import in_use
    from tasks.project.workspace import open_workspace

    workspace = open_workspace(profile, root)
    prepare(workspace)
    from tasks.doctor.doctor import examine

    return examine(workspace, in_use(workspace.state))
