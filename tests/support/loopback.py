"""A real HTTP server on loopback that serves a folder, understands Range, and fails on request.

    with serve(folder) as server:
        server.faults["a.tar"] = ["drop", "stall", "503"]

Then the first three requests for this file fail, and later requests succeed.

| fault    | answer                                               |
|----------|------------------------------------------------------|
| drop     | half of the bytes, then the connection is closed     |
| truncate | half of the bytes, and the length header agrees      |
| flip     | all bytes, one bit of them changed                   |
| stall    | half of the bytes, then silence until the server ends |
| 503      | an error                                             |
| all      | all bytes: Range is ignored                          |
| portal   | the login page of a network                          |

`tags` are the ETags of files. If-Range is obeyed, unless `careless`.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        """(path, Range) of every GET."""
        self.ended = threading.Event()
        self.tags: dict[str, str] = {}
        self.careless = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Print no traceback: the tests expect clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        faults = self.server.faults[Path(self.path.partition("?")[0]).name]
        self.server.requests.append((self.path.lstrip("/"), self.headers.get("Range")))
        self._answer(faults.pop(0) if faults else "")

    def _answer(self, fault: str | None) -> None:
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if fault == "503" or not path.is_file():
            return self.send_error(503 if fault == "503" else 404)
        data = b"<!DOCTYPE html><p>Log in" if fault == "portal" else path.read_bytes()
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        tag = self.server.tags.get(path.name)
        changed = not self.server.careless and self.headers.get("If-Range") not in (None, tag)
        if fault in ("all", "portal") or changed:
            first = 0
        if first and first >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        code, body = (206 if first else 200), data[first:]
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        half = body[: len(body) // 2]
        self.send_response(code)
        if tag:
            self.send_header("ETag", tag)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(half) if fault == "truncate" else len(body)))
        self.end_headers()
        if fault is not None:  # else HEAD
            self.wfile.write(half if fault in ("drop", "truncate", "stall") else body)
        if fault == "stall":
            self.server.ended.wait(120)
        self.close_connection = fault in ("drop", "stall")


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join(10)
