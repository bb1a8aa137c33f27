"""Sends mutated requests to a real server: `python -m tests.fuzz.requests [COUNT [SEED]]`.

Each goes over a connection of its own and ends with the client's end of file. Every answer must
have one of STATUSES, or be none at all, for what is no request; the server must not grow, and must
serve as before at the end.
"""

import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests import colour_model
from tests.client import picture, redness
from tests.corpus.mutate import mutate
from tests.server.conftest import Server
from tests.support import encode, flat, form, noise, part

COUNT, SEED = 20_000, 35
NONE = 0
STATUSES = {NONE, 100, 200, 400, 404, 405, 408, 413, 414, 415, 417, 422, 429, 431, 501, 503, 505}
"""NONE: closed without an answer."""

CLIENTS = 8
TIMEOUT_S = 30
MOST_GROWTH = 48 * 1024 * 1024
REPORT_EVERY = 2_000


def head(line: str, *headers: str, body: bytes = b"", length: bool = True) -> bytes:
    """A request."""
    lines = [line, "Host: reef", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def seeds() -> list[bytes]:
    """The requests that are damaged: each route, each way to send a picture, each header."""
    jpeg = flat(size=(16, 12))
    sent = form(part("image", jpeg, "a.jpg"), part("min_score", "0.5"), part("labels", "red"))
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(jpeg), jpeg)
    raw, post = "Content-Type: image/jpeg", "POST /predict HTTP/1.1"
    return [
        *(
            head(f"GET {path} HTTP/1.1", length=False)
            for path in ("/health", "/ready", "/devices", "/models", "/metrics", "/openapi.json")
        ),
        head("OPTIONS /predict HTTP/1.1", "Origin: https://a.example"),
        head(post, raw, body=jpeg),
        head(post, raw, body=encode(noise((16, 12)), "PNG")),
        head("POST /predict?min_score=0.5&max_results=3&labels=red HTTP/1.1", raw, body=jpeg),
        head(post, f"Content-Type: {sent['content_type']}", body=sent["data"]),
        head(post, raw, "Transfer-Encoding: chunked", body=chunks, length=False),
        head(post, raw, "Expect: 100-continue", body=jpeg),
        head(post, raw, "X-Request-ID: a-1", "Authorization: Bearer x", "X-API-Key: y", body=jpeg),
        head(post, raw, "Connection: keep-alive", body=jpeg) * 2,
    ]


def mutated(count: int, seed: int) -> Iterator[bytes]:
    """Damaged requests."""
    chance, requests = random.Random(seed), seeds()
    for _ in range(count):
        yield mutate(chance, chance.choice(requests), requests)


def ask(port: int, request: bytes) -> tuple[int, float]:
    """The first answer's status, and how long it was until the server closed."""
    began = time.monotonic()
    said = b""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while more := sock.recv(65536):
                said += more
        except (ConnectionResetError, BrokenPipeError):
            pass
    first = said.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").split(b" ", 2)
    status = int(first[1]) if len(first) > 1 and first[0].startswith(b"HTTP/1.") else NONE
    return status, time.monotonic() - began


class Run:
    """Clients that share the requests out among themselves."""

    def __init__(self, server: Server, count: int, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        self.unanswered: list[str] = []
        self._requests = enumerate(mutated(count, seed), start=1)
        self._lock = threading.Lock()

    def work(self) -> None:
        """Send until there are no more."""
        while True:
            with self._lock:
                number, request = next(self._requests, (0, b""))
            if not number:
                return
            try:
                status, seconds = ask(self.server.port, request)
            except OSError as error:
                with self._lock:
                    self.unanswered.append(f"request {number}: {error!r} for {request[:200]!r}")
                continue
            with self._lock:
                self.statuses[status] += 1
                self.slowest = max(self.slowest, seconds)
                if status not in STATUSES:
                    print(f"request {number} of seed {self.seed}: {status} for {request!r}")
            if number % REPORT_EVERY == 0:
                print(f"{number}: {dict(self.statuses)}", file=sys.stderr, flush=True)


def main(count: int = COUNT, seed: int = SEED) -> int:
    """See above; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        model = colour_model.write(Path(folder) / "colour.tflite")
        server = Server(Path(folder), REEF_MODEL=str(model), REEF_DRAIN_S="0")
        try:
            server.wait_until(server.is_ready)
            worker = psutil.Process(server.worker)
            began = time.monotonic()
            warm = Run(server, count // 5, seed + 1)
            warm.work()
            before = worker.memory_info().rss
            run = Run(server, count, seed)
            threads = [threading.Thread(target=run.work) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            growth = worker.memory_info().rss - before
            status, body = server.predict(picture(77))
            serves = (status, redness(body)) == (200, 77) and server.worker == worker.pid
            bugs = sum("a bug" in line or "Traceback" in line for line in server.lines)
        finally:
            server.stop()
    for each in run.unanswered[:10]:
        print(each)
    print(
        f"{count} mutated requests, seed {seed}, {time.monotonic() - began:.0f} s: "
        f"{dict(sorted(run.statuses.items()))} (0: closed without an answer); "
        f"{len(run.unanswered)} left without an end, slowest {run.slowest:.1f} s; "
        f"memory {growth / 1024**2:+.1f} MiB; {bugs} tracebacks; serves on: {serves}"
    )
    sound = set(run.statuses) <= STATUSES and not run.unanswered and not bugs and serves
    return 0 if sound and growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
