"""Servers on loopback that runs depend on while they are disturbed: a bucket, and MLflow's tracking server."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flows.servers.local import free_port, wait_for

BUCKET = "faults"
KEYS = {
    "AWS_ACCESS_KEY_ID": "hm3",
    "AWS_SECRET_ACCESS_KEY": "hm3-on-loopback",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def has_moto() -> bool:
    """Whether there is a server for a bucket."""
    return importlib.util.find_spec("moto") is not None


class Server:
    """A server that may be stopped for a while, killed and started again, in a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        health: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """It starts.

        Args:
            command: that runs it.
            health: address that is asked until it answers.
            log: file to which its output is added.
            env: variables beside those of this process.
            cwd: folder in which it runs.

        Raises:
            Failed: it does not start.
        """
        self.command, self.health, self.log, self.env, self.cwd = command, health, log, {**(env or {})}, cwd
        self.start()

    def start(self) -> None:
        """Again, after it was killed; until it answers.

        Raises:
            Failed: it does not.
        """
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                list(self.command),
                cwd=self.cwd,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            wait_for(self.health, self.process.poll, self.log, self.log.stem)
        except BaseException:
            self.kill()
            raise

    def send(self, number: signal.Signals) -> None:
        """A signal to it and to everything under it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """At once, with everything under it."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def mend(self) -> None:
        """Start it again if it is gone."""
        if self.process.poll() is not None:
            self.start()


def moto(log: Path, **env: str) -> tuple[Server, str]:
    """A server of S3 without content, and its address."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    return Server(command, f"{url}/moto-api/", log, env), url


def mlflow(folder: Path, artifacts: Path | str, port: int | None = None) -> tuple[Server, str]:
    """MLflow's server with its database in a folder, through which artifacts are passed on, and its address."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    database = f"sqlite:///{folder / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(artifacts)]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Server(command, f"{url}/health", folder / "server.log", settings, folder), url


def bucket(folder: Path) -> tuple[Server, dict[str, str]]:
    """A server with an empty bucket, and what makes it the place of a run's state."""
    import boto3

    server, url = moto(folder / "moto.log")
    keys = {"aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
    boto3.client("s3", endpoint_url=url, region_name=KEYS["AWS_DEFAULT_REGION"], **keys).create_bucket(Bucket=BUCKET)
    return server, KEYS | {"AWS_ENDPOINT_URL": url, "HM3_STATE": f"s3://{BUCKET}/state"}


def tracking(folder: Path) -> tuple[Server, dict[str, str]]:
    """MLflow's server, and what makes runs use it."""
    server, url = mlflow(folder, folder / "artifacts")
    return server, {"MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


MAKE = {"bucket": bucket, "tracking": tracking}


class Servers:
    """Those that a trial needs; they end with the block."""

    def __init__(self, names: Iterable[str], folder: Path) -> None:
        """Nothing is started yet.

        Args:
            names: of ``MAKE``.
            folder: for logs and databases.
        """
        self.names, self.folder = sorted(set(names)), folder
        self.running: dict[str, Server] = {}
        self.env: dict[str, str] = {}

    def __enter__(self) -> Servers:
        """Start them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for name in self.names:
                self.running[name], env = MAKE[name](self.folder)
                self.env |= env
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill them."""
        for one in self.running.values():
            one.kill()

    def mend(self) -> None:
        """Start those again that are gone."""
        for one in self.running.values():
            one.mend()
