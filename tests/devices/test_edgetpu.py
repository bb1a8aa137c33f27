"""Edge TPUs, one and many: driven, failing in every way, coming and going."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from app import models
from app.devices.link import Link, Setup
from app.devices.supervisor import start_link
from app.errors import NoDevice
from app.models import Catalogue
from tests import colour_model
from tests.devices.edgetpu import APEX, APEX_2, PCI, PCI_2, PORT, USB, MakeRig
from tests.standin import compiled_model
from tests.standin.host import LOADED, Host
from tests.standin.host import library as compile_library
from tests.support import make_settings, wait_for

# ---------------------------------------------------------------------------- driven


def test_a_card_answers_and_the_cpu_stands_by(host: Host, make_rig: MakeRig) -> None:
    host.add_pci()
    rig = make_rig().start()
    assert {rig.infer(number) for number in range(20)} == {PCI}
    assert rig.status("cpu").inferences == 0
    status = rig.status(PCI)
    assert (status.kind, status.bus, status.models) == ("edgetpu", "pci", ("finder_edgetpu",))
    assert "libedgetpu BuildLabel(COMPILER=a stand-in" in status.runtime
    assert 0 < status.busy_s < 20
    assert not rig.pool.why_degraded(rig.served.default)


def test_a_stick_gets_its_firmware_and_its_speed(host: Host, make_rig: MakeRig) -> None:
    host.add_usb()
    rig = make_rig(usb_performance="max").start(USB)
    assert rig.infer() == USB
    assert [event.what for event in host.events][:3] == ["Max", "opened", "firmware"]
    rig.look()
    assert rig.status(USB).telemetry.firmware_loaded


def test_no_stick_is_mistaken_for_another_while_firmware_is_loaded(
    host: Host, make_rig: MakeRig
) -> None:
    """A stick moves to the end of libedgetpu's list when it has its firmware."""
    host.behave("default", "upload_ms=300")
    ports = ["1-1", "1-2", "2-1", "2-2"]
    sticks = [host.add_usb(port) for port in ports]
    rig = make_rig().start(*sticks)
    assert sorted(event.key for event in host.happened("opened")) == ports
    for port, stick in zip(ports, sticks, strict=True):
        pid = rig.status(stick).pid
        assert [event.pid for event in host.happened("opened") if event.key == port] == [pid]


def test_several_models_run_on_one_device(host: Host, make_rig: MakeRig, tmp_path: Path) -> None:
    first = compiled_model.write(tmp_path / "first_edgetpu.tflite", 32)
    second = compiled_model.write(tmp_path / "second_edgetpu.tflite", 64)
    told = make_settings(model=str(first), extra_models=(str(second),))
    host.add_pci()
    rig = make_rig(models.load(told)).start()
    assert rig.status(PCI).models == ("first_edgetpu", "second_edgetpu")
    assert len(host.happened("opened")) == 1
    assert rig.infer() == PCI


def test_two_cards_share_the_work(host: Host, make_rig: MakeRig) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.behave("default", "latency_us=5000")
    rig = make_rig().start()
    with ThreadPoolExecutor(8) as clients:
        took = Counter(clients.map(rig.infer, range(200)))
    assert set(took) == {PCI, PCI_2}
    assert min(took.values()) > 20


def test_a_card_that_was_slow_for_a_while_gets_its_share_again(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.behave("default", "latency_us=10000")
    host.behave(APEX, "latency_us=200000")
    rig = make_rig().start()
    with ThreadPoolExecutor(4) as clients:
        before = Counter(clients.map(rig.infer, range(100)))
        host.behave(APEX, "latency_us=10000")
        after = Counter(clients.map(rig.infer, range(1200)))
    assert before[PCI] < 20
    assert after[PCI] > 100


def test_a_slow_card_takes_less(host: Host, make_rig: MakeRig) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.behave(APEX, "latency_us=5000")
    host.behave(APEX_2, "latency_us=40000")
    rig = make_rig().start()
    with ThreadPoolExecutor(24) as clients:
        took = Counter(clients.map(rig.infer, range(400)))
    assert took[PCI] > 3 * took[PCI_2]  # perhaps nothing, where the clients are slow


def test_a_hot_card_gives_its_work_to_a_cooler_one(host: Host, make_rig: MakeRig) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.behave("default", "latency_us=5000")
    rig = make_rig().start()
    host.apex(0, temp="86000")
    rig.look()
    assert rig.status(PCI).telemetry.throttle_level == 1
    assert "86 °C hot and runs at 1/2" in rig.status(PCI).warnings[0]
    assert {rig.infer(number) for number in range(20)} == {PCI_2}
    host.apex(0, temp="60000")
    rig.look()
    assert rig.status(PCI).warnings == ()


def test_a_stick_that_becomes_slow_is_thought_throttled_and_that_is_logged_once(
    host: Host, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    host.add_usb()
    host.behave(PORT, "latency_us=20000")
    rig = make_rig().start()
    for number in range(45):
        rig.infer(number)
    host.behave(PORT, "latency_us=80000")
    for number in range(45):
        rig.infer(number)
    for _ in range(3):
        rig.look()
    assert rig.status(USB).slowdown > 2
    assert "throttled by heat" in rig.status(USB).warnings[0]
    assert sum("throttled by heat" in record.message for record in caplog.records) == 1


# ---------------------------------------------------------------------------- why it can't be used


def test_a_library_for_another_tensorflow_lite_is_told_from_a_broken_card(
    host: Host, make_rig: MakeRig, tmp_path: Path, edgetpu_library: Path
) -> None:
    host.add_pci()
    old = compile_library(tmp_path / "old", "-DOLD_STRUCT")
    rig = make_rig(library=old, backoff_max_s=60.0).start("cpu")
    wait_for(lambda: rig.state(PCI) == "waiting")
    assert "libedgetpu was built for another TensorFlow Lite" in rig.status(PCI).reason


def test_a_missing_library_is_told(host: Host, make_rig: MakeRig) -> None:
    host.add_pci()
    rig = make_rig(library=Path("libedgetpu-of-nobody.so.1"), backoff_max_s=60.0).start("cpu")
    wait_for(lambda: rig.state(PCI) == "waiting")
    assert "libedgetpu is not installed" in rig.status(PCI).reason


def test_a_card_without_a_compiled_model_says_how_to_get_one(
    host: Host, make_rig: MakeRig, tmp_path: Path
) -> None:
    host.add_pci()
    path = colour_model.write(tmp_path / "colour.tflite")
    rig = make_rig(models.load(make_settings(model=str(path)))).start("cpu")
    assert (rig.state(PCI), host.events) == ("unusable", [])
    assert "models pull ssdlite_mobiledet` fetches" in rig.status(PCI).reason
    assert rig.infer() == "cpu"


# ---------------------------------------------------------------------------- failing at work

FAULTS = ["hang", "abort", "segv", "kill", "fail"]


@pytest.mark.parametrize("fault", FAULTS)
def test_with_two_cards_a_fault_costs_no_answer(host: Host, make_rig: MakeRig, fault: str) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.behave("default", "latency_us=3000")
    rig = make_rig().start()
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(rig.infer, number) for number in range(60)]
        host.behave(APEX, f"latency_us=3000 invoke={fault} once")

        def met_it() -> bool:
            """On a busy machine the card may look slow for a while, and get nothing."""
            answers.append(clients.submit(rig.infer, len(answers)))
            answers[-8].result()
            return host.fault_is_over(APEX)

        wait_for(met_it)
        answers += [clients.submit(rig.infer, number) for number in range(140)]
        took = {answer.result() for answer in answers}
    assert took <= {PCI, PCI_2}
    rig.wait(PCI, "ready")
    kind = {"hang": "hang", "fail": "invoke"}.get(fault, "died")
    assert dict(rig.status(PCI).failures) == {kind: 1}
    host.behave(APEX_2, "latency_us=200000")
    with ThreadPoolExecutor(4) as clients:
        assert PCI in set(clients.map(rig.infer, range(8)))


def test_a_picture_that_kills_two_cards_is_given_to_the_cpu_and_to_no_third(
    host: Host, make_rig: MakeRig
) -> None:
    cards = [host.add_pci(number) for number in range(3)]
    rig = make_rig().start()
    for number in range(3):
        host.behave(f"apex_{number}", "invoke=abort once")
    assert rig.infer(9) == "cpu"
    assert sorted(sum(rig.status(card).failures.values()) for card in cards) == [0, 1, 1]


@pytest.mark.parametrize("fault", FAULTS)
def test_with_one_card_the_cpu_answers_until_it_is_back(
    host: Host, make_rig: MakeRig, fault: str
) -> None:
    host.add_pci()
    rig = make_rig().start()
    host.behave(APEX, f"invoke={fault} once")
    assert rig.infer(77) == "cpu"
    rig.wait(PCI, "ready")
    assert rig.infer(78) == PCI


def test_without_fallback_the_card_itself_answers_when_it_is_back(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_pci()
    rig = make_rig(cpu_fallback=False).start(PCI)
    assert "REEF_CPU_FALLBACK is off" in rig.status("cpu").reason
    host.behave(APEX, "invoke=abort once")
    assert rig.infer(5) == PCI
    assert rig.status("cpu").pid is None


def test_without_fallback_and_without_a_card_the_refusal_says_why(
    host: Host, make_rig: MakeRig
) -> None:
    rig = make_rig(cpu_fallback=False, devices=("pci",))
    rig.pool.start()
    with pytest.raises(NoDevice, match="no Edge TPU is there"):
        rig.infer()


def test_without_an_edge_tpu_the_cpu_is_no_stopgap(make_rig: MakeRig) -> None:
    rig = make_rig(cpu_fallback=False).start()
    assert rig.infer() == "cpu"
    assert not rig.pool.is_degraded(rig.served.default, "cpu")


def test_an_edge_tpu_that_was_asked_for_and_is_not_there_is_missed(make_rig: MakeRig) -> None:
    rig = make_rig(devices=("pci",)).start()
    assert rig.infer() == "cpu"
    assert rig.pool.is_degraded(rig.served.default, "cpu")
    assert rig.pool.why_degraded(rig.served.default).endswith("none is there")


class SlowToDie(Link):
    """A process that is stuck in the kernel: it is killed, and dies much later."""

    def end(self, grace_s: float) -> None:
        """As for any other, but the kill takes its time."""
        self._control.close()
        threading.Timer(7.0, self.process.kill).start()


def test_a_card_that_is_stuck_in_the_kernel_is_not_opened_again_before_it_is_free(
    host: Host, make_rig: MakeRig
) -> None:
    def begin(setup: Setup) -> Link:
        stuck = setup.device == PCI and not host.happened("opened")
        return _slow_link(setup) if stuck else start_link(setup)

    host.add_pci()
    rig = make_rig(start_process=begin).start()
    old = rig.status(PCI).pid
    assert old
    host.behave(APEX, "invoke=hang once")
    assert rig.infer(1) == "cpu"
    wait_for(lambda: "stuck in the kernel" in rig.status(PCI).reason)
    assert (rig.state(PCI), rig.status(PCI).pid) == ("waiting", old)
    assert rig.infer(2) == "cpu"
    rig.wait(PCI, "ready")
    opened = host.happened("opened")
    assert [event.pid for event in opened] == [old, rig.status(PCI).pid]
    assert opened[1].seconds - opened[0].seconds > 7


def _slow_link(setup: Setup) -> Link:
    from app.devices import link

    return SlowToDie(setup, link.command(), link.environment())


# ---------------------------------------------------------------------------- coming and going


def test_cards_and_sticks_come_and_go_and_pictures_are_answered_throughout(
    host: Host, make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = make_rig().start("cpu")
    served, stop = Counter[str](), threading.Event()

    def ask_on() -> None:
        number = 0
        while not stop.is_set():
            served[rig.infer(number)] += 1
            number += 1

    with ThreadPoolExecutor(1) as client:
        asking = client.submit(ask_on)
        try:
            stories: list[tuple[Callable[[], object], Callable[[], object], str]] = [
                (host.add_pci, host.remove_pci, PCI),
                (host.add_pci, host.remove_pci, PCI),
                (host.add_usb, host.remove_usb, USB),
                (lambda: host.add_usb("2-4", LOADED), lambda: host.remove_usb("2-4"), "usb:2-4"),
            ]
            for come, go, device in stories:
                come()
                rig.wait(device, "ready", looking=True)
                before = served[device]
                wait_for(lambda device=device, before=before: served[device] > before)  # type: ignore[misc]
                go()
                rig.wait(device, "gone", looking=True)
                before = served["cpu"]
                wait_for(lambda before=before: served["cpu"] > before)  # type: ignore[misc]
        finally:
            stop.set()
        asking.result()
    detected = [record.message for record in caplog.records if record.message[:8] == "Detected"]
    seen = [line.split()[1].removesuffix(":") for line in detected]
    assert seen == ["cpu", PCI, PCI, USB, "usb:2-4"]
    assert "plug it in again" in rig.status(USB).reason
    assert rig.status(PCI).restarts == 0


def test_a_card_that_comes_back_under_another_name_is_still_the_same(
    host: Host, make_rig: MakeRig
) -> None:
    host.add_pci(0)
    rig = make_rig().start()
    host.remove_pci(0)
    rig.wait(PCI, "gone", looking=True)
    host.add_pci(1, address=PCI.removeprefix("pci:"))
    rig.wait(PCI, "ready", looking=True)
    assert [event.key for event in host.happened("opened")] == [APEX, APEX_2]
    assert rig.infer() == PCI


def test_a_stick_that_comes_back_elsewhere_is_not_opened_while_its_process_may_hold_it(
    host: Host, make_rig: MakeRig
) -> None:
    """Some ports put a stick on another bus once its firmware is loaded."""
    host.add_usb("2-1", LOADED)
    rig = make_rig().start()
    old = rig.status(USB).pid
    assert old
    host.remove_usb("2-1")
    host.add_usb("3-1", LOADED)
    rig.look()
    assert rig.state("usb:3-1") == ""
    rig.wait("usb:3-1", "ready", looking=True)
    assert not psutil.pid_exists(old)
    assert rig.infer() == "usb:3-1"


def test_a_card_that_may_be_opened_later_is_used_then(host: Host, make_rig: MakeRig) -> None:
    host.add_pci()
    node = host.root / "dev" / APEX
    node.rename(node.with_name("hidden"))
    rig = make_rig().start("cpu")
    assert rig.state(PCI) == "unusable"
    assert "has no node /dev/apex_0 here" in rig.status(PCI).reason
    node.with_name("hidden").rename(node)
    rig.wait(PCI, "ready", looking=True)
    assert rig.infer() == PCI


@pytest.mark.parametrize(
    ("words", "used"),
    [
        (("auto",), {PCI, PCI_2, USB, "cpu"}),
        (("cpu",), {"cpu"}),
        (("pci",), {PCI, PCI_2, "cpu"}),
        (("usb",), {USB, "cpu"}),
        ((PCI_2, USB), {PCI_2, USB, "cpu"}),
        ((f"{1:032x}",), {PCI, "cpu"}),
        ((APEX_2,), {PCI_2, "cpu"}),
    ],
)
def test_devices_may_be_chosen(
    host: Host, make_rig: MakeRig, words: tuple[str, ...], used: set[str]
) -> None:
    host.add_pci(0)
    host.add_pci(1)
    host.add_usb(PORT)
    assert {each.id for each in make_rig(devices=words).pool.status()} == used


# ---------------------------------------------------------------------------- for long


def test_two_dozen_faults_leak_nothing(host: Host, make_rig: MakeRig, served: Catalogue) -> None:
    host.add_pci(0)
    host.add_pci(1)
    rig = make_rig(backoff_max_s=0.0).start()

    def settled() -> None:
        for device in (PCI, PCI_2, "cpu"):
            rig.wait(device, "ready")

    def held() -> tuple[int, int, int]:
        settled()
        ours = psutil.Process()
        return ours.num_fds(), threading.active_count(), len(ours.children(recursive=True))

    before = held()
    for number in range(24):
        key, device = ((APEX, PCI), (APEX_2, PCI_2))[number % 2]
        if number % 5 == 4:
            host.behave(key, "invoke=hang once")
        else:
            rig.kill(device, (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)[number % 3])
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(rig.infer, range(number, number + 8)))
        time.sleep(0.01)
        settled()
    assert held() == before
    assert rig.status("cpu").restarts == 0


# ---------------------------------------------------------------------------- a real model

FACES = "edgetpu/mobilenet_ssd_v2_face_quant_postprocess_edgetpu.tflite"


def test_a_real_compiled_model_loads_and_infers(host: Host, make_rig: MakeRig) -> None:
    found = [parent / "shared/models" / FACES for parent in Path(__file__).parents]
    path = next((each for each in found if each.is_file()), None)
    if path is None:
        pytest.skip("Coral's face model is not on this machine, and may not be committed")
    labels = host.root / "face.txt"
    labels.write_text("face\n")
    host.add_pci()
    rig = make_rig(models.load(make_settings(model=str(path), labels=str(labels)))).start()
    layout = next(iter(rig.served.default.layouts))
    assert (layout.width, layout.height) == (320, 320)
    assert rig.status(PCI).state == "ready"
