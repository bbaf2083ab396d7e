"""The record of the servers that `hm3 up` started."""

import json
import os

import psutil

from flows.servers import read_record


def test_records_of_processes_that_are_gone_do_not_count(tmp_path):
    process = psutil.Process()
    entry = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "started": process.create_time(), "log": ""}
    stale = entry | {"started": process.create_time() - 1000}
    (tmp_path / "servers.json").write_text(json.dumps({"prefect": entry, "mlflow": stale}))
    assert set(read_record(tmp_path)) == {"prefect"}
