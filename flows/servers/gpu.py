"""Stages that compute on a GPU take turns, over all runs on one Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

LIMIT = "hm3-gpu"
"""Name of the server's concurrency limit; how many GPUs there are is set in Prefect's pages."""


def ensure_limit() -> None:
    """Make the limit, one stage at a time, where the server has none."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))


@contextmanager
def slot(device: str) -> Iterator[None]:
    """Hold one of the GPUs for the time of the block, waiting for it; nothing to hold for another device.

    A server that does not answer for a moment ends no stage that has its slot already.
    """
    if not device.startswith("cuda"):
        yield
        return
    ensure_limit()
    with concurrency(LIMIT, strict=True, raise_on_lease_renewal_failure=False):
        yield
