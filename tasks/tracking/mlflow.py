"""Where MLflow is: the user's server, that of `hm3 up`, or a database in the state folder; and how to connect to it."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from models.errors import BadInput, one_line
from tasks.project.processes import is_alive
from tasks.project.records import read_json
from tasks.project.secret import FILE, secret
from tasks.project.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that is away costs about ten seconds once, not MLflow's minutes at every call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's environment, where the user has not set it otherwise. It is read when mlflow is imported."""

PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105 (the name of a variable)


def local_store(state: Path) -> tuple[str, str]:
    """Database and artifact location in a state folder, as absolute URIs; a local server serves the same."""
    folder = state / "mlflow"
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def local_server(state: Path) -> str | None:
    """Address of the MLflow server that `hm3 up` recorded, if it is alive."""
    server = read_json(state / "servers.json").get("mlflow")
    if not server or not is_alive(int(server["pid"]), server["born"]):
        return None
    address = urlsplit(server["url"])
    try:
        with socket.create_connection((address.hostname, address.port), timeout=1):
            return str(server["url"])
    except OSError:
        return None


def tracking_uri(state: Path) -> str:
    """Where runs and models go: ``MLFLOW_TRACKING_URI``, else the server of `hm3 up`, else a database file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_server(state) or local_store(state)[0]


def user() -> str:
    """Who works here: the user of MLflow, where it asks for one, else of the machine."""
    named = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if named:
        return named
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"uid {os.getuid()}"


def log_in(state: Path, uri: str) -> None:
    """Let MLflow's clients, here and in processes that this one starts, show the secret to our own server alone."""
    if uri == local_server(state):
        os.environ |= {"MLFLOW_TRACKING_USERNAME": user(), PASSWORD: secret(state)}
    elif PASSWORD in os.environ and (state / FILE).is_file() and os.environ[PASSWORD] == secret(state):
        del os.environ[PASSWORD]


def mlflow_errors() -> tuple[type[Exception], ...]:
    """What MLflow and its database raise; imports both."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError


def is_away(error: Exception) -> bool:
    """Whether MLflow did not answer, or not as a server does that is well; else it refuses what it was told."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return True
    status: int = error.get_http_status_code()
    return status >= 500 or status == 429


def is_unreachable(error: BaseException) -> bool:
    """Whether nothing answered. Surer than :func:`is_away`: MLflow gives status 500 to much that it refuses itself."""
    import requests

    kinds = requests.ConnectionError, requests.Timeout
    return any(isinstance(one, kinds) for one in (error, error.__cause__, error.__context__))


def said_of(error: BaseException) -> str:
    """What went wrong with MLflow, in a line; a server that isn't there would take several, of the libraries below."""
    return "does not answer" if is_unreachable(error) else one_line(error, 300)


def settle_environment() -> None:
    """Apply ``SETTINGS``; to be called before anything imports mlflow."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def connect(state: Path) -> MlflowClient:
    """A client for :func:`tracking_uri`; imports mlflow, and makes a new database (seconds each)."""
    settle_environment()
    import mlflow

    uri = tracking_uri(state)
    log_in(state, uri)
    if uri == local_store(state)[0]:
        (state / "mlflow").mkdir(parents=True, exist_ok=True)
    # The registry's database store asks for the global address where it resolves a model's folder.
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri)


def open_experiment(client: MlflowClient, workspace: Workspace) -> str:
    """Id of the experiment ``hm3-PROFILE``, made if missing.

    Raises:
        BadInput: it was deleted in MLflow and not yet purged.
    """
    from mlflow.exceptions import MlflowException

    name = f"hm3-{workspace.name}"
    found = client.get_experiment_by_name(name)
    if found is None:
        # Files of the local store are named absolutely, so that database and server find the same ones.
        local = client.tracking_uri in (local_store(workspace.state)[0], local_server(workspace.state))
        tags = {
            "mlflow.note.content": f"Merges of profile `{workspace.name}`: a run a pipeline run, nested a run a stage.",
            "mlflow.experimentKind": "custom_model_development",
        }
        location = local_store(workspace.state)[1] if local else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise BadInput(f"MLflow experiment {name}: deleted; `mlflow experiments restore -x {found.experiment_id}`")
    return str(found.experiment_id)
