"""`hm3`, `dvc` and some modules as processes that have imported the libraries of others, which takes five seconds.

A server imports them, and forks for each command that is sent by scripts, named like the programs. So a command has a
process with its own arguments, environment, folder and streams, which imports our packages anew; when the one is
killed, the other is too, and what can be caught is passed on. What such a process starts with `sys.executable -m` is
started in the same way. What reads the environment while it is imported is told to read it again (Prefect), or left to
the process (datasets). Tests of kills, of full disks and of a process's children start processes in the ordinary way.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

import psutil

LIBRARIES = (
    *("torch", "torch._dynamo", "torch.distributed.tensor", "transformers", "transformers.core_model_loading"),
    *("transformers.models.llama.modeling_llama", "transformers.generation.utils", "tokenizers", "safetensors.torch"),
    *("numpy", "scipy.spatial", "scipy.stats", "pandas", "pyarrow.parquet", "matplotlib.pyplot", "PIL.Image", "sympy"),
    *("pymoo.mcdm.high_tradeoff", "pymoo.indicators.hv", "moocore", "boto3", "botocore.httpsession", "sacrebleu"),
    *("rich.progress", "typer", "yaml", "pydantic", "jinja2", "tenacity", "psutil", "multiprocess", "requests"),
    *("sqlalchemy.orm", "fastapi", "httpx", "jsonschema", "cachetools", "sqlparse", "prometheus_client", "websockets"),
    *("dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc.dvcfile", "babel", "num2words", "pycountry", "aiohttp"),
    *("prefect.engine", "prefect.main", "prefect.server.api.server", "prefect.cli._app", "uvicorn.main"),
    *("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OPENBLAS_NUM_THREADS": "1",  # a process with threads could not be forked
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
MODULES = (
    *("dvc", "flows.cli", "flows.servers.register", "flows.versions.reproduce"),
    *("tasks.families.tiny.train", "tasks.families.tiny_vision.train"),
    *("lm_eval", "mergekit.scripts.multimerge", "mlflow", "moto.server", "prefect", "prefect.engine", "uvicorn"),
)
SET_CHILD_SUBREAPER = 36
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
program, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if program == "python":
    words = arguments[arguments[:1] in (["-P"], ["-E"]) :]
    if words[:1] != ["-c"] and (words[:1] != ["-m"] or words[1] not in {modules!r}):
        os.execv({python!r}, [{python!r}, *arguments])
    program, arguments = (words[0], words[1:]) if words[0] == "-c" else (words[1], words[2:])
request = {{"program": program, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}}
request = json.dumps(request).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    for number in {signals!r}:
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    code = int(server.recv(16) or -9)
if code < 0:
    if -code in {signals!r}:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


PYTHON = sys.executable
GET_PATH = sysconfig.get_path
SHARED = "HM3_TEST_PROGRAMS"
"""The variable with the folder of the programs that several workers share."""


@cache
def programs() -> Path:
    """The folder of the scripts; the server behind them is started, and ends with this process."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    folder = Path(tempfile.mkdtemp(prefix="hm3-warm-"))  # pytest's folders are too long for the name of a socket
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "server"))
        listener.listen(64)
        command = [PYTHON, __file__, str(listener.fileno()), str(folder / "python")]
        environment = os.environ | SETTINGS
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, pass_fds=[listener.fileno()])
    atexit.register(end, server)
    address = str(folder / "server")
    for program in ("hm3", "dvc", "mlflow", "prefect", "pytest", "python"):
        script = folder / program
        script.write_text(
            CLIENT.format(python=PYTHON, modules=MODULES, signals=[*map(int, PASSED_ON)], address=address)
        )
        script.chmod(0o755)
    return folder


def path_of(folder: Path | str):
    """:func:`sysconfig.get_path` where the programs of this Python lie in a folder."""
    return lambda name, *how, **options: str(folder) if name == "scripts" else GET_PATH(name, *how, **options)


@contextlib.contextmanager
def warmed():
    """Let what this process starts be the programs here, and what those start as well."""
    before = os.environ["PATH"], sys.executable, sysconfig.get_path
    os.environ["PATH"] = os.pathsep.join([str(programs()), before[0]])
    sys.executable, sysconfig.get_path = str(programs() / "python"), path_of(programs())
    try:
        yield
    finally:
        os.environ["PATH"], sys.executable, sysconfig.get_path = before


def end(server: subprocess.Popen[bytes]) -> None:
    """Let the server end."""
    server.stdin.close()
    server.wait()


def serve(listener: socket.socket) -> None:
    """Fork for each connection, until the standard input is closed; returns in the processes of the commands."""
    places = [one for one in sys.path[1:] if one not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for name in LIBRARIES:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()  # a collection in a child would copy every page
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 1)
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        if sys.stdin in ready:
            sys.exit()
        if listener in ready:
            connection, _ = listener.accept()
            child = os.fork()
            if child == 0:
                listener.close()
                return attend(connection, places)
            children.add(child)
            connection.close()


def attend(connection: socket.socket, places: list[str]) -> None:
    """Fork once more, for the command, and tell how that ended; returns in its process."""
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(head, "big")))
    command = os.fork()
    if command == 0:
        connection.close()
        return become(request, streams, places)
    for stream in (*streams, 0, 1, 2):
        os.close(stream)
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ended, passed_on = os.pidfd_open(command), 0
    while ended not in select.select([ended, connection], [], [])[0]:
        passed_on = (connection.recv(1) or [signal.SIGKILL])[0]  # nothing: the script was killed
        os.kill(command, passed_on)
        if passed_on == signal.SIGKILL:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    if passed_on:
        for one in psutil.Process().children(recursive=True):  # what the script's own would have been
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    with contextlib.suppress(OSError):
        connection.sendall(str(code).encode())
    os._exit(0)


def become(request: dict, streams: list[int], places: list[str]) -> None:
    """Take over what a process gets from who starts it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    own = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*own, *places]
    sys.executable = sys.argv[2]
    sysconfig.get_path = path_of(Path(sys.executable).parent)
    sys.argv[:] = [request["program"], *request["arguments"]]
    importlib.invalidate_caches()
    import prefect.context  # which would cost those a second that only ask for the programs

    prefect.context.refresh_global_settings_context()
    prefect.logging.configuration.setup_logging(incremental=False)


def run() -> int:
    """The program that the arguments name; its exit code."""
    try:
        program = {"hm3": "flows.cli"}.get(sys.argv[0], sys.argv[0])
        if program == "-c":
            exec(compile(sys.argv.pop(1), "<string>", "exec"), vars(sys.modules["__main__"]))
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    code = run()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # to take all the libraries apart would take seconds
