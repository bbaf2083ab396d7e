"""The Prefect API that a run uses: the user's server, that of `hm3 up`, or a temporary one for this run alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flows.processes.children import Guarded
from flows.servers.local import answers, client_of, free_port, served, server_environment, wait_for
from flows.servers.up import prefect_of
from models.errors import Failed

RESTARTS = 5
"""Times that a server which ends by itself is started again."""


class TemporaryPrefect:
    """A Prefect API for one run: no user interface, no schedules. It ends with this process, however that ends.

    Should it end before, it is started again on the same database: clients try again for longer than that takes.
    """

    def __init__(self, state: Path):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self.client = client_of(state, url)
        """What its clients read in their environment."""
        self.url = f"{url}/api"
        self.log = state / "logs" / "prefect.log"
        command = served("prefect", port, "--log-level", "error")
        # What prefect sets for its own temporary server: in-memory brokers, no scheduler, no late-run service.
        ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        env = {**server_environment(state), "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url, **ephemeral}
        self._start = partial(Guarded, command, cwd=state, env=env, log=self.log)
        self._stopped, self._answered = threading.Event(), False
        self.process = self._start()
        self._watcher = threading.Thread(target=self._watch, name="prefect-server", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        for _ in range(RESTARTS):
            while self.process.poll() is None:
                if self._stopped.wait(0.5):
                    return
            if not self._answered:  # what keeps it from starting, `wait` says
                return
            self.process = self._start()

    def wait(self) -> None:
        """Until it answers; raises Failed if it does not."""
        login = self.client["PREFECT_API_AUTH_STRING"]
        wait_for(f"{self.url}/health", self.process.poll, self.log, "the temporary Prefect server", login)
        self._answered = True

    def stop(self) -> None:
        """End it. Whatever this process still had to send it must be sent before."""
        self._stopped.set()
        self._watcher.join()
        self.process.stop()


@contextmanager
def prefect_api(state: Path) -> Iterator[TemporaryPrefect | None]:
    """Put into the environment what Prefect reads there; comes before the first import of prefect.

    The address is the user's ``PREFECT_API_URL``, else that of the server of `hm3 up`, else that of a temporary server,
    which is yielded while it still starts.

    Raises:
        Failed: the server that is to be used does not answer.
    """
    # Its own lines go to its log pages; what a user needs to see is on the screen already.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ.setdefault("PREFECT_HOME", str(state / "prefect"))
    known, client = prefect_of(state)
    if known:
        if not answers(f"{known}/health", 10, refusing=not client, login=client.get("PREFECT_API_AUTH_STRING")):
            remedy = "`hm3 down`, then `hm3 up`" if client else "start that server, or unset the variable"
            raise Failed(f"PREFECT_API_URL: {known} does not answer; {remedy}")
        with given(client or {"PREFECT_API_URL": known}):
            yield None
        return
    server = TemporaryPrefect(state)
    try:
        with given(server.client):
            yield server
    finally:
        server.stop()


@contextmanager
def given(wanted: Mapping[str, str]) -> Iterator[None]:
    """Have these in the environment for the time of the block."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
