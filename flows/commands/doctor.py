"""`hm3 doctor`, and what looks at a profile by the same checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.processes.settle import prepare
from flows.screen.watch import shown

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.doctor.diagnosis import Check, Diagnosis
    from tasks.project.progress import Progress


def look_aloud(profile: str | None, console: Console, root: Path | None = None) -> Diagnosis:
    """All checks of a profile, each shown as soon as it is known, and what follows from them.

    Raises:
        BadInput: params.yaml or the profile is refused.
    """
    with shown(console) as progress:
        diagnosis = look(profile, root, lambda check: check.show(console), progress)
    diagnosis.show(console)
    return diagnosis


def look(
    profile: str | None,
    root: Path | None = None,
    tell: Callable[[Check], None] = lambda check: None,
    progress: Progress | None = None,
) -> Diagnosis:
    """All checks of a profile, with the libraries set up as stages have them; ``tell`` is given each when it is known.

    Raises:
        BadInput: params.yaml or the profile is refused.
    """
    from flows.servers.up import in_use
    from tasks.project.workspace import open_workspace

    workspace = open_workspace(profile, root)
    prepare(workspace)
    from tasks.doctor.doctor import examine

    return examine(workspace, in_use(workspace.state), tell, progress)
