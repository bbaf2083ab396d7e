"""What a finished pipeline leaves behind, for projects whose stages copy it."""

import pytest

from tests.fixtures_front import make_project


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """``runs/tiny`` of a finished pipeline; not to be written to."""
    return make_project(tmp_path_factory.mktemp("done")).run
