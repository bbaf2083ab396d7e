"""Tests that need a sandbox skip with the reason where the machine allows none, or fail where services are required."""

import os

import pytest

from models.errors import BadInput
from tasks.sandbox.sandbox import find_bubblewrap


def require_bubblewrap():
    try:
        return find_bubblewrap()
    except BadInput as error:
        if os.environ.get("HM3_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{error}, and HM3_REQUIRE_SERVICES=1")
        pytest.skip(str(error))
