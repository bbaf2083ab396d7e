"""Which engine scores, and which Ray cluster it joins. Ray reads its environment when it is imported: after this."""

from __future__ import annotations

import os
import secrets
from typing import Literal, get_args

from models.errors import BadInput

EngineName = Literal["inline", "ray"]

ENGINE = "HM3_ENGINE"
"""Variable that says with which engine a process scores, for users and for whoever starts one."""

LOCAL = "local"
"""Address for a cluster of this machine alone, which ends with this process."""


def engine_name(asked: str | None = None) -> EngineName:
    """The engine that is asked for, else that of the environment, else ``inline``.

    Raises:
        BadInput: there is no such engine.
    """
    name = asked or os.environ.get(ENGINE) or "inline"
    if name not in get_args(EngineName):
        raise BadInput(f"{ENGINE}: {name!r}: unknown engine; there are {', '.join(get_args(EngineName))}")
    return name  # type: ignore[return-value] # it was looked up


def settle(address: str | None) -> str:
    """Set what Ray reads from the environment; gives the address of the cluster.

    Args:
        address: the profile's; ``RAY_ADDRESS`` counts before it.

    Raises:
        BadInput: the cluster would be joined without a token.
    """
    wanted = os.environ.get("RAY_ADDRESS") or address or LOCAL
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if wanted == LOCAL:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        raise BadInput(
            f"ray: {wanted}: RAY_AUTH_MODE is not `token`; whoever reaches a cluster without one can run any program"
            " on it: start it with RAY_AUTH_MODE=token, and set that and RAY_AUTH_TOKEN here too"
        )
    return wanted
