"""Another try is for disks and networks that did not answer."""

import errno

import pytest

from flows.processes.retry import TRY_AGAIN, may_pass
from models.errors import BadInput, Failed, Unavailable
from tests.flows.project import hm3
from tests.small_tasks import make_family_project


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("gone"),
        TimeoutError("slow"),
        OSError(errno.EIO, "input/output error"),
        OSError(errno.ESTALE, "stale file handle"),
        Unavailable("stage: the disk is busy"),
    ],
)
def test_input_and_output_may_pass(error):
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        BadInput("params.yaml: seed: mend it"),
        Failed("search@tiny: out of luck"),
        RuntimeError("a bug"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        PermissionError(errno.EACCES, "no access"),
        OSError(errno.ENOSPC, "disk full"),
    ],
)
def test_the_rest_stays_as_it_is(error):
    assert not may_pass(error)


def test_what_wraps_a_lost_connection_may_pass_unless_it_is_failed_work():
    def wrapped(kind):
        try:
            try:
                raise ConnectionError("refused")
            except ConnectionError as cause:
                raise kind("no answer") from cause
        except kind as error:
            return error

    assert may_pass(wrapped(RuntimeError))
    assert not may_pass(wrapped(Failed))


def test_a_stage_says_by_its_exit_status_that_another_try_may_help(tmp_path, make_family):
    workspace = make_family_project(tmp_path, make_family)
    beside = workspace.run / ".anchors.json.tmp"
    beside.symlink_to(beside)  # to open a loop of links is an error of the system, like a disk that is gone
    done = hm3(tmp_path, "stage", "sample")
    assert done.returncode == TRY_AGAIN, done.stderr
    assert done.stderr.splitlines()[-1].startswith("hm3: [Errno 40]")
