"""Children end with those who asked for them, and locks say who holds them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.processes.children import Guarded, command_line, hold
from tasks.project.processes import is_alive

FAMILY = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
OWNER = """
import os, sys, time
from pathlib import Path
from flows.processes.children import Guarded
Guarded([sys.executable, "-c", sys.argv[1]], cwd=Path("."), env=os.environ, log=Path(sys.argv[2]))
time.sleep(60)
"""


def guarded(code, tmp_path):
    return Guarded([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, log=tmp_path / "log")


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def below(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_the_exit_status_and_the_output_come_through(tmp_path):
    child = guarded("print('said'); raise SystemExit(7)", tmp_path)
    until(lambda: child.poll() is not None)
    assert child.stop() == 7
    assert (tmp_path / "log").read_text() == "said\n"


def test_a_command_that_a_signal_ended_has_the_status_that_a_shell_gives(tmp_path):
    child = guarded("import os; os.kill(os.getpid(), 9)", tmp_path)
    until(lambda: child.poll() is not None)
    assert child.stop() == 137


def test_stop_ends_grandchildren_that_ignore_the_interrupt(tmp_path):
    child = guarded(FAMILY + "import signal; signal.signal(2, signal.SIG_IGN); time.sleep(60)", tmp_path)
    until(lambda: len(below(child.process.pid)) == 2)
    family = below(child.process.pid)
    began = time.monotonic()
    assert child.stop() == 143
    assert time.monotonic() - began < 15
    until(lambda: not any(is_alive(one.pid) for one in family), 2)


def test_children_left_behind_by_a_command_that_ended_are_ended(tmp_path):
    child = guarded(FAMILY.replace("subprocess.Popen(", "print(subprocess.Popen(")[:-2] + ".pid)", tmp_path)
    assert child.process.wait(20) == 0
    until(lambda: not is_alive(int((tmp_path / "log").read_text().split()[0])), 2)


def test_everything_ends_when_the_owner_is_killed_outright(tmp_path):
    command = [sys.executable, "-c", OWNER, FAMILY + "time.sleep(60)", str(tmp_path / "log")]
    owner = subprocess.Popen(command, cwd=Path(__file__).parents[3], start_new_session=True)
    until(lambda: len(below(owner.pid)) == 3)
    family = below(owner.pid)
    os.killpg(owner.pid, signal.SIGKILL)
    owner.wait()
    until(lambda: not any(is_alive(one.pid) for one in family))


def test_a_process_that_was_not_waited_for_has_no_command():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    until(lambda: command_line(process) == [sys.executable, "-c", "input()"])
    child.stdin.close()
    until(lambda: not is_alive(child.pid))
    assert command_line(process) == []
    child.wait()
    assert command_line(process) == []


HOLDER = """
import sys, time
from pathlib import Path
from flows.processes.children import hold
with hold(Path(sys.argv[1]), "the first", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a.lock")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_who_waits_for_a_lock_says_for_whom_and_goes_on_when_the_holder_is_killed(holder, tmp_path):
    said = []

    def say(text):
        said.append(text)
        holder.kill()

    with hold(tmp_path / "a.lock", "the second", say):
        assert len(said) == 1
        assert said[0].startswith(f"the second waits for the first (process {holder.pid}, since 2")


def test_a_lock_can_be_held_twice_by_its_holder(tmp_path):
    with hold(tmp_path / "a.lock", "outer", pytest.fail), hold(tmp_path / "a.lock", "inner", pytest.fail):
        pass
