"""A real server: `python -m app serve`, its gunicorn, and its device process."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.devices.link import ROOT
from tests import colour_model
from tests.client import ENVIRON, Client, free_port, picture, redness

MakeServer = Callable[..., "Server"]


class Server(Client):
    """One server process and what a client needs of it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = free_port()
        told = {"REEF_PORT": str(self.port), "REEF_RUN_DIR": str(folder / "run")}
        no_file = folder / "reef.yaml"  # or a developer's own would be read
        no_file.touch()
        told |= {"REEF_CONFIG": str(no_file), "PYTHONPATH": str(ROOT)}
        self.environ = {**ENVIRON, **told, **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            env=self.environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as said:
            self.lines.extend(said)

    def log(self) -> str:
        """What it wrote, to stdout and stderr."""
        return "".join(self.lines)

    @property
    def worker(self) -> int:
        """The HTTP worker's pid."""
        (worker,) = psutil.Process(self.process.pid).children()
        return int(worker.pid)

    @property
    def device(self) -> int | None:
        """The device process's pid."""
        pid: int | None = self.get("/devices")[1]["devices"][0]["pid"]
        return pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master, as an operator does."""
        self.process.send_signal(number)

    def wait(self, within_s: float = 30) -> int:
        """The exit status."""
        status = self.process.wait(within_s)
        self._reader.join(10)
        return status

    def stop(self) -> int:
        """SIGTERM, and the exit status; kills what doesn't end, and all below it."""
        if self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                for each in below:
                    each.kill()
        return self.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def colour_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model."""
    return colour_model.write(tmp_path_factory.mktemp("models") / "colour.tflite")


@pytest.fixture
def start_server(colour_file: Path, tmp_path: Path) -> Iterator[MakeServer]:
    """Starts servers on the colour model (or on what REEF_MODEL says), and stops them."""
    started: list[Server] = []

    def start(*, wait: bool = True, **settings: str) -> Server:
        told = {"REEF_MODEL": str(colour_file), "REEF_DRAIN_S": "0"} | settings
        server = Server(tmp_path, **told)
        started.append(server)
        if wait:
            server.wait_until(server.is_ready)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(start_server: MakeServer) -> Server:
    """A server that is ready."""
    return start_server()


@pytest.fixture(scope="module")
def shared_server(colour_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave it as it was; it must still serve after each."""
    server = Server(
        tmp_path_factory.mktemp("server"), REEF_MODEL=str(colour_file), REEF_DRAIN_S="0"
    )
    server.wait_until(server.is_ready)
    yield server
    assert server.stop() == 0


def _health_took(server: Server) -> float:
    began = time.monotonic()
    assert server.get("/health") == (200, {"status": "ok"})
    return time.monotonic() - began


@pytest.fixture
def still_serves(shared_server: Server) -> Iterator[Server]:
    """The shared server; afterwards it must answer as before."""
    yield shared_server
    # Within 100 ms; of several tries, because other programs may have the processor.
    shared_server.wait_until(lambda: _health_took(shared_server) < 0.1, within_s=10)
    status, body = shared_server.predict(picture(200))
    assert (status, redness(body)) == (200, 200)
