"""A browser for tests of pages: headless Chromium, driven through its DevTools protocol.

It speaks over two pipes, so it needs no port and no package.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.conftest import need
from tests.support.ranks import die_with_parent

NAMES = ("chromium", "chromium-browser", "google-chrome")
ANSWER_SECONDS = 120
COMMAND_FD, ANSWER_FD = 3, 4
"""Chromium reads commands from the one and writes answers to the other."""
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PROBLEMS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def find_chromium() -> str:
    """The path of a Chromium on PATH; the test is skipped, or fails in CI, if there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    need("chromium", "no chromium on PATH: apt-get install chromium")


class Browser:
    """A Chromium with one page. `problems` has what the page wrote to its console."""

    def __init__(self, folder: Path):
        commands, self.commands = _pipe()
        self.answers, answers = _pipe()

        def connect() -> None:
            die_with_parent()
            os.dup2(commands, COMMAND_FD)
            os.dup2(answers, ANSWER_FD)

        self.process = subprocess.Popen(
            [find_chromium(), *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(COMMAND_FD, ANSWER_FD),
        )
        os.close(commands)
        os.close(answers)
        self.buffer = b""
        self.count = 0
        self.events: list[dict[str, Any]] = []
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    @property
    def problems(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["method"] in PROBLEMS]

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command; returns its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            rest = deadline - time.monotonic()
            ready, _, _ = select.select([self.answers], [], [], max(0, rest))
            assert ready, f"Chromium has not answered for {seconds} s"
            received = os.read(self.answers, 1 << 20)
            assert received, f"Chromium has ended: {self.process.wait()}"
            self.buffer += received
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def wait_for(self, method: str) -> dict[str, Any]:
        """The next event of this name, of those not yet taken."""
        while True:
            for event in self.events:
                if event["method"] == method:
                    self.events.remove(event)
                    return dict(event["params"])
            self.events.append(self._next())

    def open(self, address: str, width: int, scheme: str = "light") -> None:
        """Load a page at a width in pixels, in the colour scheme `light` or `dark`."""
        self.events = []
        self.look(width, scheme)
        # A change of the fragment alone would not load the page again.
        self.call("Page.navigate", url="about:blank")
        self.wait_for("Page.loadEventFired")
        self.call("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def look(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[preference])

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip=size | {"scale": 1}
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(ANSWER_SECONDS)
        os.close(self.commands)
        os.close(self.answers)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the descriptors that Chromium uses."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
