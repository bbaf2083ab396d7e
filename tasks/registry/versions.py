"""What the registry holds of a front: its versions and aliases as they are now, and a version's package."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from models.errors import BadInput, Failed, Unavailable
from models.files import read_yaml
from tasks.project.workspace import Workspace
from tasks.tracking.mlflow import (
    connect,
    is_unreachable,
    local_server,
    local_store,
    mlflow_errors,
    said_of,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

MEMBER = "member"
"""Tag of a version that says which member it is, and name of its artifact: the checkpoint, or the recipe alone."""

RECORD = "member.json"
"""File of a version's package with all that its tags leave out: scores on every split, and what it was made of."""

LOGGED = "models:/"
"""How the source of a version that `hm3 publish` made begins; the id of its logged model follows."""


@dataclass(frozen=True)
class Version:
    """One version of ``hm3-front-PROFILE``."""

    entry: ModelVersion

    @property
    def number(self) -> int:
        """Its number in the registry."""
        return int(self.entry.version)

    @property
    def member(self) -> str:
        """Id of the member that it is; empty for one that was registered by hand."""
        return str(self.entry.tags.get(MEMBER, ""))

    @property
    def front_id(self) -> str:
        """Digest of the front that it belongs to; what a search has found is a front of its own."""
        return str(self.entry.tags.get("front_id", ""))

    @property
    def found(self) -> bool:
        """Whether `hm3 choose --search` found it beside a front."""
        return "found" in self.entry.tags

    @property
    def has_weights(self) -> bool:
        """Whether it was registered with its weights, not by its recipe alone."""
        return bool(self.entry.tags.get("weights") != "false")

    @property
    def model_id(self) -> str:
        """Id of its logged model; empty for one that was registered by hand from elsewhere."""
        source = str(self.entry.source or "")
        return source.removeprefix(LOGGED) if source.startswith(LOGGED) else ""


@dataclass(frozen=True)
class Package:
    """What lies in the registry under a version, as far as it can be seen without fetching it."""

    weights: bool
    recipe: bool
    bytes: int
    """Size of the member's files."""

    def __str__(self) -> str:
        what = "weights" if self.weights else "recipe alone" if self.recipe else "nothing"
        return f"{what}, {decimal(self.bytes)}" if self.weights else what


class Registered:
    """The registered model of a profile's front, asked through a client that is connected to the registry."""

    def __init__(self, client: MlflowClient, profile: str):
        self.client = client
        self.name = f"hm3-front-{profile}"

    @cached_property
    def versions(self) -> dict[int, Version]:
        """Number → version, as when first asked for."""
        found = [Version(one) for one in self.client.search_model_versions(f"name = '{self.name}'")]
        return {one.number: one for one in sorted(found, key=lambda one: one.number)}

    def of_member(self, member: str, front_id: str) -> Version | None:
        """The newest version of a member of a front, one with weights before one without."""
        found = [one for one in self.versions.values() if (one.member, one.front_id) == (member, front_id)]
        return max(found, key=lambda one: (one.has_weights, one.number), default=None)

    def aliases(self) -> dict[str, int]:
        """Alias → version, as they are now."""
        model = self._model()
        return {} if model is None else {alias: int(one) for alias, one in model.aliases.items()}

    def tags(self) -> dict[str, str]:
        """Tags of the registered model, as they are now."""
        model = self._model()
        return {} if model is None else dict(model.tags)

    def scores(self, version: Version, split: str = "selection") -> dict[str, float]:
        """Scores that were recorded of a version; of one from before there was ``member.json``, by its metrics."""
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        try:
            recorded = mlflow.artifacts.load_dict(f"models:/{self.name}/{version.number}/{RECORD}")["scores"][split]
            return {str(name): float(score) for name, score in recorded.items()}
        except (MlflowException, OSError, LookupError, TypeError, ValueError, AttributeError):
            metrics = self.client.get_logged_model(version.model_id).metrics if version.model_id else None
            scores = {one.key: float(one.value) for one in metrics or []}
            return {key.partition("/")[2]: one for key, one in scores.items() if key.startswith(f"{split}/")}

    def package(self, version: Version) -> Package:
        """What the registry lists of a version's files; none are fetched.

        Raises:
            mlflow.exceptions.MlflowException, OSError: the artifact store does not answer.
        """
        import mlflow.artifacts

        uri = f"models:/{self.name}/{version.number}/artifacts/{version.member}"
        files = mlflow.artifacts.list_artifacts(artifact_uri=uri) or []
        names = [Path(one.path).name for one in files]
        weights = any(name.endswith(".safetensors") for name in names) and "config.json" in names
        return Package(weights, "recipe.yaml" in names, sum(int(one.file_size or 0) for one in files))

    @contextmanager
    def fetched(self, version: Version, scratch: Path) -> Iterator[Path]:
        """A version's package, fetched from the registry into a folder for the time of the block.

        Raises:
            Failed: it is no package of hm3.
            mlflow.exceptions.MlflowException, OSError: the artifact store does not answer.
        """
        import mlflow.artifacts

        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch, prefix="fetched-") as folder:
            uri = f"models:/{self.name}/{version.number}"
            package = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
            if not (package / "MLmodel").is_file():
                raise Failed(f"{self.name} version {version.number}: no MLmodel file; `hm3 publish` makes a whole one")
            yield package

    def _model(self) -> RegisteredModel | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def member_folder(package: Path) -> Path:
    """The folder of a package that holds the member: a checkpoint, or ``recipe.yaml`` alone.

    Raises:
        Failed: the package names none.
    """
    described = read_yaml(package / "MLmodel", f"{package.name}/MLmodel")
    try:
        folder = package / str(described["flavors"]["python_function"]["artifacts"][MEMBER]["path"])
    except (KeyError, TypeError):
        folder = package / "artifacts" / MEMBER
    if not folder.is_dir():
        raise Failed(f"{package.name}: its MLmodel names no folder of a member; register it with `hm3 publish`")
    return folder


def open_registry(workspace: Workspace) -> Registered:
    """The registry that later commands use, too.

    Raises:
        BadInput: there is none yet.
    """
    if not has_registry(workspace.state):
        raise BadInput(f"{workspace.name}: no MLflow registry here yet; run `hm3 publish --profile {workspace.name}`")
    return Registered(connect(workspace.state), workspace.name)


def has_registry(state: Path) -> bool:
    """Whether there is a registry to ask: a server, or a database file. None is made by asking."""
    if os.environ.get("MLFLOW_TRACKING_URI") or local_server(state):
        return True
    return Path(local_store(state)[0].removeprefix("sqlite:///")).is_file()


@contextmanager
def answering(state: Path, remedy: str = "") -> Iterator[None]:
    """Turns what goes wrong with MLflow into one line, which ends with the remedy.

    Raises:
        Unavailable: MLflow does not answer.
        Failed: it refuses.
    """
    try:
        yield
    except mlflow_errors() as error:
        kind = Unavailable if is_unreachable(error) else Failed
        raise kind(f"MLflow at {tracking_uri(state)}: {said_of(error)}{remedy}") from error
