"""A model or a search for one preference, as `hm3 choose` and the deployment `hm3-search` start them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flows.processes.settle import claimed
from models.errors import BadInput
from tasks.project.workspace import Workspace

if TYPE_CHECKING:
    from tasks.front.choice import Wish
    from tasks.front.found import Made
    from tasks.front.front import Front
    from tasks.project.progress import Progress
    from tasks.trials.targeted import Targeted


def search_on(
    workspace: Workspace, front: Front, wish: Wish, count: int, progress: Progress, say: Callable[[str], None]
) -> Targeted:
    """Search on with the profile's journal to itself: two that write to it at once would stop each other.

    ``count`` candidates' cost may be spent; ``say`` gets a line if another has the journal.

    Raises:
        BadInput: no candidate may be spent, a file is missing, or nothing meets the requirements.
    """
    if count < 1:
        raise BadInput(f"--search {count}: give the number of candidates, at least 1")
    with claimed(workspace, f"search for a preference, {count}", say, lock=workspace.name, computes=True):
        from tasks.trials.targeted import search_for

        return search_for(workspace, front, wish, count, progress)


def made_for(
    workspace: Workspace, front: Front, wish: Wish, evaluate: bool, progress: Progress, say: Callable[[str], None]
) -> Made:
    """Let the actor make a model for a wish; with the profile's journal to itself, as scores are written to it.

    Raises:
        BadInput: a file is missing.
    """
    with claimed(workspace, "a model for a preference", say, lock=workspace.name, computes=True):
        from tasks.trials.made import make_for

        return make_for(workspace, front, wish, evaluate, progress)
