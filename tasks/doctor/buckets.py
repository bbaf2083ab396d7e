"""The buckets that a run or `dvc push` would use, each tried out: can it be written, read and deleted from?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import BadInput, Failed, one_line
from tasks.project.workspace import Workspace, remote_state
from tasks.storage.s3 import connect, is_remote, parse_place, probe
from tasks.tracking.mlflow import connect as connect_mlflow
from tasks.tracking.mlflow import local_store, tracking_uri

ATTEMPTS = 2
"""Tries of a request: somebody waits for the answer."""

SESSION = {
    "profile": "profile_name",
    "region": "region_name",
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
}
CLIENT = {"endpointurl": "endpoint_url", "use_ssl": "use_ssl", "ssl_verify": "verify"}
"""DVC's names of settings, and boto3's."""


@dataclass(frozen=True)
class Bucket:
    """A place in S3 that is configured."""

    user: str
    """What uses it."""
    url: str
    session: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)
    """Settings that go before AWS's environment."""


def configured(workspace: Workspace, mlflow_answers: bool) -> Iterator[Bucket]:
    """The buckets of DVC's default remote, of the state and of MLflow's artifacts, where these are in S3.

    An MLflow server that passes artifacts on has credentials of its own, so that clients see no bucket.

    Raises:
        BadInput: DVC's configuration can't be read.
        Failed: MLflow does not answer.
    """
    yield from dvc_remote(workspace)
    if state := remote_state():
        yield Bucket("HM3_STATE", state)
    if mlflow_answers and tracking_uri(workspace.state) != local_store(workspace.state)[0]:
        yield from mlflow_artifacts(workspace)


def dvc_config(root: Path) -> dict[str, Any]:
    """DVC's configuration of a project; raises BadInput if it can't be read."""
    from dvc.config import Config, ConfigError

    try:
        return dict(Config(str(root / ".dvc")))
    except ConfigError as error:
        raise BadInput(f".dvc/config: {one_line(error)}") from None


def default_remote(root: Path) -> str | None:
    """Name of DVC's default remote, if the project has one."""
    name = dvc_config(root)["core"].get("remote")
    return None if name is None else str(name)


def require_remote(root: Path) -> None:
    """Raises BadInput if DVC has no default remote: to be known before anything is computed."""
    if default_remote(root) is None:
        raise BadInput(".dvc/config: no default remote to push to; `dvc remote add --default NAME URL`")


def dvc_remote(workspace: Workspace) -> Iterator[Bucket]:
    """DVC's default remote, if it is in S3."""
    if not (workspace.root / ".dvc").is_dir():
        return
    name = default_remote(workspace.root)
    remote = dvc_config(workspace.root)["remote"].get(name, {})
    if is_remote(str(remote.get("url", ""))):
        session, client = ({ours[key]: remote[key] for key in ours if key in remote} for ours in (SESSION, CLIENT))
        yield Bucket(f"DVC remote {name}", remote["url"], session, client)


def mlflow_artifacts(workspace: Workspace) -> Iterator[Bucket]:
    """Where MLflow's clients put the artifacts of the profile's experiment, if that is in S3."""
    client = connect_mlflow(workspace.state)
    from mlflow.exceptions import MlflowException

    try:
        # An experiment that is still to be made gets its folder beside that of the first one.
        found = client.get_experiment_by_name(f"hm3-{workspace.name}") or client.get_experiment("0")
    except MlflowException as error:
        raise Failed(f"MLflow: {one_line(error, 300)}") from error
    if is_remote(found.artifact_location):
        yield Bucket("MLflow artifacts", found.artifact_location)


def try_out(bucket: Bucket) -> str:
    """Write, read and delete in a bucket; what there is to say about it.

    Raises:
        BadInput: one of them can't be done, with what to do about it.
    """
    try:
        probe(parse_place(bucket.url), connect(ATTEMPTS, bucket.session, **bucket.client))
    except (BadInput, Failed) as error:
        raise BadInput(f"{bucket.user}: {error}") from None
    return f"{bucket.user}: {bucket.url} can be written, read and deleted from"
