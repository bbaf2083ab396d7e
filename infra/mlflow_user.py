"""Makes the MLflow user named on the command line, or gives that user the password of MLFLOW_USER_PASSWORD.

The server and an administrator of it come from the standard MLflow environment. The user is no administrator: what
others log can be read, as `default_permission` of mlflow-auth.ini says, and what the user makes belongs to the user.
"""

import os
import sys

import httpx

server = httpx.Client(
    base_url=f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/",
    auth=(os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]),
    timeout=60,
)
(name,) = sys.argv[1:]
wanted = {"username": name, "password": os.environ["MLFLOW_USER_PASSWORD"]}
answer = server.get("get", params={"username": name})
if answer.status_code == httpx.codes.NOT_FOUND:
    answer = server.post("create", json=wanted)
elif answer.is_success:
    if answer.json()["user"]["is_admin"]:
        sys.exit(f"{name} is an administrator of MLflow: choose another name")
    answer = server.patch("update-password", json=wanted)
if answer.is_error:
    sys.exit(f"MLflow answered {answer.status_code}: {answer.text}")
