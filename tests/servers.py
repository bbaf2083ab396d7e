"""Servers that tests start: processes of their own on loopback, in a group that ends with the block."""

import os
import sys
from contextlib import contextmanager

import pytest
from prefect.events.worker import EventsWorker

from flows.bench.fault_servers import Server, mlflow
from flows.servers.api import prefect_api
from tests import once


def missing(what):
    """Skip a test for want of something of the system, or fail where that is required."""
    if os.environ.get("HM3_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what} is missing, and HM3_REQUIRE_SERVICES=1")
    pytest.skip(f"{what} is missing")


@contextmanager
def server(command, health, log, cwd=None, env=None):
    """A server that answers at ``health``; its process, for a test that wants to kill it.

    Args:
        command: after the interpreter: ``-m module …``.
        health: address that is asked until it answers.
        log: file to which its output is added.
        cwd: folder in which it runs.
        env: variables beside those of the test.
    """
    with ended(Server([sys.executable, *command], health, log, env, cwd)) as one:
        yield one.process


@contextmanager
def ended(one):
    """A server that is there for the time of the block."""
    try:
        yield one
    finally:
        one.kill()


@contextmanager
def prefect_server(state):
    """A Prefect server as a run starts one for itself: what its clients read, for the time of the block.

    It is in the environment for that time, too.
    """
    once.give_databases(state)
    with prefect_api(state) as one:
        one.wait()
        try:
            yield one.client
        finally:  # what sends events would go on to send them here, in other modules of this process too
            EventsWorker.drain_all()


@contextmanager
def mlflow_server(folder, artifacts, port=None):
    """Address and process of an MLflow server that keeps its database in a folder and passes artifacts on."""
    once.give_mlflow(folder / "server.db")
    one, url = mlflow(folder, artifacts, port)
    with ended(one):
        yield url, one.process
