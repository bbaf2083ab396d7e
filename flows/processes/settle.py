"""How a process of hm3 gets ready: what libraries read from the environment, folder, threads, the workspace's lock.

Libraries read their variables when they are imported, so this comes before torch, mlflow and prefect. The environment
is for them and for child processes: what one function of a process tells another goes by argument.
"""

from __future__ import annotations

import atexit
import gc
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from flows.processes.children import hold
from tasks.project.offline import offline_environment

if TYPE_CHECKING:  # it imports pydantic, which `hm3 --help` does without
    from tasks.project.workspace import Workspace

KERNELS = {
    # Waiting OpenMP threads must not spin: on a busy machine that made two threads 5 to 24 times slower.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""What torch and the libraries under it read."""

LIBRARIES = KERNELS | {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What libraries read, where the user has not set it otherwise."""


def variables() -> dict[str, str]:
    """The environment of this process with ``LIBRARIES``, and the programs of our Python first on the path."""
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join([scripts, *filter(lambda one: one != scripts, os.environ.get("PATH", "").split(os.pathsep))])
    return {**LIBRARIES, **direct(logins_apart(os.environ)), "PATH": path}


def direct(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment where a proxy is not asked for servers of this machine, nor told what lets one in there."""
    names = {"no_proxy", "NO_PROXY"}
    if not any(name.lower() in ("http_proxy", "all_proxy") for name in environment):
        return dict(environment)
    known = ",".join(environment[name] for name in sorted(names & environment.keys()))
    hosts = [*dict.fromkeys([*filter(None, known.split(",")), "127.0.0.1", "localhost"])]
    return {**environment, **dict.fromkeys(names, ",".join(hosts))}


def logins_apart(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment where a login stands beside the address of a server that held it: libraries log addresses."""
    apart = dict(environment)
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        address = urlsplit(apart.get(variable, ""))
        login, at, place = address.netloc.rpartition("@")
        if not at or not address.scheme.startswith("http"):
            continue
        apart[variable] = address._replace(netloc=place).geturl()
        name, _, word = map(unquote, login.partition(":"))
        if variable == "PREFECT_API_URL":
            apart["PREFECT_API_AUTH_STRING"] = f"{name}:{word}"
        else:
            apart |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": word}
    return apart


def enter() -> None:
    """Give this process :func:`variables`: first thing in the console script, and in flows that a worker starts."""
    os.environ.update(variables())
    atexit.register(gc.freeze)  # or the interpreter collects 400,000 objects of libraries as it ends: seconds


@contextmanager
def claimed(
    workspace: Workspace, label: str, say: Callable[[str], None], *, lock: str, computes: bool
) -> Iterator[None]:
    """Have a workspace to oneself, in its folder: the one way to it for runs, stages and whatever else changes it.

    Args:
        label: what is done, for those who have to wait.
        say: gets a line if this has to wait.
        lock: which of the workspace's locks: ``run``, a profile's name, …
        computes: this process computes with torch.
    """
    with hold(workspace.state / "locks" / f"{lock}.lock", label, say):
        os.chdir(workspace.root)
        if computes:
            prepare(workspace)
        yield


def prepare(workspace: Workspace) -> None:
    """Go to the project's folder, offline, with a fixed number of threads and deterministic kernels."""
    settle(workspace.root, workspace.state, workspace.profile.threads, hub=workspace.profile.uses_hub)


def settle(root: Path, state: Path, threads: int, *, hub: bool) -> None:
    """:func:`prepare` before there is a profile; with ``hub`` models or data may come from the hub."""
    os.environ.update(variables() | KERNELS | {"OMP_NUM_THREADS": str(threads)} | offline_environment(state, hub=hub))
    os.chdir(root)
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
