"""What Prefect's pages show of a run: progress of the stages, the front as a table and as images, links."""

from __future__ import annotations

import base64
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.screen.watch import measure, percent
from models.text import code
from models.text import markdown as escaped
from tasks.project.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.front.front import Front

UPDATE_SECONDS = 2.0
"""Shortest time between two updates of a progress artifact."""


def key_of(*words: str) -> str:
    """A key that Prefect accepts: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class Gauge:
    """The progress artifact of one task: made with the first event, so that short stages have none."""

    def __init__(self, stage: str):
        self.stage = stage
        self._id: UUID | None = None
        self._last = 0.0

    def show(self, event: dict[str, Any]) -> None:
        """Show how far a bar is, now and then."""
        share = percent(event)
        if share is None or time.monotonic() - self._last < UPDATE_SECONDS:
            return
        self._last = time.monotonic()
        self._set(share, escaped(f"{event['description']}: {measure(event)}"))

    def finish(self) -> None:
        """The stage is done."""
        if self._id is not None:
            self._set(100.0, "done")

    def _set(self, share: float, text: str) -> None:
        with suppress(HTTPError):  # a server that is away: the stage goes on without
            if self._id is None:
                made = create_progress_artifact(share, key=key_of("progress", self.stage), description=text)
                self._id = cast(UUID, made)
            else:
                update_progress_artifact(self._id, share, description=text)


def show_front(workspace: Workspace, front: Front, report: Path, tracked: str | None, *, images: bool) -> None:
    """Artifacts of a finished run; ``tracked``: its page in MLflow, if any; ``images``: there is something to draw."""
    from tasks.front.running_costs import known_costs
    from tasks.front.table import markdown
    from tasks.report.figures import of_front, of_stage

    name = workspace.name
    create_markdown_artifact(
        markdown(front, front.splits[-1], known_costs(workspace)),
        key=key_of("front", name),
        description=f"Members of the front of {code(name)}, next to base, experts and plain merges",
    )
    drawn = of_stage(workspace, "search") | of_front(workspace) if images else {}
    for title, figure in drawn.items():
        create_image_artifact(data_uri(figure), key=key_of("plot", title, name), description=f"{title} of {code(name)}")
    # A browser opens no file from a page of a server, but MLflow's pages show the report that a run keeps.
    shown = report.as_uri() if tracked is None else f"{tracked}/artifacts/{report.name}"
    create_link_artifact(shown, key=key_of("report", name), link_text=f"report of {escaped(name)}")
    if tracked is not None:
        create_link_artifact(tracked, key=key_of("mlflow", name), link_text=f"MLflow run of {escaped(name)}")


def data_uri(figure: Figure) -> str:
    """A figure as an address that carries the image itself, so that no server has to serve it."""
    from tasks.report.style import save_png

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save_png(figure, path)
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
