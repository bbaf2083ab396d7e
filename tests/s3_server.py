"""moto's S3 server as a process on loopback, and a proxy before it through which requests go wrong on purpose."""

import http.client
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3

from flows.bench.fault_servers import moto
from tests.servers import ended

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server(log, **env):
    """Address of a server that is there for the time of the block."""
    one, url = moto(log, **env)
    with ended(one):
        yield url


def client_of(url):
    """A client that owes nothing to the code under test."""
    keys = {"aws_access_key_id": "tester", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, **keys)


class Faults:
    """What a proxy does to requests: ``fault(method, path)`` says ``None``, a status, ``cut`` or ``damage``."""

    def __init__(self, target):
        self.host, self.port = target.removeprefix("http://").split(":")
        self.fault = lambda method, path: None
        self.seen = []


@contextmanager
def proxy(target):
    """A proxy before a server; yields its address and its :class:`Faults`."""
    faults = Faults(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self):
            fault = faults.fault(self.command, self.path)
            faults.seen.append((self.command, self.path, fault))
            length = int(self.headers.get("Content-Length", 0))
            if self.headers.get("Expect") == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if fault == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = self.rfile.read(length)
            if isinstance(fault, int):
                self.answer(fault, {}, b"")
                return
            upstream = http.client.HTTPConnection(faults.host, int(faults.port), timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            content = reply.read()
            upstream.close()
            if fault == "damage" and content:
                content = bytes([content[0] ^ 1]) + content[1:]
            self.answer(reply.status, dict(reply.getheaders()), content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        def answer(self, status, headers, content):
            self.send_response_only(status)
            kept = {
                name: one for name, one in headers.items() if name.lower() not in ("connection", "transfer-encoding")
            }
            if self.command != "HEAD":
                kept = {name: one for name, one in kept.items() if name.lower() != "content-length"}
                kept["Content-Length"] = str(len(content))
            for name, value in kept.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
