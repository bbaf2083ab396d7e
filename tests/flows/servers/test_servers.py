"""The record of the servers that `hm3 up` started."""

import json
import os
import sys

from flows.servers.local import run_logged
from flows.servers.up import read_record
from tasks.project.processes import birth


def test_a_log_that_another_program_writes_has_no_login_of_an_address(tmp_path):
    said = "import sys; print('sent to https://me:hidden@host/x', flush=True); sys.exit('no https://me@host')"
    log = tmp_path / "logs" / "log"
    assert run_logged([sys.executable, "-c", said], cwd=tmp_path, env=os.environ, log=log) == 1
    assert log.read_text() == "sent to https://host/x\nno https://host\n"


def test_records_of_processes_that_are_gone_do_not_count(tmp_path):
    entry = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "born": birth(os.getpid()), "log": ""}
    stale = entry | {"born": birth(os.getpid()) - 1}
    (tmp_path / "servers.json").write_text(json.dumps({"prefect": entry, "mlflow": stale}))
    assert set(read_record(tmp_path)) == {"prefect"}
