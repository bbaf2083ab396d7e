"""Which Ray cluster is joined, and with what environment. Ray reads its own when it is imported: this comes before."""

from __future__ import annotations

import os
import secrets

from models.errors import BadInput

LOCAL = "local"
"""Address for a cluster of this machine alone, which ends with this process."""


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
