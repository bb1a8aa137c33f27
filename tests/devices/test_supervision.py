"""Devices that fail in ways of which no process dies: what is noticed, and what it costs."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import models
from app.devices import link
from app.devices.link import Link, Setup
from app.errors import DeadlineExceeded, NoDevice
from app.models import Catalogue
from tests import colour_model
from tests.devices.conftest import Bench
from tests.devices.edgetpu import APEX, PCI, PORT, SIZE, USB, MakeRig, picture
from tests.standin import compiled_model
from tests.standin.host import LOADED, Host
from tests.support import make_settings, wait_for

MakeBench = Callable[..., Bench]


@pytest.fixture
def two_models(tmp_path: Path) -> Catalogue:
    """A compiled model and another one beside it, both of the same size."""
    first = compiled_model.write(tmp_path / "first_edgetpu.tflite", SIZE)
    second = compiled_model.write(tmp_path / "second_edgetpu.tflite", SIZE)
    return models.load(make_settings(model=str(first), extra_models=(str(second),)))


@pytest.fixture
def one_for_each(tmp_path: Path) -> Catalogue:
    """A compiled model, and another one, `colour`, that only the CPU can run."""
    compiled = compiled_model.write(tmp_path / "finder_edgetpu.tflite", SIZE)
    colour = colour_model.write(tmp_path / "colour.tflite")
    return models.load(make_settings(model=str(compiled), extra_models=(str(colour),)))


# ---------------------------------------------------------------------------- nonsense


@pytest.mark.parametrize("nonsense", ["nan", "count", "score"])
def test_an_answer_that_cannot_be_one_counts_as_a_failed_inference(
    host: Host, make_rig: MakeRig, tmp_path: Path, nonsense: str
) -> None:
    compiled = compiled_model.write(tmp_path / "done_edgetpu.tflite", SIZE, finished=True)
    cpu = colour_model.write(tmp_path / "colour.tflite")
    host.add_pci()
    rig = make_rig(models.load(make_settings(model=str(compiled), model_cpu=str(cpu)))).start()
    host.behave(APEX, f"invoke={nonsense}")
    for number in range(3):
        assert rig.infer(number) == "cpu"
    wait_for(lambda: rig.status(PCI).restarts >= 1)
    assert rig.status(PCI).failures["invoke"] >= 3


@pytest.mark.parametrize("nonsense", ["zeros", "stale"])
def test_the_known_picture_comes_by_under_load(
    host: Host, make_rig: MakeRig, nonsense: str
) -> None:
    """What looks like an answer is known to be wrong only where the right one is known."""
    host.add_pci()
    rig = make_rig(test_every_s=0.2).start()
    stop = threading.Event()

    def ask_on() -> None:
        tensor = dict.fromkeys(rig.served.default.layouts, picture(5))
        while not stop.is_set():
            rig.pool.infer(rig.served.default, tensor, time.monotonic() + 30)

    with ThreadPoolExecutor(2) as clients:
        asking = [clients.submit(ask_on) for _ in range(2)]
        host.behave(APEX, f"invoke={nonsense}")
        try:
            wait_for(lambda: rig.status(PCI).failures.get("selftest", 0) >= 1)
        finally:
            stop.set()
        for client in asking:
            client.result()
    assert "test picture" in rig.status(PCI).reason or rig.state(PCI) == "ready"


@pytest.mark.parametrize("nonsense", ["zeros", "stale"])
def test_nonsense_that_began_at_work_is_not_believed_at_the_next_start(
    host: Host, make_rig: MakeRig, nonsense: str
) -> None:
    """Of a model of one's own nobody knows the right answer, but it must be the one at first."""
    host.add_pci()
    rig = make_rig(test_every_s=0.2, backoff_max_s=60.0).start()
    host.behave(APEX, f"invoke={nonsense}")
    rig.kill(PCI, signal.SIGKILL)
    wait_for(lambda: rig.status(PCI).failures.get("selftest", 0) >= 1)
    assert rig.infer(3) == "cpu"
    host.behave(APEX, "")
    rig.wait(PCI, "ready")
    assert rig.infer(4) == PCI


def test_a_device_whose_answers_come_late_does_not_become_ready(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_pci()
    host.behave(APEX, "invoke=stale")
    rig = make_rig(backoff_max_s=60.0).start("cpu")
    wait_for(lambda: rig.state(PCI) == "waiting")
    assert "another answer for the test picture" in rig.status(PCI).reason


def test_a_device_that_fails_now_and_then_is_left_alone_more_and_more(
    host: Host, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    host.add_pci()
    rig = make_rig(backoff_max_s=60.0).start()
    host.behave(APEX, "invoke=fail every=10")

    def waits() -> bool:
        rig.infer()
        return rig.state(PCI) == "waiting"

    wait_for(waits)
    assert "of its last" in rig.status(PCI).reason
    assert rig.infer(1) == "cpu"
    failed = rig.status(PCI).failures["invoke"]
    lines = [each for each in caplog.records if "an inference failed" in each.message]
    assert len(lines) < failed


# ---------------------------------------------------------------------------- several models


def test_a_change_of_model_is_not_heat(
    host: Host, make_rig: MakeRig, two_models: Catalogue
) -> None:
    host.add_pci()
    host.behave(APEX, "latency_us=2000 reload_us=20000")
    rig = make_rig(two_models).start()
    for number in range(30):
        rig.infer(number)
    for number in range(60):
        rig.infer(number, model=("first_edgetpu", "second_edgetpu")[number % 2])
    for number in range(30):
        rig.infer(number)
    rig.look()
    status = rig.status(PCI)
    assert status.slowdown < 1.8
    assert status.warnings == ()
    assert status.median_s["first_edgetpu"] < 0.015


def test_an_extra_model_that_changed_does_not_stop_the_default_one(
    host: Host, make_rig: MakeRig, two_models: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    extra = two_models.get("second_edgetpu")
    extra.variants["edgetpu"].path.write_bytes(b"another file")
    host.add_pci()
    rig = make_rig(two_models).start()
    assert rig.infer() == PCI
    status = rig.status(PCI)
    assert status.models == ("first_edgetpu",)
    assert "has changed since Reef started" in status.refused["second_edgetpu"]
    assert f"{PCI}: does not serve second_edgetpu" in caplog.text
    with pytest.raises(NoDevice, match=r"does not serve second_edgetpu: .* has changed"):
        rig.infer(model="second_edgetpu")


def test_on_the_cpu_too_only_the_model_that_changed_is_refused(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    first = colour_model.write(tmp_path / "first.tflite")
    second = colour_model.write(tmp_path / "second.tflite")
    serving = models.load(make_settings(model=str(first), extra_models=(str(second),)))
    bench = make_bench(serving).start()
    second.write_bytes(b"another file")
    bench.kill(signal.SIGKILL)
    assert bench.infer(7) == 7
    assert set(bench.status.refused) == {"second"}


def test_a_model_that_kills_the_process_at_each_start_is_barred(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    first = colour_model.write(tmp_path / "first.tflite")
    second = colour_model.write(tmp_path / "second.tflite")
    serving = models.load(make_settings(model=str(first), extra_models=(str(second),)))
    bench = make_bench(serving)
    bench.behave("die second")
    bench.start()
    assert bench.infer(9) == 9
    assert "2 processes in a row ended" in bench.status.refused["second"]
    assert bench.status.failures == {"died": 2}


# ---------------------------------------------------------------------------- who waits for what


def test_a_picture_for_the_idle_cpu_is_not_behind_those_for_a_busy_card(
    host: Host, make_rig: MakeRig, one_for_each: Catalogue
) -> None:
    host.add_pci()
    host.behave(APEX, "latency_us=100000")
    rig = make_rig(one_for_each).start()
    order: list[str] = []
    with ThreadPoolExecutor(20) as clients:
        for number in range(18):
            clients.submit(lambda number=number: order.append(rig.infer(number)))  # type: ignore[misc]
        wait_for(lambda: rig.pool.queue_depth >= 12)
        clients.submit(lambda: order.append(rig.infer(1, model="colour")))
    assert order.index("cpu") < 8


def test_a_full_queue_has_the_idle_cpu_before_it_refuses_anybody(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_pci()
    host.behave(APEX, "latency_us=300000")
    rig = make_rig(queue_limit=2).start()
    with ThreadPoolExecutor(5) as clients:
        waiting = [clients.submit(rig.infer, number) for number in range(5)]
        wait_for(lambda: rig.pool.queue_depth == 2)  # three more lie in the card's slots
        answer = rig.ask(77)
        assert answer.device == "cpu"
        assert rig.pool.is_degraded(rig.served.default, answer.variant.kind)
        assert {each.result() for each in waiting} == {PCI}


def test_a_queue_full_of_pictures_for_the_card_refuses_none_for_the_idle_cpu(
    host: Host, make_rig: MakeRig, one_for_each: Catalogue
) -> None:
    host.add_pci()
    host.behave(APEX, "latency_us=300000")
    rig = make_rig(one_for_each, queue_limit=2).start()
    with ThreadPoolExecutor(5) as clients:
        waiting = [clients.submit(rig.infer, number) for number in range(5)]
        wait_for(lambda: rig.pool.queue_depth == 2)
        assert rig.infer(7, model="colour") == "cpu"
        assert {each.result() for each in waiting} == {PCI}


def test_while_another_process_has_the_only_device_pictures_are_refused_with_that(
    host: Host, make_rig: MakeRig, served_alone: Catalogue
) -> None:
    host.add_pci()
    rig = make_rig(served_alone)
    lock = host.root / "run" / f"{rig.see()[0].device.lock}.lock"
    lock.parent.mkdir(mode=0o700)
    holder = f"waits for process {os.getpid()}"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        rig.pool.start()
        wait_for(lambda: holder in rig.status(PCI).reason)
        for _ in range(2):
            with pytest.raises(NoDevice, match=holder):
                rig.infer(within_s=60)
    rig.wait(PCI, "ready")
    assert rig.infer() == PCI


def test_a_stick_that_another_program_has_is_not_opened(
    host: Host, make_rig: MakeRig, served_alone: Catalogue
) -> None:
    """To open it would reset it, and abort the other one."""
    host.add_usb(PORT, LOADED)
    interface = host.root / "sys/bus/usb/devices" / PORT / f"{PORT}:1.0"
    interface.mkdir()
    (interface / "driver").symlink_to("../../../../bus/usb/drivers/usbfs")
    rig = make_rig(served_alone)
    rig.pool.start()
    wait_for(lambda: "waits for another program" in rig.status(USB).reason)
    with pytest.raises(NoDevice, match="waits for another program, which has the device"):
        rig.infer(within_s=60)
    assert host.happened("opened") == []
    (interface / "driver").unlink()
    rig.wait(USB, "ready")


def test_a_card_that_another_program_has_is_not_opened(
    host: Host, make_rig: MakeRig, served_alone: Catalogue
) -> None:
    host.add_pci(is_device_owned="1", device_owner="812")
    rig = make_rig(served_alone)
    rig.pool.start()
    wait_for(lambda: "another program (process 812 of the host)" in rig.status(PCI).reason)
    assert host.happened("opened") == []
    host.apex(is_device_owned="0", device_owner="0")
    rig.wait(PCI, "ready")


def test_a_device_that_hangs_at_its_opening_keeps_nobody_waiting(
    host: Host, make_rig: MakeRig, served_alone: Catalogue
) -> None:
    host.add_pci()
    host.behave(APEX, "create=hang")
    rig = make_rig(served_alone)
    rig.pool.start()
    with pytest.raises(NoDevice, match="is being started"):
        rig.infer(within_s=25)


def test_a_device_that_can_never_be_opened_keeps_nobody_waiting(
    host: Host, make_rig: MakeRig, served_alone: Catalogue
) -> None:
    host.add_pci()
    host.behave(APEX, "create=dead")
    rig = make_rig(served_alone, backoff_max_s=1.0)
    rig.pool.start()
    wait_for(lambda: rig.status(PCI).failures.get("load", 0) >= 2)
    for _ in range(5):
        with pytest.raises(NoDevice, match="no driver behind it"):
            rig.infer(within_s=60)
    host.behave(APEX, "")
    rig.wait(PCI, "ready")
    assert rig.infer() == PCI


def test_who_comes_too_late_while_no_device_is_there_is_not_told_to_send_less(
    host: Host, make_rig: MakeRig, served_alone: Catalogue
) -> None:
    host.add_pci()
    host.behave(APEX, "create=hang")
    rig = make_rig(served_alone)
    rig.pool.start()
    with pytest.raises(DeadlineExceeded, match="is being started") as refusal:
        rig.infer(within_s=0.5)
    assert "fewer" not in str(refusal.value)


# ---------------------------------------------------------------------------- coming and going


def test_a_card_that_fell_off_the_bus_is_closed_and_gets_no_pictures(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_pci()
    rig = make_rig().start()
    host.apex(temp="-89700")
    rig.wait(PCI, "unusable", looking=True)
    wait_for(lambda: rig.status(PCI).pid is None)
    assert "stop Reef first" in rig.status(PCI).reason
    assert {rig.infer(number) for number in range(10)} == {"cpu"}
    assert len(host.happened("opened")) == 1
    host.apex(temp="51000")
    rig.wait(PCI, "ready", looking=True)
    assert rig.infer() == PCI


def test_a_stick_that_is_pulled_is_gone_and_nothing_else(
    host: Host, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    host.add_usb(PORT, LOADED)
    host.behave(PORT, "pulled=abort")
    rig = make_rig(backoff_max_s=60.0).start()
    host.remove_usb(PORT)
    wait_for(lambda: rig.state(USB) == "gone")  # before anybody looks
    lines = [record.message for record in caplog.records if record.message.startswith(USB)]
    assert len(lines) == 2
    assert "SIGABRT" in lines[0]
    assert "plug it in again" in lines[1]
    host.add_usb(PORT, LOADED)
    rig.wait(USB, "ready", looking=True)


@pytest.mark.parametrize("trouble", ["off the bus", "pulled"])
def test_a_device_that_hangs_in_its_self_test_is_still_looked_at(
    host: Host, make_rig: MakeRig, trouble: str
) -> None:
    host.add_pci()
    host.behave(APEX, "invoke=hang")
    rig = make_rig().start("cpu")
    wait_for(lambda: bool(host.happened("hangs")))
    if trouble == "pulled":
        host.remove_pci()
        rig.wait(PCI, "gone", looking=True)
    else:
        host.apex(temp="-89700")
        rig.wait(PCI, "unusable", looking=True)
    assert "hang" not in rig.status(PCI).failures


def test_a_stick_that_leaves_the_bus_at_each_crash_is_left_alone_longer_each_time(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_usb(PORT, LOADED)
    rig = make_rig(backoff_max_s=60.0).start()
    for _ in range(2):
        rig.kill(USB, signal.SIGKILL)
        host.remove_usb(PORT)
        rig.wait(USB, "gone", looking=True)
        host.add_usb(PORT, LOADED)
        rig.wait(USB, "ready", looking=True)
    rig.kill(USB, signal.SIGKILL)
    host.remove_usb(PORT)
    rig.wait(USB, "gone", looking=True)
    host.add_usb(PORT, LOADED)
    rig.wait(USB, "waiting", looking=True)
    assert "SIGKILL" in rig.status(USB).reason
    assert rig.status(USB).restarts >= 3


def test_a_device_that_is_gone_for_long_is_forgotten(host: Host, make_rig: MakeRig) -> None:
    host.add_usb("2-1", LOADED)
    rig = make_rig(gone_kept_s=0.2).start()
    threads = threading.active_count()
    host.remove_usb("2-1")
    host.add_usb("2-2", LOADED)
    rig.wait("usb:2-2", "ready", looking=True)

    def forgotten() -> bool:
        rig.look()
        return rig.state(USB) == ""

    wait_for(forgotten)
    wait_for(lambda: threading.active_count() == threads)
    host.remove_usb("2-2")
    host.add_usb("2-1", LOADED)
    rig.wait(USB, "ready", looking=True)
    assert rig.infer() == USB


# ---------------------------------------------------------------------------- time


def test_a_device_that_has_become_slow_passes_its_self_test_again(
    host: Host, make_rig: MakeRig
) -> None:
    """A starved host makes it so; a hang limit from better days would keep it out for ever."""
    host.add_pci()
    host.behave(APEX, "latency_us=5000")
    rig = make_rig().start()
    for number in range(30):
        rig.infer(number)
    host.behave(APEX, "latency_us=700000")
    rig.kill(PCI, signal.SIGKILL)
    wait_for(lambda: rig.status(PCI).restarts == 1)
    rig.wait(PCI, "ready")
    assert rig.infer() == PCI
    assert dict(rig.status(PCI).failures) == {"died": 1}


class HeldUp(Link):
    """A process that the kernel holds up on its way out."""

    let_go = threading.Event()

    def reaped(self, timeout_s: float) -> bool:
        """Not before it is let go."""
        return self.let_go.wait(timeout_s) and super().reaped(timeout_s)


def test_a_device_is_not_ready_from_the_moment_that_its_process_ends(
    host: Host, make_rig: MakeRig
) -> None:
    def begin(setup: Setup) -> Link:
        return HeldUp(setup, link.command(), link.environment())

    host.add_pci()
    rig = make_rig(start_process=begin).start()
    HeldUp.let_go.clear()
    rig.kill(PCI, signal.SIGKILL)
    wait_for(lambda: rig.state(PCI) != "ready")
    assert rig.infer(1) == "cpu"
    assert rig.status(PCI).pid  # it is still there, and not opened again
    HeldUp.let_go.set()
    rig.wait(PCI, "ready")
