"""The record of the servers that `hm3 up` started."""

import json
import os

from flows.servers.up import read_record
from tasks.project.processes import birth


def test_records_of_processes_that_are_gone_do_not_count(tmp_path):
    entry = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "born": birth(os.getpid()), "log": ""}
    stale = entry | {"born": birth(os.getpid()) - 1}
    (tmp_path / "servers.json").write_text(json.dumps({"prefect": entry, "mlflow": stale}))
    assert set(read_record(tmp_path)) == {"prefect"}
