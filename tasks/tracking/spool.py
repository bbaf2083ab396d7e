"""What goes to MLflow while it does not answer: kept in the state folder, and sent in order when it answers again."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from models.errors import one_line
from tasks.project.records import read_json, write_text
from tasks.project.workspace import Workspace
from tasks.tracking.messages import Message, send
from tasks.tracking.mlflow import is_away

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "spooled-"
"""How the id of a run begins that MLflow doesn't know yet."""


def spool_of(workspace: Workspace) -> Spool:
    """What is kept of a profile's runs."""
    return Spool(workspace.state / "mlflow" / "spool" / workspace.name)


class Spool:
    """Messages about the runs of one profile, a file each.

    Args:
        folder: where they are kept; made when there is one to keep.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def keep(self, message: Message, files: Path | None = None) -> str:
        """Write a message down, with a copy of its files; the id of its run."""
        run = message.run or f"{PREFIX}{uuid.uuid4().hex}"
        last = max((int(one.name[:20]) for one in self._messages()), default=0)
        name = f"{max(time.time_ns(), last + 1):020d}-{os.getpid()}"  # in order though the clock is set back
        if files is not None:
            copy = shutil.copytree if files.is_dir() else shutil.copy
            target = self.folder / f"{name}.files" / files.name
            target.parent.mkdir(parents=True)
            copy(files, target)
        write_text(self.folder / f"{name}.json", json.dumps(asdict(replace(message, run=run))))
        return run

    def __len__(self) -> int:
        return len(self._messages())

    def id_of(self, run: str) -> str:
        """The id of a run in MLflow, if it was kept here and is sent; else the id as it is."""
        return self._ids().get(run, run)

    def deliver(self, client: MlflowClient, experiment: str) -> tuple[int, list[str]]:
        """Send what is kept to the profile's experiment; each message is gone as soon as it is sent.

        Returns:
            How many messages were sent, and what MLflow refused, which is gone, too.

        Raises:
            mlflow.exceptions.MlflowException, OSError: it does not answer; the rest is still kept.
        """
        if not self._messages():
            return 0, []
        sent, refused = 0, []
        with FileLock(self.folder / ".lock"):
            for path in self._messages():
                message = Message(**json.loads(path.read_text(encoding="utf-8")))
                known = replace(message, run=self.id_of(message.run))
                parent = known.content.get("tags", {}).get("mlflow.parentRunId")
                if parent:
                    known.content["tags"]["mlflow.parentRunId"] = self.id_of(parent)
                kept = path.with_suffix(".files")
                try:
                    run = send(client, experiment, known, next(kept.iterdir(), None) if kept.is_dir() else None)
                except Exception as error:
                    if is_away(error):
                        raise
                    refused.append(one_line(error, 200))
                else:
                    sent += 1
                    if message.kind == "create":
                        write_text(self.folder / "ids", json.dumps(self._ids() | {message.run: run}))
                path.unlink()
                shutil.rmtree(kept, ignore_errors=True)
        return sent, refused

    def _messages(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))

    def _ids(self) -> dict[str, str]:
        return read_json(self.folder / "ids")
