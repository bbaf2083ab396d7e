"""The gate before Prefect and MLflow on this machine: it lets in who holds the secret, and no page of another site.

Neither server could do that by itself: Prefect has a password but then asks for it in its pages, and answers every
Host; MLflow lets pages of every port of this machine in, and all of them to ``/graphql``. uvicorn serves what
:func:`prefect` and :func:`mlflow` make.
"""

from __future__ import annotations

import json
import os
import uuid
from base64 import b64decode
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi.requests import HTTPConnection
from fastapi.responses import HTMLResponse, PlainTextResponse

from flows.servers.local import STATE
from tasks.project.secret import derived, secret
from tasks.tracking.mlflow import local_store

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = "/hm3-open"
"""Path of the address with which a user opens a server's pages."""

PAGES = '<!doctype html><title>hm3</title><meta http-equiv="refresh" content="0;url=/">'
"""Leads on to the pages. A redirect would not do: a strict cookie is left out where another site's link began it."""

CLOSED = 1008
"""WebSocket code: against the rules."""


def opening(url: str, state: Path) -> str:
    """The address that opens the pages of the server at ``url``, a local one; its key opens nothing but those."""
    return f"{url}{OPEN}?key={derived(secret(state), f'open {url}')}"


def prefect() -> Gate:
    """Prefect's server with all that the environment asks for, behind the gate."""
    from prefect.server.api.server import create_app

    return Gate(create_app(), secret(Path(os.environ[STATE])))


def mlflow() -> Gate:
    """What `mlflow server` serves on the state folder's database, behind the gate.

    Artifacts are written to the folder itself: a run must stay readable when the server is down again.
    """
    from mlflow.environment_variables import _MLFLOW_IN_JOB_EXECUTOR, _MLFLOW_SERVER_BOOT_ID, _MLFLOW_SGI_NAME
    from mlflow.server import constants
    from mlflow.server.handlers import initialize_backend_stores

    state = Path(os.environ[STATE])
    database, artifacts = local_store(state)
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = database
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = artifacts
    _MLFLOW_SGI_NAME.set("uvicorn")
    _MLFLOW_SERVER_BOOT_ID.set(uuid.uuid4().hex)  # with it a server builds no scorer from code that a client sent
    _MLFLOW_IN_JOB_EXECUTOR.set(False)
    initialize_backend_stores(database, database, artifacts)
    from mlflow.server.fastapi_app import app

    return Gate(app, secret(state))


class Gate:
    """An ASGI application that passes on what is asked for by holders of a secret, from this server's own address.

    The secret comes in as a password or a token, as Prefect's and MLflow's clients send it; from a browser as the
    cookie that the opening address gives it; over Prefect's WebSockets as the token of the first message.
    """

    def __init__(self, app: ASGIApp, secret: str):
        self.app = app
        self.secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        port = scope["server"][1]
        reason, url = stranger(asked, port), f"http://127.0.0.1:{port}"
        if reason is None and self.holds(asked, url):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            if reason is None and "prefect" in scope["subprotocols"]:
                await self.app(scope, self.first_message(receive, send), send)
            else:
                await send({"type": "websocket.close", "code": CLOSED})
        elif reason is None and scope["path"] == OPEN and self.is_key(asked.query_params.get("key"), url):
            await self.let_in(url)(scope, receive, send)
        else:
            said = reason or "open the address that `hm3 up` prints, or send the state folder's secret as a password"
            await PlainTextResponse(f"refused: {said}\n", 403, {"Cache-Control": "no-store"})(scope, receive, send)

    def is_key(self, given: str | None, url: str) -> bool:
        """Whether it is that of the opening address."""
        return same(given, self.derived("open", url))

    def derived(self, purpose: str, url: str) -> str:
        """What stands for the secret of one server in one place."""
        return derived(self.secret, f"{purpose} {url}")

    def holds(self, asked: HTTPConnection, url: str) -> bool:
        """Whether who asks has shown the secret, or the cookie of one who had the opening address."""
        scheme, _, given = asked.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            given = password_of(given)
        return same(given, self.secret) or same(asked.cookies.get(cookie_name(url)), self.derived("cookie", url))

    def let_in(self, url: str) -> HTMLResponse:
        """The page that gives a browser its cookie. Cookies of all ports are one, so the name holds the port."""
        page = HTMLResponse(PAGES, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        page.set_cookie(cookie_name(url), self.derived("cookie", url), httponly=True, samesite="strict")
        return page

    def first_message(self, receive: Receive, send: Send) -> Receive:
        """A WebSocket's messages, which end at the first one unless that shows the secret."""
        shown = False

        async def checked() -> Message:
            nonlocal shown
            message = await receive()
            if message["type"] == "websocket.receive" and not shown:
                shown = same(token_of(message), self.secret)
                if not shown:
                    await send({"type": "websocket.close", "code": CLOSED})
                    return {"type": "websocket.disconnect", "code": CLOSED}
            return message

        return checked


def stranger(asked: HTTPConnection, port: int) -> str | None:
    """Why something is not asked from this server's own address, as far as a browser tells; None where it is."""
    hosts, origins = asked.headers.getlist("host"), asked.headers.getlist("origin")
    if len(hosts) != 1 or hosts[0] not in (f"127.0.0.1:{port}", f"localhost:{port}"):
        return f"this is http://127.0.0.1:{port}, and answers under no other name"
    if any(one != f"http://{hosts[0]}" for one in origins):
        return "asked by a page of another site"
    if asked.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_visit(asked):
        return "asked by a page of another site"
    return None


def is_visit(asked: HTTPConnection) -> bool:
    """Whether a user followed a link: the page that had it sees nothing of the answer."""
    wanted = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    return asked.scope.get("method") == "GET" and all(asked.headers.get(key) == one for key, one in wanted.items())


def cookie_name(url: str) -> str:
    """Name of a server's cookie."""
    return f"hm3-{url.rpartition(':')[2]}"


def same(given: str | None, wanted: str) -> bool:
    """Whether they are equal, in a time that tells nothing."""
    return compare_digest((given or "").encode(errors="replace"), wanted.encode())


def password_of(credentials: str) -> str:
    """The password, or nothing where it isn't ``user:password`` in base64."""
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def token_of(message: Message) -> str:
    """The password that Prefect's first message carries, if it does."""
    try:
        return str(json.loads(message.get("text") or "")["token"]).partition(":")[2]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
