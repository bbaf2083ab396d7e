"""Sandboxes with the limits ``SMALL`` of the module that asks for them."""

import pytest

from tasks.sandbox.sandbox import Sandbox
from tests.bubblewrap import require_bubblewrap


@pytest.fixture(scope="module")
def confined(request):
    """A sandbox with all that there is, and the limits of the module."""
    require_bubblewrap()
    with Sandbox("bubblewrap", request.module.SMALL, workers=1) as one:
        yield one


@pytest.fixture(scope="module")
def limited(request):
    """One without namespaces."""
    with pytest.warns(UserWarning, match="sandbox: none: generated programs can read"):
        one = Sandbox("none", request.module.SMALL, workers=1)
    with one:
        yield one


@pytest.fixture(params=["confined", "limited"])
def either(request):
    """What holds without namespaces, too. Nothing that would harm this machine if it didn't hold is tried on it."""
    return request.getfixturevalue(request.param)
