"""Whether a process still runs, and what ends with the one for which it works."""

import gc
import os
import subprocess
import sys
import time

import psutil
import pytest

from tasks.project.processes import OWNER, birth, is_alive, uncollected
from tests.flows.processes.test_children import until


def test_a_process_of_the_same_number_is_another_one():
    born = birth(os.getpid())
    assert is_alive(os.getpid(), born)
    assert not is_alive(os.getpid(), born - 1)


def test_a_process_stays_the_same_when_the_clock_is_set(monkeypatch):
    born, boot = birth(os.getpid()), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
    assert is_alive(os.getpid(), born)


def test_a_process_that_was_not_waited_for_counts_as_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: not is_alive(child.pid))
    assert psutil.pid_exists(child.pid)
    child.wait()


WORKER = "import time; from tasks.project.processes import end_with_owner; end_with_owner(); time.sleep({})"


def test_a_process_ends_with_the_one_for_which_it_works():
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    worker = subprocess.Popen([sys.executable, "-c", WORKER.format(60)], env=os.environ | {OWNER: str(owner.pid)})
    time.sleep(1)
    assert worker.poll() is None
    owner.kill()  # and nobody waits for it
    assert worker.wait(20) == 143
    owner.wait()


def test_a_process_that_works_for_nobody_goes_on_to_its_end():
    env = {name: value for name, value in os.environ.items() if name != OWNER}
    assert subprocess.run([sys.executable, "-c", WORKER.format(1)], env=env).returncode == 0


def test_the_garbage_collector_is_back_whatever_happens():
    with pytest.raises(ZeroDivisionError), uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
