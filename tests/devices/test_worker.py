"""The device process: it owns its device, obeys its parent, and outlives nobody."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from app.devices import link, words
from app.devices.link import Link, LinkClosed, Message, ModelFile, Setup
from app.devices.served import Served
from app.models import Catalogue
from app.selftest import SelfTest, check_sane
from tests.devices import edgetpu
from tests.standin.host import Host
from tests.support import wait_for


@pytest.fixture
def file(catalogue: Catalogue) -> ModelFile:
    """The colour model, as a device process sees it."""
    variant = catalogue.default.variants["cpu"]
    return Served(variant, SelfTest(np.zeros((1, 32, 32, 3), np.uint8), check_sane)).file


@pytest.fixture
def compiled(tmp_path: Path) -> ModelFile:
    """The compiled model, as a device process sees it."""
    variant = edgetpu.catalogue(tmp_path, with_cpu=False).default.variants["edgetpu"]
    return Served(variant, SelfTest(np.zeros((1, 32, 32, 3), np.uint8), check_sane)).file


@pytest.fixture
def ended() -> Iterator[list[Link]]:
    """What is put in here is ended after the test."""
    started: list[Link] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.reaped(5)
        each.end(0)
        each.close()


@pytest.fixture
def start(file: ModelFile, tmp_path: Path, ended: list[Link]) -> Callable[..., Link]:
    """Starts device processes for the CPU."""

    def begin(*models: ModelFile, preload: str = "") -> Link:
        setup = Setup("cpu", "cpu", 1, str(tmp_path / "run" / "cpu.lock"), models or (file,))
        ended.append(Link(setup, link.command(), link.environment() | {"LD_PRELOAD": preload}))
        return ended[-1]

    return begin


@pytest.fixture
def start_card(
    compiled: ModelFile, host: Host, edgetpu_library: Path, tmp_path: Path, ended: list[Link]
) -> Callable[..., Link]:
    """Starts device processes for a card."""
    host.add_pci()

    def begin(*models: ModelFile, lock: Path = tmp_path / "run" / "card.lock") -> Link:
        setup = Setup(
            edgetpu.PCI,
            "edgetpu",
            1,
            str(lock),
            models or (compiled,),
            bus="pci",
            node=edgetpu.APEX,
            library=str(edgetpu_library),
        )
        ended.append(Link(setup, link.command(), link.environment()))
        return ended[-1]

    return begin


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
    start_card: Callable[..., Link], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "card.lock"
    with lock.open("w") as held:
        held.write(str(os.getpid()))
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        process = start_card()
        assert receive(process) == {"event": "waiting", "holder": str(os.getpid())}
    until(process, "ready")
    assert lock.read_text() == str(process.process.pid)


@pytest.mark.parametrize("content", [b"", b"4194304", b"\xff\xfe no text", b"-1", b"0x10", b" "])
def test_a_holder_that_cannot_be_told_is_none_in_particular(
    start_card: Callable[..., Link], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "card.lock"
    with lock.open("wb") as held:
        held.write(content)
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        process = start_card()
        assert receive(process) == {"event": "waiting", "holder": ""}
    until(process, "ready")


def test_a_pid_that_another_process_has_by_now_holds_nothing(
    start_card: Callable[..., Link], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    every = psutil.process_iter(["cmdline"])
    kernel_threads = [each.pid for each in every if each.info["cmdline"] == []]
    for taken in (os.getppid(), *kernel_threads[:1]):
        (tmp_path / "run" / "card.lock").write_text(str(taken))
        process = start_card()
        assert receive(process)["event"] == "loading"
        process.end(grace_s=10)


def test_a_successor_waits_for_its_predecessor(start_card: Callable[..., Link]) -> None:
    first = start_card()
    until(first, "ready")
    second = start_card()
    assert receive(second) == {"event": "waiting", "holder": str(first.process.pid)}
    first.process.kill()
    until(second, "ready")


def test_a_lock_that_cannot_be_made_is_told(
    start_card: Callable[..., Link], tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("in the way")
    assert "REEF_RUN_DIR" in until(start_card(), "fatal")["reason"]


def test_the_cpu_needs_no_lock(start: Callable[..., Link], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    until(start(), "ready")


def test_a_full_disk_keeps_no_pid_and_stops_nothing(start_card: Callable[..., Link]) -> None:
    full = Path("/dev/full")  # can be locked, and every write to it fails with ENOSPC
    process = start_card(lock=full)
    until(process, "ready")


def test_socket_memory_and_lock_are_not_left_to_grandchildren(
    start_card: Callable[..., Link],
) -> None:
    process = start_card()
    until(process, "ready")
    proc = Path(f"/proc/{process.process.pid}")
    kept = {}
    for entry in (proc / "fdinfo").iterdir():
        flags = int(re.findall(r"flags:\s+(\d+)", entry.read_text())[0], 8)
        name = os.readlink(proc / "fd" / entry.name)
        kept[re.sub(r"\W.*", "", Path(name).name)] = bool(flags & os.O_CLOEXEC)
    assert (kept["socket"], kept["memfd"], kept["card"]) == (True, True, True)


def test_the_kernel_ends_it_before_the_server_for_memory(start: Callable[..., Link]) -> None:
    process = start()
    until(process, "ready")
    assert Path(f"/proc/{process.process.pid}/oom_score_adj").read_text() == "700\n"


def test_a_model_that_cannot_be_loaded_is_told(start: Callable[..., Link], file: ModelFile) -> None:
    missing = replace(file, path="/no/such.tflite")
    process = start(missing)
    told = until(process, "fatal")
    assert (told["stage"], "/no/such.tflite" in told["reason"]) == ("model", True)
    with pytest.raises(LinkClosed):
        receive(process)
    assert process.process.wait(5) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_model_that_cannot_be_loaded_keeps_no_other_from_being_served(
    start: Callable[..., Link], file: ModelFile, place: int
) -> None:
    models = [replace(file, name=name) for name in ("first", "second", "third")]
    models[place] = replace(models[place], sha256="0" * 64)
    process = start(*models)
    told = until(process, "unloadable")
    assert told["model"] == models[place].name
    assert "has changed since Reef started" in told["reason"]
    until(process, "ready")
    for slot, model in enumerate(models[:place] + models[place + 1 :]):
        process.send({"slot": slot, "model": model.name})
        assert receive(process)["event"] == "done"


def test_without_any_loadable_model_it_ends(start: Callable[..., Link], file: ModelFile) -> None:
    process = start(
        replace(file, name="first", path="/no/first"), replace(file, name="second", path="/no/2nd")
    )
    assert until(process, "unloadable")["model"] == "first"
    assert "/no/2nd" in until(process, "fatal")["reason"]


def test_an_error_is_told_once_and_short_however_many_there_were(
    start_card: Callable[..., Link], host: Host, compiled: ModelFile
) -> None:
    """TensorFlow Lite's errors begin with all errors before."""
    process = start_card()
    until(process, "ready")
    host.behave(edgetpu.APEX, "invoke=map")
    reasons = set()
    for _ in range(600):
        process.send({"slot": 0, "model": compiled.name})
        reasons.add(until(process, "failed")["reason"])
    (reason,) = reasons
    assert reason.count("Could not map pages : 10 (Device or resource busy)") == 1
    host.behave(edgetpu.APEX, "")
    process.send({"slot": 0, "model": compiled.name})
    assert receive(process)["event"] == "done"


def test_a_long_error_keeps_its_beginning_and_its_end(
    start: Callable[..., Link], file: ModelFile
) -> None:
    path = "/no/" + "é" * 100 + "/".join(["x" * 200] * 15) + "/such.tflite"
    reason = until(start(replace(file, path=path)), "fatal")["reason"]
    assert len(reason) < 1100
    assert "/no/éé" in reason
    assert "/such.tflite" in reason


def test_a_message_that_would_be_cut_is_not_sent() -> None:
    with pytest.raises(ValueError, match="a message of"):
        link.packed({"event": "failed", "reason": "x" * link.MAX_MESSAGE})


# ---------------------------------------------------------------------------- what it prints


def test_what_is_printed_never_holds_up_an_inference(
    start_card: Callable[..., Link], host: Host, compiled: ModelFile
) -> None:
    process = start_card()
    until(process, "ready")
    host.behave(edgetpu.APEX, "warnings=40000")  # five times what the pipe takes
    process.send({"slot": 0, "model": compiled.name})
    assert receive(process)["event"] == "done"


PRINTER = """
import os, sys, time
line = b"W " + b"x" * 997 + b"\\n"
for _ in range(int(sys.argv[1])):
    try:
        os.write(2, line)
    except BlockingIOError:
        pass
"""


def test_a_printer_is_not_held_up_by_a_server_that_stands_still() -> None:
    """Nobody listens at all, and 100 MB are printed."""
    heard = words.Words()
    with heard._lock, os.fdopen(heard.writer, "wb") as prints:
        ran = subprocess.run([sys.executable, "-c", PRINTER, "100000"], stderr=prints, timeout=60)
    assert ran.returncode == 0
    assert 0 < len(heard.last()) <= words.KEPT_LINES
    heard.close()


def test_the_last_words_are_the_last_however_much_was_printed(
    start_card: Callable[..., Link], host: Host, compiled: ModelFile
) -> None:
    process = start_card()
    until(process, "ready")
    host.behave(edgetpu.APEX, "warnings=500")
    for _ in range(10):  # less than a pipe takes, and more than is kept
        process.send({"slot": 0, "model": compiled.name})
        until(process, "done")
    host.behave(edgetpu.APEX, "invoke=spurious")
    process.send({"slot": 0, "model": compiled.name})
    with pytest.raises(LinkClosed):
        receive(process)
    assert "No active request to complete" in process.last_words()[-1]
    assert len(process.last_words()) <= words.KEPT_LINES


def test_words_of_long_ago_explain_nothing(
    start_card: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_card()
    until(process, "ready")
    assert process.last_words()
    monkeypatch.setattr(words, "KEPT_S", 0.0)
    assert process.last_words() == []


PARENT = """
import sys, time
from pathlib import Path
from app.devices import link, words
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
