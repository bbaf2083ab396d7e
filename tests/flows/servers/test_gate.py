"""The gate before local servers: who gets through, by every combination of what a request can carry."""

import asyncio
import base64
import itertools
import json
import os
import stat
import threading

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from flows.servers.gate import OPEN, Gate, opening
from models.errors import BadInput
from tasks.project.secret import secret

PORT = 4200
OWN = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def client(state):
    """What asks a small server behind a gate; it carries no secret by itself."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def anything(path: str):
        return path

    @app.websocket("/ws")
    async def echo(socket: WebSocket):
        await socket.accept(subprotocol="prefect")
        async for text in socket.iter_text():
            await socket.send_text(text)

    with TestClient(Gate(app, secret(state)), base_url=OWN, follow_redirects=False) as client:
        yield client


def basic(password, name="hm3"):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


HOSTS = {
    None: True,
    f"localhost:{PORT}": True,
    "127.0.0.1": False,
    "127.0.0.1:4201": False,
    f"evil.example:{PORT}": False,
    f"127.0.0.1.evil.example:{PORT}": False,
    f"[::1]:{PORT}": False,
    "": False,
}
ORIGINS = {
    None: True,
    "own": True,
    "null": False,
    "http://evil.example": False,
    "http://127.0.0.1:4201": False,
    f"https://127.0.0.1:{PORT}": False,
    f"{OWN}.evil.example": False,
}
SITES = {None: True, "none": True, "same-origin": True, "same-site": False, "cross-site": False, "new": False}


def test_it_lets_in_who_has_the_secret_and_asks_at_its_address_and_is_no_page_of_another_site(client, state):
    word = secret(state)
    login = {
        None: False,
        basic(word): True,
        basic(word, "anybody"): True,
        f"Bearer {word}": True,
        basic(word[:-1]): False,
        basic(""): False,
        "Basic !": False,
        "Basic": False,
        f"Bearer {word}x": False,
    }
    for cases in itertools.product(HOSTS.items(), ORIGINS.items(), SITES.items(), login.items()):
        if sum(not fine for _, fine in cases) > 1:
            continue
        (host, _), (origin, _), (site, _), (shown, _) = cases
        if origin == "own":
            origin = f"http://{host or f'127.0.0.1:{PORT}'}"
        sent = {"host": host, "origin": origin, "sec-fetch-site": site, "authorization": shown}
        sent = {name: value for name, value in sent.items() if value is not None}
        answer = client.post("/api/flows/", headers=sent)
        assert (answer.status_code == 200) == all(fine for _, fine in cases), sent
        assert answer.status_code in (200, 403)
        assert not set(answer.headers) & {"access-control-allow-origin", "set-cookie", "www-authenticate"}


def test_a_header_that_comes_twice_is_not_half_believed(client, state):
    right = ("authorization", basic(secret(state)))
    for name, values in {"host": (f"127.0.0.1:{PORT}", "evil.example"), "origin": (OWN, "http://evil.example")}.items():
        for both in (values, values[::-1]):
            assert client.post("/x", headers=[right, *((name, one) for one in both)]).status_code == 403


def test_the_opening_address_gives_a_cookie_that_opens_this_server_alone(client, state):
    address = opening(OWN, state)
    assert secret(state) not in address
    page = client.get(address, headers={"sec-fetch-site": "cross-site"} | VISIT)
    assert page.status_code == 200
    assert "url=/" in page.text
    assert page.headers["cache-control"] == "no-store"
    name, _, rest = page.headers["set-cookie"].partition("=")
    value, _, how = rest.partition(";")
    assert name == f"hm3-{PORT}"
    assert {"httponly", "samesite=strict", "path=/"} <= {one.strip().lower() for one in how.split(";")}
    assert secret(state) not in value
    assert value not in address
    client.cookies.clear()
    for cookie, status in {f"{name}={value}": 200, f"{name}=": 403, f"hm3-1={value}": 403}.items():
        assert client.get("/", headers={"cookie": cookie}).status_code == status
    for key in (opening("http://127.0.0.1:4201", state).partition("key=")[2], "", "x", value, secret(state)):
        assert client.get(f"{OPEN}?key={key}").status_code == 403
    assert client.get(OPEN).status_code == 403
    for how in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.get(address, headers=how).status_code == 403
    other = Gate(FastAPI(), secret(state))
    with TestClient(other, base_url="http://127.0.0.1:4201") as elsewhere:
        assert elsewhere.get("/", headers={"cookie": f"{name}={value}"}).status_code == 403


VISIT = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def test_a_link_on_another_site_shows_a_page_to_the_user_but_nothing_else_of_that_site_does(client, state):
    right = {"authorization": basic(secret(state)), "sec-fetch-site": "same-site"}
    assert client.get("/", headers=right | VISIT).status_code == 200
    assert client.post("/", headers=right | VISIT).status_code == 403
    for other in ({"sec-fetch-dest": "iframe"}, {"sec-fetch-mode": "no-cors"}, {"sec-fetch-dest": "image"}):
        assert client.get("/", headers=right | VISIT | other).status_code == 403


def test_a_websocket_opens_by_header_by_cookie_or_by_prefects_first_message(client, state):
    login = f"hm3:{secret(state)}"
    first = json.dumps({"type": "auth", "token": login})

    def echoed(headers, text, protocols=("prefect",)):
        try:
            with client.websocket_connect(f"ws://127.0.0.1:{PORT}/ws", list(protocols), headers=headers) as socket:
                for _ in range(2):  # the second is not looked at any more
                    socket.send_text(text)
                    heard = socket.receive_text()
                return heard == text
        except WebSocketDisconnect:
            return False

    cookie = client.get(opening(OWN, state)).headers["set-cookie"].partition(";")[0]
    client.cookies.clear()
    assert echoed({"authorization": basic(secret(state))}, "x", ())
    assert echoed({"cookie": cookie}, "x")
    assert not echoed({"cookie": f"{cookie}x"}, "x")
    assert echoed({}, first)
    assert not echoed({}, first, ())
    assert not echoed({"authorization": basic("y")}, "x", ())
    for text in ("x", "{}", "[]", "null", '{"token": null}', '{"token": "\\ud800:"}', first.replace("hm3:", "hm3:x")):
        assert not echoed({}, text), text
    for how in ({"origin": "http://evil.example"}, {"host": "evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert not echoed(how, first)
        assert not echoed({"authorization": basic(secret(state))} | how, "x")


def test_what_is_no_text_is_no_secret(state):
    async def ask():
        sent = []

        async def app(scope, receive, send):
            assert (await receive())["type"] == "websocket.disconnect"

        async def receive():
            return {"type": "websocket.receive", "bytes": b"\xff"}

        async def send(message):
            sent.append(message["type"])

        scope = {"type": "websocket", "server": ("127.0.0.1", PORT), "path": "/", "subprotocols": ["prefect"]}
        scope["headers"] = [(b"host", f"127.0.0.1:{PORT}".encode())]
        await Gate(app, secret(state))(scope, receive, send)
        return sent

    assert asyncio.run(ask()) == ["websocket.close"]


def test_a_secret_is_made_once_whoever_is_first_and_its_owner_alone_reads_it(tmp_path):
    found = []
    old = os.umask(0)
    try:
        makers = [threading.Thread(target=lambda: found.append(secret(tmp_path / "state"))) for _ in range(16)]
        for one in makers:
            one.start()
        for one in makers:
            one.join()
    finally:
        os.umask(old)
    (file,) = (tmp_path / "state").iterdir()
    assert set(found) == {file.read_text()}
    assert len(found) == 16
    assert len(found[0]) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret(tmp_path / "other") != found[0]


@pytest.mark.parametrize(
    ("mode", "text", "said"), [(0o640, "x", "other users may read it"), (0o600, "", "empty"), (0o600, "ä", ".*ascii.*")]
)
def test_a_secret_that_is_none_is_refused_with_the_remedy(tmp_path, mode, text, said):
    (tmp_path / "secret").write_text(text)
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(BadInput, match=f"{said}; `hm3 down`, delete it, and"):
        secret(tmp_path)
