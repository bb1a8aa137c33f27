"""A real Chromium without a screen, driven through its debugging pipe."""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE_S = 60.0


def found() -> str | None:
    """Where the browser is, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page, and everything that it complained of or asked for."""

    def __init__(self, to: int, back: int) -> None:
        self._to = to
        self._back = back
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Log", "Network", "Page", "Runtime"):
            self(f"{domain}.enable")
        self._loaded = False

    def open(self, path: Path) -> None:
        """Show a file, and wait until all of it is there."""
        self._loaded = False
        self("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + PATIENCE_S
        while not self._loaded:
            self._handle(self._next(deadline))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        said = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Give the page another window."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height,
             deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """Let the page's reader like a light or a dark screen."""
        self("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme}
        ])  # fmt: skip

    def screenshot(self) -> str:
        """All of the page, as a PNG in base 64."""
        return str(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            said = self._next(deadline)
            if said.get("id") == number:
                assert "error" not in said, said
                return dict(said["result"])
            self._handle(said)

    def _handle(self, said: dict[str, Any]) -> None:
        parameters = said.get("params", {})
        match said.get("method"):
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(parameters))
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._back, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(command: str, folder: Path) -> Iterator[Page]:
    """A browser with a profile of its own, until the block ends."""
    theirs, to = os.pipe()
    back, their_answers = os.pipe()
    # It expects them as 3 and 4; from 10 on, neither can be in the other's way.
    passed = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (theirs, their_answers)]
    arguments = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder}", "about:blank"),
    ]
    move = f'exec "$@" 3<&{passed[0]} 4>&{passed[1]}'
    with subprocess.Popen(
        ["bash", "-c", move, "bash", command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=passed,
    ) as process:
        for each in (theirs, their_answers, *passed):
            os.close(each)
        try:
            yield Page(to, back)
        finally:
            process.terminate()
            process.wait(20)
            os.close(to)
            os.close(back)
