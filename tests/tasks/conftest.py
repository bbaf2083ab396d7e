"""Projects whose pipeline is done, each test with its own copy and its own MLflow database; a family with its tasks."""

import shutil

import pytest

from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tasks.project.workspace import open_workspace
from tasks.tracking.mlflow import settle_environment
from tests import once
from tests.fixtures_front import make_project
from tests.small_tasks import make_task_project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory):
    """Root of a project, not to be written to; its state holds new databases."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
            patch.delenv(name, raising=False)
        settle_environment()
        root = tmp_path_factory.mktemp("finished") / "project"
        make_project(root)
        once.give_databases(root / ".hm3")
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


@pytest.fixture(scope="module")
def family(make_family, tmp_path_factory):
    """Folders of small random models."""
    return make_family(tmp_path_factory.mktemp("family"), noise=0.2)


@pytest.fixture(scope="module")
def pool(family):
    """A pool of them."""
    sources = {name: open_checkpoint(folder) for name, folder in family.items()}
    pool = Pool(sources["base"].config)
    for name, source in sources.items():
        pool.add(name, source)
    return pool


@pytest.fixture(scope="module")
def finished(family, tmp_path_factory):
    """A project with tasks of them, not to be written to."""
    return make_task_project(tmp_path_factory.mktemp("project"), family)


@pytest.fixture
def root(finished, tmp_path):
    """Root of a copy that may be changed."""
    return shutil.copytree(finished.root, tmp_path / "copy")
