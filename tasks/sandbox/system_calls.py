"""What a generated program may ask of the kernel: a filter of system calls (seccomp), installed for good.

What is listed is allowed, nothing else: what Python and its standard library need to compute, to wait, and to use the
files of one folder. A program stays one process with one thread, touches no other process, opens no socket but a pair
of connected ones, and holds memory only where a limit counts it. Unlike ``RLIMIT_NPROC``, from which root is exempt
even in a user namespace, this holds for every user. Standard library alone: it is imported inside the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's name of each machine whose calls are listed (``AUDIT_ARCH_*``), in the order of their numbers below."""

ALLOWED = """
# files that are open
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70
preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57, close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24
fsync 74 82, fdatasync 75 83, ftruncate 77 46, fallocate 285 47, sendfile 40 71, copy_file_range 326 285
# files by name; attributes are read alone, because the kernel keeps them in memory that nothing counts
open 2 -, openat 257 56, creat 85 -, access 21 -, faccessat 269 48, faccessat2 439 439, stat 4 -, lstat 6 -, fstat 5 80
newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, truncate 76 45, rename 82 -, renameat 264 38
renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35
symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53
chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54
umask 95 166, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, getdents 78 -, getdents64 217 61
getcwd 79 17, chdir 80 49, fchdir 81 50
getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12, flistxattr 196 13
# memory
mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, msync 26 227, brk 12 214
# to wait
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, pipe 22 -, pipe2 293 59, futex 202 98, pause 34 -
restart_syscall 219 128, nanosleep 35 101, clock_nanosleep 230 115, sched_yield 24 124
# a pair of sockets, as asyncio needs it
getsockname 51 204, getpeername 52 205, getsockopt 55 209, shutdown 48 210, recvfrom 45 207
# signals and timers of its own
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137
rt_sigsuspend 130 133, sigaltstack 131 132, alarm 37 -, getitimer 36 102, setitimer 38 103
# about itself, the time and chance
getpid 39 172, getppid 110 173, gettid 186 178, getpgrp 111 -, getuid 102 174, geteuid 107 175, getgid 104 176
getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158, getrlimit 97 163, setrlimit 160 164
getrusage 98 165, times 100 153, uname 63 160, sysinfo 99 179, getcpu 309 168, time 201 -, gettimeofday 96 169
clock_gettime 228 113, clock_getres 229 114, getrandom 318 278, sched_get_priority_max 146 125
sched_get_priority_min 147 126, exit 60 93, exit_group 231 94
"""
"""Each call that is allowed whatever its arguments are: its number on each machine, ``-`` where there is none."""

SELF = -1
"""Stands for the number of the process itself, which is known only when the filter is built."""

ONESELF = {0: (0, SELF)}
OWN_PRIORITY = {0: (0,), 1: (0, SELF)}
OWN_IO_PRIORITY = {0: (1,), 1: (0, SELF)}
"""``PRIO_PROCESS`` is 0, ``IOPRIO_WHO_PROCESS`` 1: not a group, not all processes of a user."""

CHECKED: Mapping[str, tuple[tuple[int, int], Mapping[int, tuple[int, ...]]]] = {
    "kill": ((62, 129), ONESELF),
    "tkill": ((200, 130), ONESELF),
    "tgkill": ((234, 131), ONESELF),
    "prlimit64": ((302, 261), ONESELF),
    "getpgid": ((121, 155), ONESELF),
    "getsid": ((124, 156), ONESELF),
    "getpriority": ((140, 141), OWN_PRIORITY),
    "setpriority": ((141, 140), OWN_PRIORITY),
    "ioprio_get": ((252, 31), OWN_IO_PRIORITY),
    "ioprio_set": ((251, 30), OWN_IO_PRIORITY),
    "sched_getaffinity": ((204, 123), ONESELF),
    "sched_setaffinity": ((203, 122), ONESELF),
    "sched_getparam": ((143, 121), ONESELF),
    "sched_setparam": ((142, 118), ONESELF),
    "sched_getscheduler": ((145, 120), ONESELF),
    "sched_setscheduler": ((144, 119), ONESELF),
    "sched_getattr": ((315, 275), ONESELF),
    "sched_setattr": ((314, 274), ONESELF),
    "sched_rr_get_interval": ((148, 127), ONESELF),
    # descriptors, their flags, locks of files, the size of a pipe; no owner of signals, no lease, no larger pipe
    "fcntl": ((72, 25), {1: (0, 1, 2, 3, 4, 5, 6, 7, 9, 36, 37, 38, 1030, 1032)}),
    # whether it is a terminal (two forms), its size, bytes that wait, close-on-exec, non-blocking
    "ioctl": ((16, 29), {1: (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5450, 0x5451, 0x5421)}),
    # the name of the thread, and of memory
    "prctl": ((157, 167), {0: (15, 16, 0x53564D41)}),
    # what an allocator says of its own memory
    "madvise": ((28, 233), {2: (0, 1, 2, 3, 4, 8, 14, 15)}),
    "socketpair": ((53, 199), {0: (1,)}),
    # to the other one of the pair: no address
    "sendto": ((44, 206), {5: (0,)}),
}
"""Calls that are allowed with some arguments: numbers, and by the place of an argument the values that it may have.

All of these arguments are of 32 bits, so the lower half is the whole of each.
"""

LOAD, EQUAL, AT_LEAST, ANSWER = 0x20, 0x15, 0x35, 0x06
"""Classic BPF: load a word of the call's description, compare with a constant and jump, return."""

ALLOW, KILL, DENY, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
"""Offsets in ``struct seccomp_data``; each argument has 8 bytes, the lower half first."""

NEWER = 424
"""From here on all machines share their numbers. What isn't allowed is unknown, as on an older kernel, so that a C
library takes the older way."""

SET_PARENT_DEATH_SIGNAL, SET_NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 1, 38, 22, 2


@dataclass(frozen=True)
class Step:
    """One instruction of classic BPF; how many of the next ones it skips if a comparison holds, and if it doesn't."""

    code: int
    value: int
    yes: int = 0
    no: int = 0


def numbers_of(machine: str) -> dict[str, int]:
    """Each call of ``ALLOWED`` that a machine has → its number."""
    lines = [line for line in ALLOWED.strip().splitlines() if not line.startswith("#")]
    rows = [one.split() for line in lines for one in line.split(",")]
    column = 1 + list(MACHINES).index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def build_filter(process: int, machine: str) -> bytes | None:
    """The filter for one process as the kernel takes it, or ``None`` for a machine whose calls aren't listed.

    The process has the number that it sees itself, the machine the name that ``platform.machine()`` gives it.
    """
    if machine not in MACHINES:
        return None
    steps = [Step(LOAD, MACHINE), Step(EQUAL, MACHINES[machine], yes=1), Step(ANSWER, KILL), Step(LOAD, NUMBER)]
    for number in numbers_of(machine).values():
        steps += [Step(EQUAL, number, no=1), Step(ANSWER, ALLOW)]
    for numbers, conditions in CHECKED.values():
        block = list(_checks(process, conditions))
        steps += [Step(EQUAL, numbers[list(MACHINES).index(machine)], no=len(block)), *block]
    steps += [Step(AT_LEAST, NEWER, no=1), Step(ANSWER, UNKNOWN), Step(ANSWER, DENY)]
    return b"".join(struct.pack("=HBBI", one.code, one.yes, one.no, one.value) for one in steps)


def _checks(process: int, conditions: Mapping[int, tuple[int, ...]]) -> Iterator[Step]:
    for place, values in conditions.items():
        yield Step(LOAD, ARGUMENTS + 8 * place)
        for index, value in enumerate(values):
            yield Step(EQUAL, process if value == SELF else value, yes=len(values) - index)
        yield Step(ANSWER, DENY)
    yield Step(ANSWER, ALLOW)


def die_with(parent: int) -> None:
    """Be killed when the parent, which has this number, ends. Only Linux does that.

    Raises:
        OSError: the kernel refuses, or the parent has ended before.
    """
    if sys.platform != "linux":
        return
    _succeed(ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        raise OSError("the parent has ended")


def drop_capabilities() -> None:
    """Give up root's privileges, as far as this process has any. Only Linux has them in this form.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform != "linux":
        return
    version_3 = struct.pack("=Ii", 0x20080522, 0)
    _succeed(ctypes.CDLL(None, use_errno=True).capset(version_3, bytes(24)))


def install_filter() -> bool:
    """Put this process and what it becomes under the filter, if there is one for this machine. There is no way back.

    Raises:
        OSError: the kernel knows no filters.
    """
    program = build_filter(os.getpid(), platform.machine())
    if sys.platform != "linux" or program is None:
        return False
    text = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    _succeed(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _succeed(libc.prctl(SET_SECCOMP, FILTER, described, 0, 0))
    return True


def _succeed(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
