"""Programs that try to get out: each is contained and scored as failed, and those before and behind it are judged."""

import json
import os
import platform
import re
import socket
import stat
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from flows.processes.children import command_line
from models.errors import BadInput, Failed
from tasks.project.processes import is_alive
from tasks.sandbox import sandbox as module
from tasks.sandbox.bubblewrap import confined_command
from tasks.sandbox.sandbox import Limits, Sandbox, Verdict, describe, find_bubblewrap
from tests.bubblewrap import require_bubblewrap

ROOT = Path(__file__).parents[3]
SMALL = Limits(cpu_seconds=1, wall_seconds=4, memory_bytes=2**28, file_bytes=2**22)
BEFORE, BEHIND = "import math\nassert math.comb(4, 2) == 6", "def f(x):\n    return x + 1\nassert f(1) == 2"


def among_sound_ones(sandbox, program):
    """The reason for which a program fails that runs between two sound ones."""
    before, found, behind = sandbox.run([BEFORE, textwrap.dedent(program), BEHIND])
    assert before == behind == Verdict(True)
    assert not found.passed
    return found.reason


def test_a_program_passes_if_it_runs_to_its_end(either):
    programs = [BEFORE, "assert 0", "", "x = 1 / 0", "print('out')\nimport sys\nprint('err', file=sys.stderr)", "("]
    found = either.run(programs)
    assert [one.passed for one in found] == [True, False, True, False, True, False]
    assert [one.reason.split(":")[0] for one in found if not one.passed] == [
        *("AssertionError", "ZeroDivisionError", "SyntaxError")
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import collections, dataclasses, hashlib, heapq, json, random, re, string, typing, unittest, uuid, zlib",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 3\nassert asyncio.run(f()) == 3",
        "import tempfile\nwith tempfile.TemporaryFile() as f:\n    assert f.write(b'1') and not f.seek(0) and f.read()",
        "with open('x', 'w') as f:\n    f.write('1')\nassert open('x').read() == '1'",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n):\n    return n and f(n - 1)\nf(4000)",
        "import decimal, fractions, datetime\nassert datetime.date(2024, 2, 29).strftime('%d.%m.') == '29.02.'",
        "assert 'ß'.upper() == 'SS' and open('ß', 'w').write('ß')",
        "import time\ntime.sleep(1.5)  # longer than the limit on the processor",
        "import signal\nsignal.raise_signal(signal.SIGURG)",
        "print('x' * 10**8)",
    ],
)
def test_what_sound_programs_do_works(confined, program):
    assert confined.run([program]) == [Verdict(True)]


READS = "assert open({path!r}).read()"
ESCAPES = {
    "read a file": (READS.format(path="/etc/passwd"), "FileNotFoundError"),
    "read this project": (READS.format(path=__file__), "FileNotFoundError"),
    "see processes": ("import os\nassert os.listdir('/proc')", "FileNotFoundError"),
    "write to the root": ("open('/x', 'w')", "OSError.*Read-only"),
    "write to the library": ("import os\nopen(os.path.dirname(os.__file__) + '/x', 'w')", "OSError.*Read-only"),
    "remove everything": ("import shutil\nshutil.rmtree('/')", "OSError"),
    "remove the code inside": ("import os\nos.remove('/hm3/tasks/sandbox/child.py')", "OSError.*Read-only"),
    "be root": ("import os\nos.setuid(0)", "OSError|PermissionError"),
    "mount": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
        "AssertionError",
    ),
    "leave by chroot": ("import os\nos.chroot('/tmp')", "PermissionError"),
    "make a device": ("import os\nos.mknod('x', 0o600 | 0o020000, os.makedev(1, 3))", "PermissionError"),
    "signal every process": ("import os\nos.kill(-1, 9)", "PermissionError"),
    "signal every process as C": ("import ctypes\nassert ctypes.CDLL(None).kill(-1, 9) == 0", "AssertionError"),
    "signal the first process": ("import os\nos.kill(1, 9)", "PermissionError"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_of_the_machine_is_within_reach(confined, name):
    program, reason = ESCAPES[name]
    assert re.match(reason, among_sound_ones(confined, program))


def test_a_program_sees_an_empty_world(confined):
    program = """
        import os, socket
        assert not os.environ and os.listdir(".") == [] and os.getcwd() == "/tmp" and os.getuid() == 65534
        assert socket.gethostname() == "sandbox" and os.getpid() < 1000
        assert set(os.listdir("/")) <= {"tmp", "hm3", "usr", "lib", "lib32", "lib64", "etc", PYTHON}, os.listdir("/")
        assert sorted(os.listdir("/hm3/tasks/sandbox")) == ["child.py", "system_calls.py"]
        import sys
        assert not any("site-packages" in path for path in sys.path)
    """
    first = Path(sys.base_prefix).parts[1]
    assert confined.run([textwrap.dedent(program).replace("PYTHON", repr(first))]) == [Verdict(True)]


def test_no_file_is_written_outside(confined, tmp_path):
    tmp_path.chmod(0o777)
    assert "No such file" in among_sound_ones(confined, f"open({str(tmp_path / 'x')!r}, 'w')")
    assert list(tmp_path.iterdir()) == []


def test_no_socket_reaches_the_machine(either):
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert "not permitted" in among_sound_ones(either, program)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_namespaces_hold_without_the_filter(tmp_path):
    """As in a sandbox, but the program is the first process: no limits, no filter of system calls."""
    require_bubblewrap()
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = tmp_path / "code" / f"{uuid.uuid4().hex}.py"
        script.parent.mkdir()
        script.write_text(
            textwrap.dedent(f"""
                import os, socket
                try:
                    socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 2)
                except OSError as error:
                    print(error.errno)
                try:
                    os.kill({os.getpid()}, 0)
                except OSError as error:
                    print(type(error).__name__)
                if os.fork() == 0:
                    os.setsid()
                    while True:
                        pass
                print(os.listdir("/code"))
            """)
        )
        command = confined_command(find_bubblewrap(), script, [], 2**20)
        done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60, check=False)
    refused_or_unreachable = {"111", "101"}
    first, *others = done.stdout.splitlines()
    assert first in refused_or_unreachable and others[:1] == ["ProcessLookupError"], done
    time.sleep(0.2)
    lines = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if f"/hm3/code/{script.name}" in line]


CONTAINED = {
    "fork": ("import os\nos.fork()", "PermissionError"),
    "fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "out of time",
    ),
    "thread": ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
    "other program": ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
    "exec": ("import os, sys\nos.execv('/bin/true', ['true'])", "PermissionError|FileNotFoundError"),
    "multiprocessing": ("import multiprocessing\nmultiprocessing.Process(target=print).start()", "PermissionError"),
    "daemon": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass",
        "PermissionError",
    ),
    "much memory": ("x = bytearray(2**40)", "MemoryError"),
    "memory by and by": ("x = []\nwhile True:\n    x.append(bytearray(2**20))", "MemoryError"),
    "shared memory": ("import mmap\nx = [mmap.mmap(-1, 2**24) for _ in range(100)]", "OSError|MemoryError"),
    "a large file": ("f = open('x', 'wb')\nwhile True:\n    f.write(bytes(2**20))", "OSError.*File too large"),
    "open files": ("x = [open('x', 'w') for _ in range(1000)]", "OSError.*Too many open files"),
    "sleep": ("import time\ntime.sleep(1000)", "out of time: not done after 4 s"),
    "stop": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "stopped itself"),
    "spin": ("while True:\n    pass", "out of time"),
    "spin in C": ("10**10**10", "out of time"),
    "spin unheeding": (
        "import signal\nfor n in range(1, 64):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        "ended by SIGKILL|out of time",
    ),
    "raise the limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))",
        "ValueError|PermissionError",
    ),
    "lower those of the parent": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "PermissionError",
    ),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
    "kill the parent's thread": (
        "import ctypes, os\np = os.getppid()\nassert ctypes.CDLL(None).syscall(TGKILL, p, p, 9) == 0",
        "AssertionError",
    ),
    "trace the parent": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
        "Assertion",
    ),
    "kill itself": ("import os\nos.kill(os.getpid(), 9)", "ended by SIGKILL"),
    "print without end": ("while True:\n    print('x' * 10**6)", "out of time"),
    "crash": ("import ctypes\nctypes.string_at(0)", "ended by SIGSEGV"),
    "overflow the stack": (
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: [f()]\nclass A:\n    def __repr__(self):\n"
        "        return repr(self)\nrepr(A())",
        "ended by SIGSEGV|RecursionError|MemoryError",
    ),
    "shared memory of System V": ("import ctypes\nassert ctypes.CDLL(None).shmget(0, 2**20, 0o1600) >= 0", "Assertion"),
    "memory in a file": ("import os\nos.memfd_create('x')", "PermissionError"),
    "a namespace": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "fork as C": ("import ctypes\nassert ctypes.CDLL(None).fork() >= 0", "AssertionError"),
    "fork by number": ("import ctypes\nassert ctypes.CDLL(None).syscall(CLONE, 17, 0, 0, 0, 0) >= 0", "AssertionError"),
    "other numbering": (
        "import ctypes\nassert ctypes.CDLL(None).syscall(0x40000000 | CLONE, 17, 0, 0, 0, 0) >= 0",
        "AssertionError",
    ),
    "leave": ("import sys\nsys.exit(0)", "SystemExit"),
    "leave at once": ("import os\nos._exit(0)", "left before its end"),
    "leave by an exception of its own": ("class E(BaseException):\n    pass\nraise E", "E: "),
    "a message that raises": (
        "class E(Exception):\n    def __str__(self):\n        raise self\nraise E",
        "left before",
    ),
    "close all descriptors": ("import os\nos.closerange(0, 100)", "ended by SIGKILL|left before its end"),
    "wait for input": ("assert input()", "EOFError"),
    "no program": ("\0", "SyntaxError|ValueError"),
    "half a character": ("'\ud800'", "UnicodeEncodeError"),
    "deep": ("(" * 10**5 + ")" * 10**5, "SyntaxError|MemoryError|RecursionError"),
}


@pytest.mark.parametrize("name", CONTAINED)
def test_limits_and_filter_contain(either, name):
    program, reason = CONTAINED[name]
    numbers = {"x86_64": ("56", "234"), "aarch64": ("220", "131")}[platform.machine()]
    program = program.replace("TGKILL", numbers[1]).replace("CLONE", numbers[0])
    found = among_sound_ones(either, program)
    assert re.match(reason, found), found


def test_the_folder_has_a_size(confined):
    program = """
        for number in range(100):
            with open(str(number), "wb") as file:
                file.write(bytes(2**20))
    """
    assert "No space left" in among_sound_ones(confined, program)


FORGERIES = {
    "the word": "for n in range(64):\n    try:\n        os.write(n, b'passed')\n    except OSError:\n        pass",
    "an answer": (
        'for n in range(64):\n    try:\n        os.write(n, b\'{"reason": null, "last": false}\\n\' * 3)\n'
        "    except OSError:\n        pass"
    ),
    "an echo": (
        "import select\nfound = b''\nfor n in range(64):\n    try:\n"
        "        found += os.read(n, 99) if select.select([n], [], [], 0)[0] else b''\n"
        "    except (OSError, ValueError):\n        pass\n"
        "for n in range(64):\n    try:\n        os.write(n, found)\n    except OSError:\n        pass"
    ),
    "a flood": "for n in range(64):\n    try:\n        os.write(n, b'x' * 10**5)\n    except OSError:\n        pass",
}


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("end", ["os._exit(0)", "assert 0", "os.kill(os.getpid(), 9)"])
def test_a_verdict_is_not_forged_through_the_descriptors(either, name, end):
    among_sound_ones(either, f"import os\n{FORGERIES[name]}\n{end}")


def test_a_program_that_replaces_what_reports_fails_or_passes_by_its_own_end(either):
    program = "import os, hashlib\nos.write = os.read = os._exit = hashlib.sha256 = None\n"
    assert either.run([program, program + "assert 0"]) == [Verdict(True), Verdict(False, "AssertionError: ")]


@pytest.mark.parametrize(
    "trace",
    [
        "open('x', 'w').close()",
        "import os\nos.mkdir('x')\nos.chmod('.', 0)",
        "import os\nos.chmod('.', 0o500)",
        "open('x', 'w').close()\nimport os\nos.remove('x')",
        "import os\nos.symlink('/', 'x')",
    ],
)
def test_the_next_program_finds_nothing_of_the_one_before(confined, trace):
    # fixed beforehand: the mode of a folder that nobody touched
    looks = f"""
        import os
        assert os.listdir(".") == [] and os.stat(".").st_mode == {mode_of_the_folder(confined)}
        open("y", "w").close()
    """
    assert confined.run([trace, textwrap.dedent(looks)]) == [Verdict(True), Verdict(True)]


def mode_of_the_folder(sandbox):
    (found,) = sandbox.run(["import os\nraise Exception(os.stat('.').st_mode)"])
    return int(found.reason.split(": ")[1])


def test_without_namespaces_the_folder_goes_too(limited, tmp_path):
    place = "import os\nopen('x', 'w').close()\nraise Exception(os.getcwd())"
    folders = {one.reason.split(": ")[1] for one in limited.run([place, place + "\n"])}
    assert len(folders) == 2
    limited.run([BEFORE])
    assert not any(Path(folder).exists() for folder in folders)


def test_a_verdict_depends_on_nothing_but_the_program(either):
    chance = "import random\nassert 0, (hash('x'), list({'a', 'b', 'c', 'd'}), random.random())"
    with Sandbox(either.kind, SMALL, workers=1) as another:
        (first,), (second,) = either.run([chance]), another.run([chance])
    assert first == second and first.reason.startswith("AssertionError: (")


def test_an_interpreter_behind_a_symbolic_link_is_found(tmp_path):
    require_bubblewrap()
    (tmp_path / "python").symlink_to(sys.base_prefix)
    code = (
        "import sys\nfrom tasks.sandbox.sandbox import *\n"
        "with Sandbox() as s:\n    print(sys.base_prefix, s.run(['x = 1']))"
    )
    command = [tmp_path / "python" / "bin" / Path(sys._base_executable).resolve().name, "-c", code]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.stdout == f"{tmp_path / 'python'} [Verdict(passed=True, reason='')]\n", done


def test_what_verdicts_depend_on_is_told(confined):
    with Sandbox("bubblewrap", Limits(cpu_seconds=2)) as other:
        assert confined.definition != other.definition == other.definition
    assert confined.definition["cpu_seconds"] == 1 and confined.definition["sandbox"] == "bubblewrap"


def test_the_time_of_a_processor_is_what_counts():
    require_bubblewrap()
    with Sandbox("bubblewrap", Limits(cpu_seconds=1, wall_seconds=90)) as patient:
        spins, sleeps = "while True:\n    pass", "import time\ntime.sleep(3)"
        assert patient.run([spins, sleeps]) == [Verdict(False, "out of time: 1 s of a processor"), Verdict(True)]


def test_many_programs_share_one_start(confined):
    # in one process namespace numbers go up, in a new one they start again
    found = confined.run([f"import os\nraise Exception(os.getpid())  # {n}" for n in range(20)])
    numbers = [int(one.reason.split(": ")[1]) for one in found]
    assert numbers == sorted(set(numbers))


def test_new_sandboxes_leave_nothing_of_the_old_ones(either):
    traces = [f"open('x', 'w').close()  # {number}" for number in range(12)]
    either.run([BEFORE])
    before = psutil.Process().num_fds(), len(started_by(os.getpid()))
    assert either.run([*traces, BEHIND]) == [Verdict(True)] * 13
    assert (psutil.Process().num_fds(), len(started_by(os.getpid()))) == before


def test_equal_programs_run_once(confined):
    took = time.monotonic()
    assert confined.run(["import time\ntime.sleep(1)"] * 20) == [Verdict(True)] * 20
    assert time.monotonic() - took < 10


def test_threads_share_a_sandbox_and_get_their_own_verdicts():
    require_bubblewrap()
    with Sandbox("bubblewrap", SMALL, workers=2) as shared, ThreadPoolExecutor(6) as threads:
        batches = [[f"assert {number} % 3", f"assert {number} % 2"] for number in range(24)]
        found = list(threads.map(shared.run, batches))
    assert [[one.passed for one in batch] for batch in found] == [[n % 3 > 0, n % 2 > 0] for n in range(24)]


def test_a_thread_that_ends_takes_no_sandbox_with_it(confined):
    verdicts = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: verdicts.extend(confined.run([BEFORE])))
        thread.start()
        thread.join()
    assert verdicts == [Verdict(True)] * 3


def started_by(process):
    """Processes below another that run programs."""
    below = psutil.Process(process).children(recursive=True)
    return [one for one in below if any("sandbox/child.py" in part for part in command_line(one))]


def gone(processes):
    """Whether they end, soon."""
    _, left = psutil.wait_procs(processes, timeout=20)
    return not any(one.is_running() and is_alive(one.pid) for one in left)


KILLED = """
import sys
from tasks.sandbox.sandbox import Limits, Sandbox
sandbox = Sandbox(sys.argv[1], Limits(wall_seconds=4))
sandbox.run(["pass"])
print("started", flush=True)
sandbox.run(["import time; time.sleep(3)"])
"""


@pytest.mark.parametrize("kind", ["bubblewrap", "none"])
def test_closing_and_dying_leave_no_process(kind):
    if kind == "bubblewrap":
        require_bubblewrap()
    before = set(started_by(os.getpid()))
    with Sandbox(kind, SMALL, workers=2) as one:
        one.run([BEFORE, BEHIND])
        found = set(started_by(os.getpid())) - before
        assert found
    assert gone(found)
    process = subprocess.Popen([sys.executable, "-c", KILLED, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    found = started_by(process.pid)
    assert found
    process.kill()
    process.wait(60)
    assert gone(found)


def test_where_namespaces_are_not_allowed_it_refuses_with_the_remedy(tmp_path):
    """In a user namespace in which no further one may be made, as many containers have it."""
    bwrap = require_bubblewrap()
    outer = [bwrap, "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--proc", "/proc"]
    code = """if True:
        from tasks.sandbox.sandbox import describe
        try:
            describe("bubblewrap")
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run(
        [*outer, sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.stdout.startswith("BadInput sandbox: bubblewrap: "), done
    assert "can make no sandbox here (bwrap: " in done.stdout and "set `sandbox: none`" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    script = (
        "from tasks.sandbox.sandbox import Sandbox\nwith Sandbox('none') as s:\n    print(s.run(['pass', 'assert 0']))"
    )
    done = subprocess.run(
        [*outer, sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Verdict(passed=True" in done.stdout and "AssertionError" in done.stdout, done
    assert "sandbox: none: generated programs can read" in done.stderr


CONTAINER = """
import ctypes, struct, sys
from tasks.sandbox.sandbox import describe
from tasks.sandbox.system_calls import Step
numbers = {"clone": (56, 220), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41)}
numbers |= {"sethostname": (170, 161), "unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435)}
steps = [Step(0x20, 0)]
for name, both in numbers.items():
    answer = Step(0x06, 0x00050000 | (38 if name == "clone3" else 1))
    if name not in sys.argv:
        # clone only with a flag that makes a namespace
        block = [Step(0x20, 16), Step(0x45, 0x7E020000, no=1), answer, Step(0x20, 0)] if name == "clone" else [answer]
        steps += [Step(0x15, both[COLUMN], no=len(block)), *block]
steps.append(Step(0x06, 0x7FFF0000))
program = b"".join(struct.pack("=HBBI", one.code, one.yes, one.no, one.value) for one in steps)
text = ctypes.create_string_buffer(program, len(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("@HP", len(steps), ctypes.addressof(text)), 0, 0) == 0
try:
    print(describe("bubblewrap"))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_under_a_containers_filter_it_refuses_and_the_documented_rule_allows_it():
    """Docker's default refuses these calls without CAP_SYS_ADMIN."""
    require_bubblewrap()
    code = CONTAINER.replace("COLUMN", str(["x86_64", "aarch64"].index(platform.machine())))
    (rule,) = re.findall(r'^{"names".*}$', (ROOT / "docs" / "running-code.md").read_text(), re.M)
    said = [
        subprocess.run(
            [sys.executable, "-c", code, *allowed], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
        ).stdout
        for allowed in ([], json.loads(rule)["names"])
    ]
    assert said[0].startswith("BadInput sandbox: bubblewrap: ") and "No permissions to create new namespace" in said[0]
    assert "docs/running-code.md" in said[0] and len(said[0].splitlines()) == 1
    assert said[1].startswith("bubblewrap (")


@pytest.fixture
def forgetful():
    find_bubblewrap.cache_clear()
    yield
    find_bubblewrap.cache_clear()


def test_a_missing_or_broken_bubblewrap_is_refused_before_anything_runs(forgetful, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "binaries", list)
    with pytest.raises(BadInput, match="bubblewrap is not installed; install"):
        describe("bubblewrap")
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(module, "binaries", lambda: [str(broken)])
    with pytest.raises(BadInput, match=r"No permissions to create new namespace.*sandbox: none"), Sandbox() as one:
        one.run(["pass"])
    bwrap = require_bubblewrap_of(monkeypatch)
    monkeypatch.setattr(module, "binaries", lambda: [str(broken), bwrap])
    assert bwrap in describe("bubblewrap")


def require_bubblewrap_of(monkeypatch):
    """One that works, whatever the module was told."""
    with monkeypatch.context() as patch:
        from tasks.sandbox.bubblewrap import binaries

        patch.setattr(module, "binaries", binaries)
        return require_bubblewrap()


def test_an_interpreter_that_does_not_start_is_an_error_and_no_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHILD", tmp_path / "absent.py")
    with pytest.warns(UserWarning), Sandbox("none", SMALL) as one, pytest.raises(Failed, match="did not start"):
        one.run(["pass"])


@pytest.fixture
def unknown_machine(tmp_path, monkeypatch):
    """The code inside knows no machine's system calls, as on one that isn't listed."""
    folder = tmp_path / "tasks" / "sandbox"
    folder.mkdir(parents=True)
    (folder / "child.py").write_text(module.CHILD.read_text())
    text = module.SYSTEM_CALLS.read_text()
    assert "    if machine not in MACHINES:\n" in text
    (folder / "system_calls.py").write_text(text.replace("    if machine not in MACHINES:\n", "    if True:\n"))
    monkeypatch.setattr(module, "CHILD", folder / "child.py")
    monkeypatch.setattr(module, "SYSTEM_CALLS", folder / "system_calls.py")


def test_where_nothing_can_be_confined_nothing_is_judged(forgetful, request):
    require_bubblewrap()
    find_bubblewrap.cache_clear()
    request.getfixturevalue("unknown_machine")
    refused = pytest.raises(BadInput, match=r"a program that does nothing fails: not confined: system calls of")
    with Sandbox("bubblewrap", SMALL) as confined, refused:
        confined.run(["pass"])
    with pytest.warns(UserWarning), Sandbox("none", SMALL) as limited:
        assert limited.run(["pass", "assert 0"]) == [Verdict(True), Verdict(False, "AssertionError: ")]


def test_nothing_to_run_starts_nothing():
    with Sandbox() as one:
        assert one.run([]) == []
        assert not one._all
