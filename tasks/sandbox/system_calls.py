"""What a generated program may ask of the kernel: a filter of system calls (seccomp), installed for good.

A program stays one process with one thread, signals nobody, opens no socket, and holds memory only where its limit
counts it. Unlike ``RLIMIT_NPROC``, from which root is exempt even in a user namespace, this holds for every user.
Standard library alone: it is imported inside the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables below, and the kernel's name of the machine (``AUDIT_ARCH_*``)."""

REFUSED = {
    # a second process, thread or program
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    # networks; a pair of connected sockets, which asyncio needs, is another call
    "socket": (41, 198),
    # memory that no limit counts, or that outlives the program
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    # large interfaces of the kernel that no such program needs
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
"""Name of each call that fails with EPERM → its number, where the machine has it."""

ON_ITSELF = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "prlimit64": (302, 261)}
"""Calls that a process may make on itself alone: their first argument is 0 or its own number."""

LOAD, EQUAL, AT_LEAST, ANSWER = 0x20, 0x15, 0x35, 0x06
"""Classic BPF: load a word of the call's description, compare with a constant and jump, return."""

ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in ``struct seccomp_data``; of the argument the lower half, which is the whole of a process number."""

OTHER_NUMBERING = 0x40000000
"""x86_64 knows each call under a second number with this bit."""

SET_NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2


def build_filter(process: int, machine: str) -> bytes | None:
    """The filter for one process as the kernel takes it, or ``None`` for a machine whose calls aren't listed.

    The process has the number that it sees itself, the machine the name that ``platform.machine()`` gives it.
    """
    if machine not in MACHINES:
        return None
    column, name = MACHINES[machine]
    own = [numbers[column] for numbers in ON_ITSELF.values()]
    refused = [number for numbers in REFUSED.values() if (number := numbers[column]) is not None]
    # behind the comparisons: allow, the three steps that look at the first argument, allow, deny
    end = 4 + len(own) + len(refused)
    steps = [(LOAD, MACHINE, 0, 0), (EQUAL, name, 1, 0), (ANSWER, KILL, 0, 0), (LOAD, NUMBER, 0, 0)]
    for number in own:
        steps.append((EQUAL, number, end + 1 - len(steps), 0))
    for number in refused:
        steps.append((EQUAL, number, end + 5 - len(steps), 0))
    steps += [(AT_LEAST, OTHER_NUMBERING, 5, 0), (ANSWER, ALLOW, 0, 0), (LOAD, FIRST_ARGUMENT, 0, 0)]
    steps += [(EQUAL, 0, 1, 0), (EQUAL, process, 0, 1), (ANSWER, ALLOW, 0, 0), (ANSWER, DENY, 0, 0)]
    return b"".join(struct.pack("=HBBI", code, yes, no, value) for code, value, yes, no in steps)


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
