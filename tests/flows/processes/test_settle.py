"""What a process of hm3 and those that it starts find in their environment."""

import pytest

from flows.processes.settle import logins_apart

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
