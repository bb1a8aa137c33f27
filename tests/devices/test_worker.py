"""The device process: it owns its device, obeys its parent, and outlives nobody."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from app.devices import link
from app.devices.link import Link, LinkClosed, Message, ModelFile, Setup
from app.devices.served import Served
from app.models import Catalogue
from app.selftest import SelfTest, check_sane
from tests.support import wait_for


@pytest.fixture
def file(catalogue: Catalogue) -> ModelFile:
    """The colour model, as a device process sees it."""
    variant = catalogue.default.variants["cpu"]
    return Served(variant, SelfTest(np.zeros((1, 32, 32, 3), np.uint8), check_sane)).file


@pytest.fixture
def start(file: ModelFile, tmp_path: Path) -> Iterator[Callable[..., Link]]:
    """Starts device processes, and ends them after the test."""
    started: list[Link] = []

    def begin(model: ModelFile = file) -> Link:
        setup = Setup("cpu", "cpu", 1, str(tmp_path / "run" / "cpu.lock"), (model,))
        started.append(Link(setup, link.command(), link.environment()))
        return started[-1]

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.reaped(5)
        each.end(0)
        each.close()


def receive(from_link: Link) -> Message:
    """The next message; fails the test when none comes."""
    message = from_link.receive(20)
    assert message is not None
    return message


def until(from_link: Link, event: str) -> Message:
    """The next message of a kind."""
    while (message := receive(from_link))["event"] != event:
        pass
    return message


def test_it_loads_and_then_infers_from_shared_memory(
    start: Callable[..., Link], file: ModelFile
) -> None:
    process = start()
    assert until(process, "ready")["runtime"].startswith("ai-edge-litert ")
    for slot, red in ((0, 255), (1, 51)):
        process.slots.tensor(slot, file)[...] = (red, 0, 0)
        process.send({"slot": slot, "model": file.name})
    done = [receive(process) for _ in range(2)]  # the second may be told of first
    assert sorted((each["event"], each["slot"]) for each in done) == [("done", 0), ("done", 1)]
    for slot, score in ((0, 1.0), (1, 0.2)):
        assert process.slots.outputs(slot, file)[-4] == pytest.approx(score, abs=0.01)


def test_it_ends_when_its_socket_is_closed(start: Callable[..., Link]) -> None:
    process = start()
    until(process, "ready")
    process.end(grace_s=10)
    assert process.process.returncode == 0


def test_it_ignores_the_signals_of_a_terminal_and_of_a_service_manager(
    start: Callable[..., Link], file: ModelFile
) -> None:
    process = start()
    until(process, "ready")
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.process.send_signal(ignored)
    process.send({"slot": 0, "model": file.name})
    assert receive(process)["event"] == "done"
    assert os.getpgid(process.process.pid) != os.getpgid(0)


def test_it_waits_for_the_lock_and_puts_its_pid_into_it(
    start: Callable[..., Link], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "cpu.lock"
    with lock.open("w") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        process = start()
        assert receive(process) == {"event": "waiting", "holder": "4711"}
    until(process, "ready")
    assert lock.read_text() == str(process.process.pid)


def test_a_pid_that_another_process_has_by_now_holds_nothing(
    start: Callable[..., Link], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    processes = psutil.process_iter(["cmdline"])  # None where it has become a zombie
    kernel_threads = [process.pid for process in processes if process.info["cmdline"] == []]
    for taken in (os.getppid(), *kernel_threads[:1]):
        (tmp_path / "run" / "cpu.lock").write_text(str(taken))
        process = start()
        assert receive(process)["event"] == "loading"
        process.end(grace_s=10)


def test_a_successor_waits_for_its_predecessor(start: Callable[..., Link]) -> None:
    first = start()
    until(first, "ready")
    second = start()
    assert receive(second) == {"event": "waiting", "holder": str(first.process.pid)}
    first.process.kill()
    until(second, "ready")


def test_a_lock_that_cannot_be_made_is_told(start: Callable[..., Link], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    assert "REEF_RUN_DIR" in until(start(), "fatal")["reason"]


def test_a_model_that_cannot_be_loaded_is_told(start: Callable[..., Link], file: ModelFile) -> None:
    missing = ModelFile(**{**file.__dict__, "path": "/no/such.tflite"})
    process = start(missing)
    told = until(process, "fatal")
    assert (told["stage"], "/no/such.tflite" in told["reason"]) == ("model", True)
    with pytest.raises(LinkClosed):
        receive(process)
    assert process.process.wait(5) == 1


PARENT = """
import sys, time
from pathlib import Path
from app.devices import link
from app.devices.link import Link, Setup, ModelFile
model = ModelFile("colour", sys.argv[1], 32, 32, (0, 1, 2, 3), 3, (127.5, 127.5), True, sys.argv[3])
started = Link(Setup("cpu", "cpu", 1, sys.argv[2], (model,)), link.command(), link.environment())
while (started.receive(20) or {"event": "late"})["event"] != "ready":
    pass
print(started.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["idle", "stuck"])
def test_it_dies_with_its_parent(file: ModelFile, tmp_path: Path, stopped: bool) -> None:
    command = [sys.executable, "-c", PARENT, file.path, str(tmp_path / "cpu.lock"), file.sha256]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=link.ROOT) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    wait_for(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
