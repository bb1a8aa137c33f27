"""A client of a server under test, and the pictures it sends to the colour model."""

import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image

_OURS = ("REEF_", "LOG_", "EDGETPU", "LIBEDGETPU", "COMPOSE_", "MAKE", "MFLAGS")
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
"""What this shell sets, without what means something to Reef, Compose or make: what a program under
test gets, so that neither a developer's settings nor those of the tests reach it."""


def picture(red: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A BMP whose answer tells it from others: `red` from 0 to 255."""
    file = BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, "BMP")
    return file.getvalue()


def redness(body: dict[str, Any]) -> int:
    """How red the picture was that an answer of the colour model is for."""
    scores = {found["class"]: found["score"] for found in body["predictions"]}
    return round(255 * float(scores["red"]))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """Asks the server at a port of 127.0.0.1, over a new connection each time."""

    port: int

    def log(self) -> str:
        """What the server said so far."""
        raise NotImplementedError

    def connect(self, timeout_s: float = 30) -> http.client.HTTPConnection:
        """A connection to the server."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a route."""
        return self.request("GET", path)

    def predict(self, image: bytes, query: str = "?min_score=0") -> tuple[int, Any]:
        """Status and JSON of a prediction."""
        headers = {"Content-Type": "application/octet-stream"}
        return self.request("POST", f"/predict{query}", image, headers)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of an answer, over a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def wait_until(self, condition: Callable[[], bool], within_s: float = 30) -> None:
        """Wait until something holds; fails the test, with the log, when it doesn't in time."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in time:\n{self.log()}"
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether `/ready` answers 200."""
        try:
            return self.get("/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return False
