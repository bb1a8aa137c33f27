"""What libedgetpu does and prints when it fails, and what people are then told: one table."""

import threading
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

import pytest

from app.devices import link
from app.devices.limits import HANG_CEILING_S, OPEN_LIMIT_S
from tests.devices import edgetpu
from tests.devices.edgetpu import APEX, PCI, PORT, USB, MakeRig
from tests.standin import failures
from tests.standin.failures import Failure
from tests.standin.host import LOADED, Host
from tests.standin.host import library as compile_library
from tests.support import wait_for

DEVICES = {"pci": PCI, "usb": USB}


def add(host: Host, bus: str) -> None:
    """A device on that bus."""
    if bus == "pci":
        host.add_pci()
    else:
        host.add_usb(PORT, LOADED)


@pytest.mark.parametrize("failure", failures.OPENING, ids=str)
def test_why_a_device_does_not_become_ready_is_told(
    host: Host, make_rig: MakeRig, caplog: pytest.LogCaptureFixture, failure: Failure
) -> None:
    add(host, failure.bus)
    device = DEVICES[failure.bus]
    host.behave(failure.key, failure.behaviour)
    rig = make_rig(backoff_max_s=60.0).start("cpu")
    wait_for(lambda: rig.state(device) == "waiting")
    degraded = rig.pool.why_degraded(rig.served.default)
    assert degraded.startswith("the CPU answers instead of an Edge TPU: ")
    for shown in (rig.status(device).reason, degraded, caplog.text):
        assert failure.says in shown
        assert failure.quotes in shown
        assert "kernel_registers" not in shown
    assert rig.infer() == "cpu"
    assert rig.pool.is_degraded(rig.served.default, "cpu")


@pytest.mark.parametrize("failure", failures.AT_WORK, ids=str)
def test_why_a_device_fails_at_work_is_told(
    host: Host,
    make_rig: MakeRig,
    caplog: pytest.LogCaptureFixture,
    failure: Failure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("USB_TIMEOUT_MILLIS", "200")  # less than this device's hang limit
    add(host, failure.bus)
    device = DEVICES[failure.bus]
    rig = make_rig().start()
    host.behave(failure.key, f"{failure.behaviour} create=hang")

    def is_down() -> bool:
        rig.infer()
        return "is being started again: " in rig.status(device).reason

    wait_for(is_down)
    degraded = rig.pool.why_degraded(rig.served.default)
    for shown in (rig.status(device).reason, degraded, caplog.text):
        assert failure.says in shown
        assert failure.quotes in shown


def test_chatter_is_no_last_word(host: Host, make_rig: MakeRig) -> None:
    host.add_pci()
    rig = make_rig().start()
    host.behave(APEX, "create=hang")
    rig.kill(PCI, SIGKILL)
    wait_for(lambda: "is being started again" in rig.status(PCI).reason)
    assert rig.status(PCI).reason.endswith("its process was killed by SIGKILL")


def test_an_idle_stick_is_not_thought_short_of_power(
    host: Host,
    make_rig: MakeRig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("USB_TIMEOUT_MILLIS", "50")
    host.add_usb(PORT, LOADED)
    make_rig().start()
    threading.Event().wait(0.5)  # as idle as others are for a minute
    host.behave(PORT, "pulled=abort")
    host.remove_usb(PORT)
    wait_for(lambda: "its process was killed by SIGABRT" in caplog.text)
    assert "the stick was reset or pulled" in caplog.text
    assert "power or the cable" not in caplog.text


def test_another_cards_missing_node_explains_nothing(host: Host, make_rig: MakeRig) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.behave("apex_1", "create=missing")
    host.behave(APEX, "create=fail")
    rig = make_rig(backoff_max_s=60.0).start("cpu")
    wait_for(lambda: rig.state(PCI) == "waiting")
    assert "a reason that Reef does not know" in rig.status(PCI).reason
    wait_for(lambda: rig.state(edgetpu.PCI_2) == "waiting")
    assert "its node is not in this container" in rig.status(edgetpu.PCI_2).reason


# ---------------------------------------------------------------------------- slow


@pytest.mark.parametrize(
    ("bus", "behaviour", "says"),
    [
        ("pci", "create=hang", "a chip that does not answer keeps libedgetpu waiting"),
        ("pci", "create=deaf", "a chip that does not answer keeps libedgetpu waiting"),
        ("usb", "create=hang", "pull the stick and plug it in again"),
    ],
)
def test_a_device_that_does_not_open_in_time_is_told_from_one_that_hangs(
    host: Host,
    make_rig: MakeRig,
    monkeypatch: pytest.MonkeyPatch,
    bus: str,
    behaviour: str,
    says: str,
) -> None:
    monkeypatch.setattr("app.devices.session.OPEN_LIMIT_S", {"pci": 0.3, "usb": 0.3})
    add(host, bus)
    host.behave("default", behaviour)
    rig = make_rig(backoff_max_s=60.0).start("cpu")
    device = DEVICES[bus]
    wait_for(lambda: rig.state(device) == "waiting")
    assert "did not open within 0.3 s" in rig.status(device).reason
    assert says in rig.status(device).reason


def test_a_dead_chips_driver_has_the_time_that_it_takes() -> None:
    assert OPEN_LIMIT_S["pci"] > 2 * 12  # msleep of apex_reset, twice


def test_a_stick_that_takes_no_data_is_heard_before_it_is_killed() -> None:
    assert float(link.environment()["USB_TIMEOUT_MILLIS"]) / 1000 < HANG_CEILING_S["usb"]


def test_a_stick_that_hangs_at_its_opening_holds_up_no_other(host: Host, make_rig: MakeRig) -> None:
    host.add_usb("2-1")
    host.behave("2-1", "create=hang")
    rig = make_rig().start("cpu")
    wait_for(lambda: bool(host.happened("hangs")))
    host.add_usb("2-2")
    rig.wait("usb:2-2", "ready", looking=True)
    assert rig.infer() == "usb:2-2"
    rig.kill("usb:2-2", SIGKILL)
    rig.wait("usb:2-2", "ready")
    assert rig.state("usb:2-1") == "starting"


def test_a_closing_that_never_ends_delays_a_stop_by_seconds(host: Host, make_rig: MakeRig) -> None:
    host.add_pci()
    rig = make_rig().start()
    pid = rig.status(PCI).pid
    host.behave(APEX, "close=spin")
    rig.pool.close()
    assert host.happened("spins")[0].pid == pid
    assert not Path(f"/proc/{pid}").exists()


# ---------------------------------------------------------------------------- who has it


def test_who_waits_for_a_device_says_what_is_true(host: Host, make_rig: MakeRig) -> None:
    host.add_pci()
    first = make_rig().start()
    second = make_rig()
    second.pool.start()
    pid = first.status(PCI).pid
    says = f"waits for process {pid}, which has the device"
    wait_for(lambda: second.status(PCI).reason == says)
    (lock,) = (host.root / "run").glob("*.lock")
    lock.write_text("")
    wait_for(lambda: "waits for another process, which" in second.status(PCI).reason)


# ---------------------------------------------------------------------------- REEF_USB_PERFORMANCE


@pytest.mark.parametrize("variant", ["std", "max"])
def test_a_library_that_makes_max_high_is_told(
    host: Host,
    make_rig: MakeRig,
    edgetpu_library: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    variant: str,
) -> None:
    library = edgetpu_library
    if variant == "max":
        library = compile_library(tmp_path / "max", "-DMAX_VARIANT")
    host.add_usb(PORT, LOADED)
    rig = make_rig(library=library, usb_performance="max").start()
    rig.look()
    warned = [each for each in rig.status(USB).warnings if "REEF_USB_PERFORMANCE=max" in each]
    assert len(warned) == (variant == "std")
    assert ("runs at High" in caplog.text) is (variant == "std")


# ---------------------------------------------------------------------------- a loud stick


def test_a_stick_with_large_outputs_prints_nothing_at_work(
    host: Host, make_rig: MakeRig, started: list[link.Link]
) -> None:
    host.add_usb(PORT, LOADED)
    host.behave(PORT, "output_kib=190")
    rig = make_rig(start_process=starting(started)).start()
    for number in range(20):
        rig.infer(number)
    (stick,) = (each for each in started if each.process.pid == rig.status(USB).pid)
    assert not [line for line in stick.last_words() if "bulk in" in line]


@pytest.fixture
def started() -> list[link.Link]:
    """The links of the device processes that a pool starts."""
    return []


def starting(into: list[link.Link]) -> Callable[[link.Setup], link.Link]:
    """Starts device processes as a pool does, and keeps their links."""

    def start(setup: link.Setup) -> link.Link:
        into.append(link.Link(setup, link.command(), link.environment()))
        return into[-1]

    return start
