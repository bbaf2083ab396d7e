"""Projects whose pipeline is done, each test with its own copy and its own MLflow database."""

import shutil

import pytest

from tasks.mlflow_store import connect, settle_environment
from tasks.workspace import open_workspace
from tests.fixtures_front import make_project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory):
    """Root of a project, not to be written to; its state holds a new MLflow database, which takes seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
            patch.delenv(name, raising=False)
        settle_environment()
        root = tmp_path_factory.mktemp("finished") / "project"
        make_project(root)
        connect(root).search_experiments()
        return root


def copy_project(source, folder):
    """A copy of a project that may be written to."""
    shutil.copytree(source, folder / "project")
    return open_workspace("tiny", folder / "project")


@pytest.fixture
def project(finished_project, tmp_path, monkeypatch):
    """The workspace of a copy."""
    for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
        monkeypatch.delenv(name, raising=False)
    return copy_project(finished_project, tmp_path)


@pytest.fixture(scope="module")
def shared_project(finished_project, tmp_path_factory):
    """The workspace of a copy for tests of a module that only read what one of their fixtures did to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
            patch.delenv(name, raising=False)
        yield copy_project(finished_project, tmp_path_factory.mktemp("shared"))
