"""The command line: what it prints and its exit status."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import __version__
from tests.client import ENVIRON, free_port
from tests.support import ROOT


def run(*arguments: str, **environ: object) -> subprocess.CompletedProcess[str]:
    """`reef`, with these variables, where no developer's reef.yaml is."""
    told = {name: str(value) for name, value in environ.items()}
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={**ENVIRON, "PYTHONPATH": str(ROOT), **told},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def answering(raw: bytes) -> Iterator[int]:
    """A port where something answers one request with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(raw)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def http(status: str, body: bytes) -> bytes:
    """An answer over HTTP."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"reef {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("lunch",), ("serve", "now"), ("--port", "5000")])
def test_wrong_usage_is_explained(arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.returncode == 2
    assert re.match(r"usage: \S+ -m app ", ran.stderr)


def test_check_says_in_one_line_that_all_is_well(tmp_path: Path) -> None:
    port = free_port()
    ran = run("check", REEF_PORT=port, REEF_RUN_DIR=tmp_path / "run", REEF_LOG_DIR=tmp_path / "log")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"all is well: efficientdet_lite0 on 127.0.0.1 port {port}\n"
    assert list(tmp_path.iterdir()) == []


WRONG = {
    "REEF_PROT": "1",
    "REEF_QUEUE": "many",
    "REEF_DEVICES": "lpt",
    "REEF_ONLY_LABELS": "persn",
    "REEF_EXTRA_MODELS": "/gone.tflite",
    "REEF_RUN_DIR": "/proc/self/reef",
    "REEF_LOG_DIR": "/proc/self/logs",
    "REEF_HOST": "192.0.2.1",
}


def test_check_says_everything_that_is_wrong_a_line_each() -> None:
    ran = run("check", **WRONG)
    assert (ran.returncode, ran.stdout) == (2, "")
    told = ran.stderr.splitlines()
    assert len(told) == len(WRONG)
    for name in WRONG:
        words = "can't listen on 192.0.2.1" if name == "REEF_HOST" else f"{name}: "
        assert [line for line in told if line.startswith(f"reef: {words}")], told


def test_serve_says_as_much() -> None:
    ran = run("serve", **{**WRONG, "REEF_RUN_DIR": ""})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == len(WRONG) - 1


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"REEF_QUEUE": "0"}, 2),
        ({"REEF_DEVICES": "auto,cpu"}, 2),
        ({"REEF_MODEL": "/gone.tflite"}, 3),
        ({"REEF_HOST": "192.0.2.1"}, 4),
    ],
)
def test_check_ends_as_the_start_would(wrong: dict[str, str], status: int) -> None:
    told = {"REEF_PORT": str(free_port())} | wrong
    assert run("check", **told).returncode == run("serve", **told).returncode == status


def test_check_says_that_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ran = run("check", REEF_PORT=other.getsockname()[1])
    assert ran.returncode == 4
    assert "Address already in use; set REEF_HOST or REEF_PORT" in ran.stderr


HEALTH = [
    # what answers, exit status, what is printed
    (http("200 OK", b'{"ready":true}'), 0, '{"ready":true}'),
    (http("503 Service Unavailable", b'{"ready":false}'), 1, '{"ready":false}'),
    (http("500 Internal Server Error", b""), 1, ""),
    (b"SSH-2.0-OpenSSH_9.9\r\n", 1, "http://127.0.0.1:"),
    (b"", 1, "http://127.0.0.1:"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", 1, "http://127.0.0.1:"),
]


@pytest.mark.parametrize(("raw", "status", "printed"), HEALTH)
def test_healthcheck_is_0_only_when_reef_says_that_it_is_ready(
    raw: bytes, status: int, printed: str
) -> None:
    with answering(raw) as port:
        ran = run("healthcheck", REEF_PORT=port)
    assert (ran.returncode, ran.stderr) == (status, "")
    assert ran.stdout.startswith(printed)


def test_healthcheck_is_1_when_nobody_listens() -> None:
    with answering(b"") as port:
        pass
    ran = run("healthcheck", REEF_PORT=port)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "Connection refused" in ran.stdout


def test_healthcheck_asks_this_host_and_no_proxy() -> None:
    with answering(http("200 OK", b"{}")) as port:
        ran = run("healthcheck", REEF_PORT=port, http_proxy="http://127.0.0.1:9")
    assert (ran.returncode, ran.stderr) == (0, "")
