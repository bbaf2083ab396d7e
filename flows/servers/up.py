"""The local servers that `hm3 up` starts and `hm3 down` ends: Prefect with a worker, and MLflow.

They listen on 127.0.0.1 and keep databases, artifacts and logs in the state folder. A record says which they are; its
entries count only while the very processes live.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.processes.children import GRACE_SECONDS, start
from flows.servers.gate import opening
from flows.servers.local import (
    START_SECONDS,
    answers,
    client_of,
    environment,
    free_port,
    last_line,
    password,
    run_logged,
    served,
    server_environment,
    wait_for,
)
from models.errors import BadInput, Failed
from tasks.project.processes import birth, is_alive
from tasks.project.records import write_text
from tasks.tracking.mlflow import tracking_uri

POOL = "hm3-local"
"""Prefect work pool of the worker that `hm3 up` starts."""

Say = Callable[[str], None]


def addresses(servers: Mapping[str, Running]) -> dict[str, str]:
    """What programs ask; no secret in them."""
    return {name: servers[name].url for name in ("prefect", "mlflow")}


def openings(servers: Mapping[str, Running], state: Path) -> dict[str, str]:
    """What a user opens in a browser; whoever has them can."""
    return {name: opening(url, state) for name, url in addresses(servers).items()}


@dataclass(frozen=True)
class Running:
    """A server that `hm3 up` started."""

    url: str
    pid: int
    born: float
    """:func:`tasks.project.processes.birth` of the process: a later process of the same number is another one."""
    log: str


def read_record(state: Path) -> dict[str, Running]:
    """The servers of `hm3 up` that still run, by name; entries of processes that are gone are left out."""
    path = state / "servers.json"
    if not path.is_file():
        return {}
    try:
        entries = {name: Running(**one) for name, one in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a record of servers ({error}); end them by hand and delete the file") from None
    return {name: one for name, one in entries.items() if is_alive(one.pid, one.born)}


def write_record(state: Path, servers: Mapping[str, Running]) -> None:
    """Replace the record, or remove it where nothing runs."""
    path = state / "servers.json"
    if not servers:
        path.unlink(missing_ok=True)
        return
    write_text(path, json.dumps({name: asdict(one) for name, one in servers.items()}, indent=1))


def in_use(state: Path) -> dict[str, tuple[str, bool]]:
    """The servers that a run would use: name → address, or in words what stands for it, and whether it answers."""
    urls = {"Prefect": prefect_of(state)[0] or "a run starts a server for itself", "MLflow": tracking_uri(state)}
    return {
        name: (url, not url.startswith("http") or answers(f"{url.rstrip('/')}/health", 10, refusing=True))
        for name, url in urls.items()
    }


def prefect_of(state: Path) -> tuple[str | None, dict[str, str]]:
    """Address of the Prefect API that runs are to use, if there is one yet, and what its clients read if it is ours."""
    running = read_record(state).get("prefect")
    ours = f"{running.url}/api" if running else None
    known = os.environ.get("PREFECT_API_URL", "").rstrip("/") or ours
    return known, client_of(state, running.url) if running and known == ours else {}


def up(root: Path, state: Path, prefect_port: int | None, mlflow_port: int | None, say: Say) -> dict[str, Running]:
    """Start what does not run yet of Prefect server, worker and MLflow server, and register the deployments.

    Ports are free ones by default; ``say`` gets a line for each step.

    Raises:
        BadInput: the project has no ``prefect.yaml``.
        Failed: a server did not start; those that this call started are ended again.
    """
    if not (root / "prefect.yaml").is_file():
        raise BadInput("prefect.yaml: no such file in the project; it says which deployments to register")
    (state / "logs").mkdir(parents=True, exist_ok=True)
    before, login = read_record(state), password(state)
    servers = dict(before)

    def ensure(name: str, launched: Callable[[], Running]) -> None:
        if name not in servers:
            servers[name] = launched()
            write_record(state, servers)

    try:
        ensure("mlflow", lambda: start_mlflow(state, mlflow_port or free_port()))
        ensure("prefect", lambda: start_prefect(state, prefect_port or free_port()))
        say("Prefect server: runs already" if "prefect" in before else "Prefect server: starting")
        wait_until_healthy("prefect", servers["prefect"], "/api/health", login)
        ensure("worker", lambda: start_worker(root, state, servers["prefect"].url))
        say("Prefect worker: runs already" if "worker" in before else "Prefect worker: starting")
        wait_for_worker(servers["prefect"].url, servers["worker"], login)
        say("deployments of prefect.yaml: registering")
        register(root, state, servers["prefect"].url)
        say("MLflow server: runs already" if "mlflow" in before else "MLflow server: starting")
        wait_until_healthy("mlflow", servers["mlflow"], "/health", login)
    except BaseException:
        end([one for name, one in servers.items() if name not in before])
        write_record(state, before)
        raise
    return servers


def down(state: Path) -> list[str]:
    """End the servers of `hm3 up` with everything under them; returns the names of those that ran.

    Raises:
        Failed: a process survives even a kill.
    """
    servers = read_record(state)
    end([servers[name] for name in ("worker", "prefect", "mlflow") if name in servers])
    write_record(state, {})
    return list(servers)


def launch(name: str, url: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], state: Path) -> Running:
    """Start a server that outlives this process, in a session of its own."""
    log = state / "logs" / f"{name}.log"
    process = start(command, cwd=cwd, env=env, log=log)
    return Running(url, process.pid, birth(process.pid), str(log))


def start_prefect(state: Path, port: int) -> Running:
    """Prefect server with its user interface and schedules."""
    url = f"http://127.0.0.1:{port}"
    own = {"PREFECT_UI_API_URL": f"{url}/api", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url, "PREFECT__SERVER_FINAL": "1"}
    env = {**server_environment(state), **client_of(state, url), **own}
    return launch("prefect", url, served("prefect", port), cwd=state, env=env, state=state)


def start_worker(root: Path, state: Path, prefect_url: str) -> Running:
    """Worker that runs deployments as processes of this machine; it makes its work pool where that is missing."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    env = {**environment(state), **client_of(state, prefect_url)}
    return launch("worker", prefect_url, [*command, "--name", POOL], cwd=root, env=env, state=state)


def start_mlflow(state: Path, port: int) -> Running:
    """MLflow server on the same database and artifact folder that runs use without it."""
    (state / "mlflow").mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    own = {"ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}", "CORS_ALLOWED_ORIGINS": url}
    own = {f"MLFLOW_SERVER_{name}": value for name, value in (own | {"ENABLE_JOB_EXECUTION": "false"}).items()}
    env = {**server_environment(state), **own}
    return launch("mlflow", url, served("mlflow", port), cwd=state, env=env, state=state)


def wait_until_healthy(name: str, server: Running, path: str, login: str) -> None:
    """Until a server of `hm3 up` answers; raises Failed if it does not."""
    wait_for(
        f"{server.url}{path}",
        lambda: None if is_alive(server.pid, server.born) else 1,
        Path(server.log),
        f"the {name} server",
        login,
    )


def wait_for_worker(prefect_url: str, worker: Running, login: str) -> None:
    """Until the worker has reported to the server; raises Failed if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while not any(one.get("status") == "ONLINE" for one in workers_of(prefect_url, login)):
        if not is_alive(worker.pid, worker.born) or time.monotonic() > deadline:
            raise Failed(f"the Prefect worker did not start: {last_line(Path(worker.log))}; see {worker.log}")
        time.sleep(0.3)


def workers_of(prefect_url: str, login: str) -> list[dict[str, Any]]:
    """The workers of our work pool; none where the server has no such pool yet."""
    name, _, word = login.partition(":")
    url = f"{prefect_url}/api/work_pools/{POOL}/workers/filter"
    reply = httpx.post(url, json={}, timeout=30, auth=(name, word))
    return [] if reply.status_code == httpx.codes.NOT_FOUND else reply.raise_for_status().json()


def register(root: Path, state: Path, prefect_url: str) -> None:
    """Put the deployments of ``prefect.yaml`` and what they need on the server: :mod:`flows.servers.register`.

    Raises:
        Failed: Prefect refuses something.
    """
    log = state / "logs" / "register.log"
    env = {**environment(state), **client_of(state, prefect_url)}
    command = [sys.executable, "-P", "-m", "flows.servers.register"]
    if run_logged(command, cwd=root, env=env, log=log) != 0:
        raise Failed(f"prefect.yaml: its deployments could not be registered: {last_line(log)}; see {log}")


def end(servers: Sequence[Running]) -> None:
    """End processes and all under them: asked first, killed after a while.

    Raises:
        Failed: one is still there.
    """
    tree: list[psutil.Process] = []
    for server in servers:
        try:
            process = psutil.Process(server.pid)
            tree += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for number in (signal.SIGTERM, signal.SIGKILL):
        for server in servers:
            if is_alive(server.pid, server.born):
                os.killpg(server.pid, number)
        if number == signal.SIGKILL:
            for process in tree:
                if process.is_running():
                    process.kill()
        _, tree = psutil.wait_procs(tree, timeout=2 * GRACE_SECONDS)
    if tree:
        raise Failed(f"processes {', '.join(str(one.pid) for one in tree)} do not end")
