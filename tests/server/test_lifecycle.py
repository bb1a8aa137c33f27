"""Start, stop, signals, and processes that die under the server."""

import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from app.devices.link import ROOT
from tests import colour_model
from tests.client import ENVIRON, free_port, picture, redness
from tests.server.conftest import MakeServer, Server, alive


class Clients:
    """Clients that post pictures one after the other, each over connections of its own."""

    def __init__(self, server: Server, count: int) -> None:
        self.server = server
        self.answered = 0
        self.refused = 0
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._post, args=(10 + 20 * number,)) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _post(self, red: int) -> None:
        image = picture(red)
        while not self._stop.is_set():
            try:
                status, body = self.server.predict(image)
            except ConnectionRefusedError:
                with self._lock:
                    self.refused += 1
                return
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.wrong.append(repr(error))
                return
            with self._lock:
                self.answered += 1
                if status != 200 or redness(body) != red:
                    self.wrong.append(f"{status} {body}")

    def finish(self) -> None:
        """End them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_it_serves_the_embedded_model_and_prints_a_curl_line_that_works(
    start_server: MakeServer,
) -> None:
    server = start_server(REEF_MODEL="")
    server.wait_until(lambda: any("Ready. Try: " in line for line in server.lines))
    log = "".join(server.lines)
    assert re.search(r"INFO +Detected cpu: ", log)
    command = shlex.split(log.split("Ready. Try: ")[1].splitlines()[0])
    shown = subprocess.run([*command, "--silent"], cwd=ROOT, capture_output=True, check=True).stdout
    assert b'"class":"person"' in shown
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_every_process_with_status_0(server: Server, number: signal.Signals) -> None:
    below = psutil.Process(server.process.pid).children(recursive=True)
    assert len(below) == 2
    server.signal(number)
    assert server.wait() == 0
    assert not [each for each in below if alive(each.pid)]
    assert "Traceback" not in "".join(server.lines)


def test_ctrl_c_in_a_terminal_drains_too(server: Server) -> None:
    """A terminal sends SIGINT to the whole foreground group: master, worker, not the devices."""
    with Slow(server) as slow:
        for pid in (server.process.pid, server.worker):
            os.kill(pid, signal.SIGINT)
        time.sleep(0.5)
        assert slow.finish() == 200
    assert server.wait() == 0


class Slow:
    """A request that has arrived by half when its `with` begins."""

    def __init__(self, server: Server, *, headers_too: bool = False) -> None:
        body = picture(123)
        head = (
            f"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: image/bmp\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        request = head + body
        cut = 40 if headers_too else len(head) + len(body) // 2
        self._rest = request[cut:]
        self.socket = socket.create_connection(("127.0.0.1", server.port), 30)
        self.socket.sendall(request[:cut])
        time.sleep(0.3)

    def __enter__(self) -> "Slow":
        return self

    def finish(self) -> int:
        """Send the rest; the answer's status."""
        self.socket.sendall(self._rest)
        answer = http.client.HTTPResponse(self.socket)
        answer.begin()
        assert answer.read().endswith(b"}")
        return answer.status

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.mark.parametrize("headers_too", [False, True], ids=["half a body", "half a header"])
def test_a_request_that_was_arriving_at_sigterm_is_answered(
    server: Server, headers_too: bool
) -> None:
    with Slow(server, headers_too=headers_too) as slow:
        server.signal(signal.SIGTERM)
        time.sleep(1)
        assert slow.finish() == 200
    assert server.wait() == 0


def test_while_it_drains_it_is_not_ready_but_serves(start_server: MakeServer) -> None:
    server = start_server(REEF_DRAIN_S="2")
    server.signal(signal.SIGTERM)
    server.wait_until(lambda: server.get("/ready")[0] == 503)
    assert server.get("/ready")[1]["reason"] == "Reef is being stopped"
    assert server.get("/health")[0] == 200
    assert server.predict(picture(1))[0] == 200
    assert server.wait() == 0


def test_sigterm_under_load_loses_nothing(start_server: MakeServer) -> None:
    server = start_server(REEF_DRAIN_S="0.5")
    clients = Clients(server, 8)
    time.sleep(0.5)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    clients.finish()
    assert clients.answered > 50
    assert clients.refused == 8
    assert clients.wrong == []


def test_sighup_and_signals_for_more_workers_change_nothing(server: Server) -> None:
    worker = server.worker
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
        server.signal(number)
    server.wait_until(lambda: sum("restart it to change" in line for line in server.lines) == 4)
    assert server.worker == worker
    assert server.predict(picture(5))[0] == 200


def test_sigterm_during_the_start_ends_it_quietly(start_server: MakeServer) -> None:
    server = start_server(wait=False, REEF_MODEL="")
    server.wait_until(lambda: any("Listening" in line for line in server.lines))
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in "".join(server.lines)


def test_a_second_sigterm_changes_nothing(start_server: MakeServer) -> None:
    server = start_server(REEF_DRAIN_S="1")
    with Slow(server) as slow:
        for _ in range(3):
            server.signal(signal.SIGTERM)
            time.sleep(0.2)
        assert slow.finish() == 200
    assert server.wait() == 0
    assert "Traceback" not in server.log()


def test_a_killed_worker_is_replaced_and_its_device_process_is_gone(server: Server) -> None:
    worker, device = server.worker, server.device
    assert device
    os.kill(worker, signal.SIGKILL)
    server.wait_until(lambda: not alive(worker) and server.is_ready())
    assert server.predict(picture(9))[0] == 200
    assert not alive(device)


def test_a_worker_that_is_stopped_alone_is_replaced_by_one_that_serves(server: Server) -> None:
    old = server.worker
    os.kill(old, signal.SIGTERM)
    server.wait_until(lambda: not alive(old))
    server.wait_until(server.is_ready)
    assert server.predict(picture(9))[0] == 200


def test_a_killed_master_takes_everything_with_it(server: Server) -> None:
    below = psutil.Process(server.process.pid).children(recursive=True)
    server.signal(signal.SIGKILL)
    server.wait()
    server.wait_until(lambda: not [each for each in below if alive(each.pid)])


def test_a_device_killed_fifty_times_under_load_from_eight_clients_loses_nothing(
    start_server: MakeServer,
) -> None:
    server = start_server(REEF_RESTART_BACKOFF_MAX_S="0")

    def device() -> dict[str, int]:
        status: dict[str, int] = server.get("/devices")[1]["devices"][0]
        return status

    clients = Clients(server, 8)
    try:
        for killed in range(50):
            before = device()["inferences"]
            server.wait_until(
                lambda before=before: device()["inferences"] > before + 8  # type: ignore[misc]
            )
            pid = device()["pid"]
            os.kill(pid, signal.SIGKILL)
            server.wait_until(lambda killed=killed: device()["restarts"] > killed)  # type: ignore[misc]
    finally:
        clients.finish()
    assert clients.wrong == []
    assert clients.answered > 400
    assert device()["restarts"] == 50


def test_stdout_may_be_closed(colour_file: Path, tmp_path: Path) -> None:
    port = free_port()
    told = {
        "REEF_PORT": str(port),
        "REEF_RUN_DIR": str(tmp_path),
        "REEF_MODEL": str(colour_file),
        "REEF_DRAIN_S": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        env={**ENVIRON, **told},
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("POST", "/nowhere")
                assert connection.getresponse().status == 404
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        connection.close()
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"REEF_PORT": "abc"}, 2, r"reef: REEF_PORT: takes a whole number from 1 to 65535"),
        ({"REEF_PROT": "1"}, 2, r"reef: REEF_PROT: no such setting; did you mean REEF_PORT\?"),
        ({"REEF_LOG_DIR": "/proc/no"}, 2, r"reef: REEF_LOG_DIR: can't write to '/proc/no'"),
        (
            {"REEF_MODEL": "/no/such.tflite"},
            3,
            r"reef: REEF_MODEL: /no/such\.tflite: no such file; mount it",
        ),
        (
            {"REEF_LABELS": "/no/such.txt"},
            3,
            r"reef: REEF_LABELS: /no/such\.txt: No such file",
        ),
        ({"REEF_HOST": "192.0.2.1"}, 4, r"reef: can't listen on 192\.0\.2\.1 port \d+: "),
    ],
)
def test_what_is_wrong_stops_the_start_with_one_line(
    start_server: MakeServer, settings: dict[str, str], status: int, said: str
) -> None:
    server = start_server(wait=False, **settings)
    assert server.wait() == status
    (line,) = server.lines
    assert re.match(said, line)


def test_a_port_in_use_stops_the_start_with_one_line(
    server: Server, start_server: MakeServer
) -> None:
    second = start_server(wait=False, REEF_PORT=str(server.port))
    assert second.wait() == 4
    (line,) = second.lines
    assert "Address already in use; set REEF_HOST or REEF_PORT" in line


def test_healthcheck_asks_ready(server: Server) -> None:
    command = [sys.executable, "-m", "app", "healthcheck"]

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=server.environ, cwd=ROOT, capture_output=True, text=True, check=False
        )

    assert check().returncode == 0
    assert '"ready":true' in check().stdout
    server.stop()
    assert check().returncode == 1
    assert "refused" in check().stdout


def test_the_log_folder_gets_the_log(start_server: MakeServer, tmp_path: Path) -> None:
    server = start_server(REEF_LOG_DIR=str(tmp_path / "logs"), REEF_LOG_FORMAT="json")
    server.stop()
    assert (tmp_path / "logs" / "reef.log").read_text() == "".join(server.lines)


def test_own_float_model_answers_through_the_server(
    start_server: MakeServer, tmp_path: Path
) -> None:
    path = colour_model.write(tmp_path / "own.tflite", dtype="float32", labels=None)
    (tmp_path / "own.labels").write_text("0 red\n1 green\n2 blue\n")
    server = start_server(REEF_MODEL=str(path), REEF_LABELS=str(tmp_path / "own.labels"))
    status, body = server.predict(picture(51))
    assert status == 200
    assert abs(redness(body) - 51) <= 1
    assert body["model"] == "own"


KEY = "correct-horse-battery-staple"


@pytest.mark.parametrize("where", ["environment", "file"])
def test_with_a_key_healthcheck_and_the_curl_line_in_the_log_work(
    start_server: MakeServer, tmp_path: Path, where: str
) -> None:
    (tmp_path / "the key").write_text(f"{KEY}\n")
    told = (
        {"REEF_API_KEY": KEY}
        if where == "environment"
        else {"REEF_API_KEY_FILE": str(tmp_path / "the key")}
    )
    server = start_server(REEF_MODEL="", **told)
    server.wait_until(lambda: any("Ready. Try: " in line for line in server.lines))
    assert server.get("/devices")[0] == 401
    assert KEY not in server.log()
    command = server.log().split("Ready. Try: ")[1].splitlines()[0]
    shown = subprocess.run(
        ["bash", "-c", f"{command} --silent"], cwd=ROOT, env=server.environ, capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    assert b'"class":"person"' in shown
    check = [sys.executable, "-m", "app", "healthcheck"]
    assert subprocess.run(check, env=server.environ, cwd=ROOT, check=False).returncode == 0


HOOK = """
import os, sys
def tell(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["CALLS"], "a") as calls:
            print(event, arguments[1:] if event != "socket.getaddrinfo" else arguments, file=calls)
sys.addaudithook(tell)
"""


def test_it_calls_nobody_and_looks_up_no_name(start_server: MakeServer, tmp_path: Path) -> None:
    """In none of its processes: each loads the hook. The container is tried without a network."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    calls = tmp_path / "calls"
    calls.touch()
    server = start_server(
        REEF_MODEL="", CALLS=str(calls), PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"
    )
    person = (ROOT / "models" / "selftest_person.jpg").read_bytes()
    assert server.predict(person)[1]["predictions"]
    address = b"http://169.254.169.254/latest/meta-data"
    assert server.predict(address)[0] == 415
    body = b"url=" + address
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.request("POST", "/predict", body, form)[0] == 415
    for path in ("/ready", "/devices", "/models"):
        assert server.get(path)[0] == 200
    assert server.stop() == 0
    assert calls.read_text() == ""
