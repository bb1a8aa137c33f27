"""A real server of this repository, `python -m app serve`, for as long as a measurement takes."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.errors import CannotMeasure
from bench.load import HOST

ROOT = Path(__file__).parent.parent
START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
POLL_S = 0.005
PATIENCE_S = 10.0  # for one answer
LAST_WORDS = 2000  # characters of its log, where it failed


@dataclass(frozen=True)
class Server:
    """A server that is ready; times are seconds from the start of its process."""

    port: int
    pid: int
    answered_s: float
    """Until the first HTTP answer, whatever it was."""
    ready_s: float
    """Until the first 200 of `/ready`."""
    words: Path
    """The file that it writes its log to, gone when it has ended."""

    def log(self) -> str:
        """What it said so far."""
        return self.words.read_text(errors="replace")

    def processes(self) -> dict[str, psutil.Process]:
        """Every process of the server: `master`, `http`, and `device …` for each device."""
        master = psutil.Process(self.pid)
        (http_worker,) = master.children()
        devices = ask(self.port, "/devices")["devices"]
        return {
            "master": master,
            "http": http_worker,
            **{f"device {each['id']}": psutil.Process(each["pid"]) for each in devices},
        }


@contextmanager
def serving(settings: Mapping[str, str] | None = None, root: Path = ROOT) -> Iterator[Server]:
    """Start the server in `root` on a free port and wait until it is ready; stop it at the end.

    `settings` are environment variables; nobody else's hold. Raises CannotMeasure, with the last
    that the server said, if it does not become ready or fails meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="reef-bench-") as scratch:
        port = free_port()
        environ = {name: value for name, value in os.environ.items() if name[:5] != "REEF_"}
        environ |= {
            "PYTHONPATH": str(root),
            "REEF_PORT": str(port),
            "REEF_RUN_DIR": scratch,  # another server's devices are no concern of ours
            "REEF_DRAIN_S": "0",
            **(settings or {}),
        }
        words = Path(scratch) / "log"
        with words.open("wb") as log:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                cwd=scratch,  # not where a reef.yaml may be
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            answered, ready = _await_ready(process, port, words)
            yield Server(port, process.pid, answered - began, ready - began, words)
        except psutil.NoSuchProcess as error:
            raise CannotMeasure(
                f"a process of the server ended; it said last:\n{_last(words)}"
            ) from error
        except CannotMeasure as error:
            raise CannotMeasure(f"{error}; the server said last:\n{_last(words)}") from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(port: int, path: str) -> dict[str, Any]:
    """The JSON that the server answers to a GET. Raises OSError or http.client.HTTPException."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _await_ready(process: subprocess.Popen[bytes], port: int, words: Path) -> tuple[float, float]:
    """When the first answer came, and when the server was ready."""
    deadline = time.monotonic() + START_LIMIT_S
    answered = 0.0
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ready = ask(port, "/ready")["ready"]
            answered = answered or time.perf_counter()
            if ready:
                return answered, time.perf_counter()
        except (OSError, http.client.HTTPException):
            pass  # it does not listen yet
        time.sleep(POLL_S)
    raise CannotMeasure("the server did not become ready")


def _last(words: Path) -> str:
    return words.read_text(errors="replace")[-LAST_WORDS:].strip()
