"""The API of a Prefect server, as tests ask it."""

import base64
import json
import time
import urllib.error
import urllib.request

from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

DONE = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def is_busy(error):
    """Whether the server asks to come again: SQLite is locked, as happens on a busy machine."""
    return isinstance(error, urllib.error.HTTPError) and error.code == 503


@retry(retry=retry_if_exception(is_busy), wait=wait_fixed(1), stop=stop_after_delay(60), reraise=True)
def call(url, body=None, login=None):
    """Answer of a GET, or of a POST where there is a body; ``login``: ``name:password`` of a server of ours."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    request = urllib.request.Request(url, data, headers | {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read() or b"null")


def within(seconds, condition, why):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, why
        time.sleep(0.1)
    return result


class Server:
    """The Prefect API of `hm3 up`, and what it is asked here."""

    def __init__(self, addresses, login):
        self.addresses = addresses
        self.login = login

    def call(self, path, body=None):
        return call(f"{self.addresses['prefect']}/api/{path}", body, self.login)

    def mlflow(self, path):
        return call(f"{self.addresses['mlflow']}/{path}", login=self.login)

    def trigger(self, name, **parameters):
        """Ask for a run of a deployment, ``flow/deployment``, as a form does; the run's id."""
        deployment = self.call(f"deployments/name/{name}")
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return self.call(f"deployments/{deployment['id']}/create_flow_run", body)["id"]

    def wait(self, run, wanted=DONE, seconds=150):
        """The run's state as soon as it is one of these types."""
        deadline = time.monotonic() + seconds
        while (state := self.call(f"flow_runs/{run}")["state"])["type"] not in wanted:
            assert time.monotonic() < deadline, self.said(run)
            time.sleep(0.3)
        return state["name"]

    def said(self, run):
        """What a run has logged so far."""
        logs = {"flow_run_id": {"any_": [run]}}
        return [one["message"] for one in self.call("logs/filter", {"logs": logs, "sort": "TIMESTAMP_ASC"})]

    def line(self, run, part, seconds=30):
        """The line of a run's log that has the part; a log is sent a moment later."""
        return within(seconds, lambda: [one for one in self.said(run) if part in one], f"no line says {part}")[0]

    def artifacts(self, run):
        """Artifacts of a run by key."""
        found = self.call("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {one["key"]: one for one in found}
