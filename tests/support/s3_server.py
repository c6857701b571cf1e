"""moto's S3 server in a process of its own, behind a proxy on loopback that fails on request.

    with s3_server() as s3:
        s3.faults[:] = ["drop", "lost", "stall", "503"]

Then the next four requests fail, and later ones succeed.

| fault | answer                                              |
|-------|-----------------------------------------------------|
| drop  | the connection is closed, and nothing is done       |
| lost  | it is done, and the connection is closed before the answer |
| stall | silence until the server ends                       |
| 503   | an error, and nothing is done                       |

`kill_at` = (number of a request, process): the process is killed then, after the request is done if
the number is odd, and before if it is even.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "s3://runs"
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, to: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.to = to
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.kill_at: tuple[int, int] | None = None
        self.ended = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback: the tests expect clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *args: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        server.requests.append(f"{self.command} {self.path}")
        number, (last, process) = len(server.requests), server.kill_at or (0, 0)
        if number == last and number % 2 == 0:
            os.kill(process, signal.SIGKILL)
            return self._close()
        if server.ended.is_set():  # a connection of a server that is closed
            return self._close()
        fault = server.faults.pop(0) if server.faults else ""
        if fault == "stall":
            server.ended.wait(120)
        if fault in ("drop", "stall"):
            return self._close()
        if fault == "503":
            return self.send_error(503)
        upstream = http.client.HTTPConnection("127.0.0.1", server.to, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        if number == last:
            os.kill(process, signal.SIGKILL)
        if fault == "lost" or number == last:
            return self._close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _close(self) -> None:
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on


class S3:
    """The server; `faults`, `requests` and `kill_at` are those of its proxy."""

    def __init__(self, moto_port: int):
        self.moto_port = moto_port
        self.port = 0
        self.open()
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def open(self) -> None:
        """Listen, at the same port as before."""
        self.proxy = Proxy(self.port, self.moto_port)
        self.port = self.proxy.server_port
        serve = {"poll_interval": 0.05}
        self.thread = threading.Thread(target=self.proxy.serve_forever, kwargs=serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Connections are refused from now on."""
        self.proxy.ended.set()
        self.proxy.shutdown()
        self.proxy.server_close()
        self.thread.join(10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server with the bucket `BUCKET`."""
    port = _free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _makes_bucket(port):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        s3 = S3(port)
        yield s3
        s3.close()
    finally:
        process.kill()
        process.wait()


def _makes_bucket(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("PUT", "/runs", headers={"Authorization": "AWS x:x"})
        return connection.getresponse().status == 200
    except OSError:
        return False
