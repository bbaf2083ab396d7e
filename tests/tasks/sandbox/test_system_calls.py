"""What a program may ask of the kernel: its own process alone, and memory that is counted; and that honest ones run."""

import errno
import platform
import re
import signal
import struct
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from tasks.project.processes import is_alive
from tasks.sandbox import sandbox as module
from tasks.sandbox.child import FILES
from tasks.sandbox.sandbox import Limits, Sandbox, Verdict
from tasks.sandbox.system_calls import ALLOW, CHECKED, DENY, KILL, MACHINES, SELF, UNKNOWN, build_filter, numbers_of
from tests.bubblewrap import require_bubblewrap

SMALL = Limits(cpu_seconds=2, wall_seconds=6, memory_bytes=2**28, file_bytes=2**22)
SOUND = "import math\nassert math.comb(4, 2) == 6"


START = """
import ctypes, errno, fcntl, os, socket
libc, parent, own = ctypes.CDLL(None, use_errno=True), os.getppid(), os.getpid()
number = {numbers!r}

def fails(name, *arguments):
    ctypes.set_errno(0)
    refused = libc.syscall(number[name], *arguments) == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS)
    return [] if refused else [(name, *arguments, ctypes.get_errno())]

room = ctypes.addressof(ctypes.create_string_buffer(256))
ours, theirs = socket.socketpair()
read, write = os.pipe()
"""

NEWER = {"pidfd_send_signal": 424, "clone3": 435, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440}
LISTED = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, perf_event_open 298 241
rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, setpgid 109 154, setsid 112 157, clone 56 220, execve 59 221
socket 41 198, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, mknodat 259 33, flock 73 32, add_key 248 217
keyctl 250 219, mq_open 240 180, shmget 29 194, semget 64 190, msgget 68 186, inotify_init1 294 26, eventfd2 290 19
timerfd_create 283 85, signalfd4 289 74, timer_create 222 107, sendmsg 46 211, sendmmsg 307 269, setsockopt 54 208
connect 42 203, bind 49 200, vmsplice 278 75, tee 276 77, splice 275 76, mlockall 151 230, mbind 237 235
unshare 272 97, setns 308 268, mount 165 40, bpf 321 280, userfaultfd 323 282, sync 162 81, migrate_pages 256 238
move_pages 279 239, personality 135 92
"""
REFUSED = {name: (int(x), int(a)) for name, x, a in re.findall(r"(\w+) (\d+) (\d+)", LISTED)}
"""Calls that get a program out of its process, or memory of the kernel's that no limit counts."""


def program_of(text):
    """A program that can make any call by its number here."""
    column = list(MACHINES).index(platform.machine())
    numbers = {name: both[column] for name, (both, _) in CHECKED.items()} | numbers_of(platform.machine()) | NEWER
    numbers |= {name: both[column] for name, both in REFUSED.items()}
    return START.format(numbers=numbers) + textwrap.dedent(text)


def test_a_program_touches_no_process_but_its_own(either):
    attempts = """
        failed = []
        for other in (parent, 1, -1, -own, 2**31 - 1):
            for name in ("kill", "tkill", "sched_setaffinity", "sched_getaffinity", "sched_setparam", "getsid"):
                failed += fails(name, other, 0, room)
            failed += fails("tgkill", other, other, 0) + fails("prlimit64", other, 0, 0, room)
            failed += fails("sched_setscheduler", other, 3, room) + fails("sched_setattr", other, room, 0)
            failed += fails("setpriority", 0, other, 19) + fails("ioprio_set", 1, other, 0)
        # its group and its user: the latter is the whole machine's where there are no namespaces
        for who in (0, own, parent):
            failed += fails("setpriority", 1, who, 19) + fails("setpriority", 2, who, 19)
            failed += fails("ioprio_set", 2, who, 0) + fails("ioprio_set", 3, who, 0)
        # the kernel itself signals the owner of a descriptor, a lease or a watched folder
        owner = room
        for command in (8, 10, 15, 1024, 1026, 1031, 1033):
            for descriptor in (ours.fileno(), read):
                failed += fails("fcntl", descriptor, command, parent) + fails("fcntl", descriptor, command, owner)
        for command in (0x8901, 0x8902, 0x5452, 0x5412, 0x540E):
            failed += fails("ioctl", ours.fileno(), command, room)
        assert not failed, failed
    """
    assert either.run([program_of(attempts), SOUND]) == [Verdict(True)] * 2


def test_a_program_may_do_to_itself_what_it_may_not_do_to_others(either):
    program = """
        import os, resource, signal
        os.kill(os.getpid(), 0)
        lower = min(19, os.nice(1) + 1)
        os.setpriority(os.PRIO_PROCESS, os.getpid(), lower)
        assert os.getpriority(os.PRIO_PROCESS, 0) == lower
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        os.sched_setscheduler(os.getpid(), os.SCHED_BATCH, os.sched_param(0))
        resource.prlimit(0, resource.RLIMIT_NOFILE, (16, 16))
        assert os.getpgid(0) == os.getsid(0) == os.getpid()
    """
    assert either.run([textwrap.dedent(program)]) == [Verdict(True)]


def test_a_program_cannot_raise_its_own_priority(either):
    found = either.run(
        ["import os\nos.setpriority(0, 0, -5)", "import os\nos.sched_setscheduler(0, 1, os.sched_param(1))"]
    )
    assert all(re.match("PermissionError", one.reason) for one in found), found


def test_what_is_not_listed_is_refused_by_number(either):
    attempts = f"""
        failed = [one for name in {[*REFUSED, *NEWER]} for one in fails(name, room, room, room, room, 0)]
        failed += fails("socketpair", 2, 1, 0, room) + fails("prctl", 1, 0) + fails("madvise", room, 0, 21)
        failed += fails("sendto", ours.fileno(), room, 1, 0, room, 110)
        for number["any"] in (*range(451, 700), 0x40000000 | number["clone"]):
            failed += fails("any")
        assert not failed, failed
    """
    assert either.run([program_of(attempts)]) == [Verdict(True)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has calls of another machine's")
def test_the_calls_of_the_older_machine_end_a_program(either):
    program = """
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # getpid of i386, by interrupt
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    """
    found, behind = either.run([textwrap.dedent(program), SOUND])
    assert re.match("ended by SIG(SYS|SEGV)", found.reason) and behind.passed, found


STORMS = {
    "files": "open(str(n), 'x').close()",
    "folders": "os.mkdir(str(n))",
    "deep folders": "os.mkdir('d')\n    os.chdir('d')",
    "long names": "os.mkdir(str(n) + 'x' * 240)",
    "links": "os.symlink('/' * 100, str(n))",
    "hard links": "open('0', 'a').close() if n == 0 else os.link('0', str(n))",
}


@pytest.mark.parametrize("name", STORMS)
def test_a_program_makes_only_so_many_files(confined, name):
    program = f"import itertools, os\nfor n in itertools.count():\n    {STORMS[name]}"
    took = time.monotonic()
    assert confined.run([program, SOUND]) == [Verdict(False, f"made more than {FILES} files"), Verdict(True)]
    assert time.monotonic() - took < SMALL.wall_seconds


def test_pipes_and_pending_signals_are_bounded(either):
    program = """
        import fcntl, os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
        read, write = os.pipe()
        os.set_blocking(write, False)
        held = 0
        try:
            while True:
                held += os.write(write, bytes(4096))
        except BlockingIOError:
            assert held <= 65536 == fcntl.fcntl(write, 1032), held
        for n in range(1000):
            os.kill(os.getpid(), signal.SIGRTMIN)
        pending = 0
        while signal.sigtimedwait({signal.SIGRTMIN}, 0):
            pending += 1
        assert 0 < pending < 40, pending
    """
    assert either.run([textwrap.dedent(program)]) == [Verdict(True)]


HONEST = {
    "sqlite": "import sqlite3\nc = sqlite3.connect('x')\nc.execute('create table t (a)')\nc.commit()\nc.close()",
    "copies": (
        "import pathlib, shutil\npathlib.Path('a/b').mkdir(parents=True)\npathlib.Path('a/b/c').write_text('1')\n"
        "shutil.copytree('a', 'd')\nshutil.copy2('a/b/c', 'e')\nshutil.move('a', 'f')\nshutil.rmtree('d')\n"
        "assert sorted(map(str, pathlib.Path().rglob('*'))) == ['e', 'f', 'f/b', 'f/b/c']"
    ),
    "archives": "import tarfile, zipfile\nzipfile.ZipFile('x', 'w').close()\ntarfile.open('y', 'w:gz').close()",
    "sockets": (
        "import asyncio, socket\na, b = socket.socketpair()\na.sendall(b'1')\nassert b.recv(9) == b'1'\n"
        "async def f():\n    await asyncio.wait_for(asyncio.sleep(0), 2)\n    return await asyncio.gather(g(), g())\n"
        "async def g():\n    return 1\nassert asyncio.run(f()) == [1, 1]"
    ),
    "timers": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: 1 / 0)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "try:\n    signal.pause()\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert 0"
    ),
    "waiting": (
        "import os, select, selectors, time\nr, w = os.pipe()\nos.write(w, b'1')\ns = selectors.DefaultSelector()\n"
        "s.register(r, selectors.EVENT_READ)\nassert s.select(1) and select.select([r], [], [], 1)[0] == [r]\n"
        "p = select.poll()\np.register(r)\nassert p.poll(1)\ntime.sleep(0.01)"
    ),
    "memory": "import mmap\nm = mmap.mmap(-1, 10**6)\nm.write(b'1')\nm.flush()\nm.resize(2 * 10**6)\nm.close()",
    "locks": "import threading, queue\nwith threading.Lock(), threading.RLock():\n    queue.Queue().put(1)",
    "itself": (
        "import os, platform, resource, secrets, tempfile, time, uuid\nos.times()\nos.uname()\nos.umask(0o22)\n"
        "os.getgroups()\nos.cpu_count()\nplatform.platform()\nresource.getrusage(0)\nresource.getrlimit(0)\nuuid.uuid4()\n"
        "secrets.token_hex()\ntime.get_clock_info('time')\nos.statvfs('.')\ntempfile.mkdtemp()\nos.listxattr('.')"
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_find_what_they_need(either, name):
    assert either.run([HONEST[name]]) == [Verdict(True)]


def answer(steps, machine, number, arguments=(0,) * 6):
    """What a filter answers to a call, by an interpreter of classic BPF that is written from its definition."""
    data, place, held = struct.pack("=IIQ6Q", number, machine, 0, *(one % 2**64 for one in arguments)), 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", steps, 8 * place)
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        else:
            place += yes if {0x15: held == value, 0x35: held >= value}[code] else no


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_says_what_its_tables_say_on_each_machine(machine):
    process, name, column = 4711, MACHINES[machine], list(MACHINES).index(machine)
    steps, allowed = build_filter(process, machine), set(numbers_of(machine).values())
    checked = {numbers[column]: conditions for numbers, conditions in CHECKED.values()}
    assert not allowed & checked.keys() and len(allowed) == len(numbers_of(machine))
    for number in (*range(600), 0x40000000, 0x40000000 | 39, 2**32 - 1):
        refused = UNKNOWN if number >= 424 else DENY
        if number not in checked:
            assert answer(steps, name, number) == (ALLOW if number in allowed else refused), number
        assert answer(steps, name ^ 1, number) == KILL
    for number, conditions in checked.items():
        fitting = {place: [process if one == SELF else one for one in values] for place, values in conditions.items()}
        for place, values in fitting.items():
            base = [fitting.get(one, [77])[-1] for one in range(6)]
            for value in values:
                assert answer(steps, name, number, [*base[:place], value, *base[place + 1 :]]) == ALLOW
            for value in {process + 1, process - 1, -1, -process, 2**31, 999} - set(values):
                assert answer(steps, name, number, [*base[:place], value, *base[place + 1 :]]) == DENY


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine):
    header = Path(HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"{header} is not here; Debian's linux-libc-dev has it")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    numbers = {name.replace("fstatat", "newfstatat").replace("newnew", "new"): int(number) for name, number in found}
    column = list(MACHINES).index(machine)
    listed = numbers_of(machine) | {name: both[column] for name, (both, _) in CHECKED.items()}
    listed |= {name: both[column] for name, both in REFUSED.items()}
    assert {name: number for name, number in listed.items() if numbers.get(name) != number} == {}
    assert errno.EPERM == DENY & 0xFFFF


def test_a_program_that_stops_costs_no_more_than_one_that_ends(either):
    stops = [
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import os, signal\nos.kill(0, signal.SIGSTOP)",
        "import signal\nfor n in (1, 2, 13, 15, 18, 20, 21, 22):\n    signal.signal(n, signal.SIG_IGN)\n"
        "signal.raise_signal(signal.SIGSTOP)",
    ]
    took = time.monotonic()
    assert either.run(stops) == [Verdict(False, "stopped itself")] * 3
    assert time.monotonic() - took < SMALL.wall_seconds


def interpreter_of(sandbox):
    """The process inside a sandbox that forks for each program, once a program runs, and the program."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        below = psutil.Process().children(recursive=True)
        found = [one for one in below if one.name().startswith("python") and sandbox._all and one.parent() in below]
        mine = {one for one in below if one.pid == sandbox._all[-1]._process.pid} if sandbox._all else set()
        for program in found:
            parents = program.parents()
            if program.parent().name().startswith("python") and mine & {program.parent(), *parents}:
                return program.parent(), program
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize("kind", ["bubblewrap", "none"])
def test_a_sandbox_that_is_stopped_or_killed_takes_its_program_along_and_costs_its_limit(kind, monkeypatch):
    if kind == "bubblewrap":
        require_bubblewrap()
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    with Sandbox(kind, Limits(wall_seconds=1.5), workers=1) as sandbox:
        verdicts = []

        def run(signals):
            """Send signals to the interpreters that get the program, one after the other."""
            thread = threading.Thread(target=lambda: verdicts.extend(sandbox.run(["import time\ntime.sleep(60)"])))
            thread.start()
            for one in signals:
                interpreter, program = interpreter_of(sandbox)
                interpreter.send_signal(one)
                end = time.monotonic() + 5
                while is_alive(interpreter.pid) or is_alive(program.pid):
                    assert time.monotonic() < end
                    time.sleep(0.02)
            thread.join()

        sandbox.run([SOUND])
        took = time.monotonic()
        run([signal.SIGSTOP])
        assert time.monotonic() - took < 6
        run([signal.SIGKILL, signal.SIGKILL])
        assert [one.reason for one in verdicts] == ["out of time: no verdict after 2 s", "brought the sandbox down"]
        assert sandbox.run([SOUND]) == [Verdict(True)]
