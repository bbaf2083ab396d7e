"""What a process of hm3 and those that it starts find in their environment."""

import pytest

from flows.processes.settle import direct, logins_apart

PREFECT, LOGIN = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"
MLFLOW, NAME, WORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({PREFECT: "https://me:a%40b@host/api"}, {PREFECT: "https://host/api", LOGIN: "me:a@b"}),
        ({MLFLOW: "http://me:x@[::1]:5000"}, {MLFLOW: "http://[::1]:5000", NAME: "me", WORD: "x"}),
        ({MLFLOW: "http://host", NAME: "me"}, {MLFLOW: "http://host", NAME: "me"}),
        ({MLFLOW: "postgresql://me:x@db/mlflow"}, {MLFLOW: "postgresql://me:x@db/mlflow"}),
        ({}, {}),
    ],
)
def test_a_login_stands_beside_the_address_of_a_server(given, found):
    assert logins_apart({"OTHER": "http://me:x@host"} | given) == {"OTHER": "http://me:x@host"} | found


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, None),
        ({"no_proxy": "x"}, "x"),
        ({"http_proxy": "http://proxy"}, "127.0.0.1,localhost"),
        ({"ALL_PROXY": "http://proxy", "NO_PROXY": "a,127.0.0.1", "no_proxy": "b"}, "a,127.0.0.1,b,localhost"),
    ],
)
def test_no_proxy_is_asked_for_servers_of_this_machine(given, hosts):
    found = direct(given)
    assert found.get("no_proxy") == hosts
    assert {name: value for name, value in found.items() if name.lower() != "no_proxy"} == {
        name: value for name, value in given.items() if name.lower() != "no_proxy"
    }
    assert direct(found) == found
