"""Edge TPUs as sysfs shows them, in trees whose files may vanish or be garbage; what they lack."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.devices import causes, discovery, telemetry
from app.devices.discovery import Choice, Device, choose, discover, edgetpus
from app.devices.telemetry import Finding, Sighting, Telemetry
from app.devices.watch import Watch
from app.errors import SettingsError
from tests.standin.host import DFU, LOADED, Host
from tests.support import wait_for

PCI, USB = "pci:0000:03:00.0", "usb:2-1"


def only(host: Host) -> Device:
    """The one Edge TPU there is."""
    (device,) = edgetpus(host.root)
    return device


# ---------------------------------------------------------------------------- found


def test_a_card_is_known_by_its_pci_address(host: Host) -> None:
    host.add_pci(0)
    device = only(host)
    assert (device.id, device.kind, device.bus, device.node) == (PCI, "edgetpu", "pci", "apex_0")
    assert device.unique_id == f"{1:032x}"
    assert device.about == "Edge TPU on PCIe, /dev/apex_0, 5.0 GT/s x1"
    assert device.problem == ""


@pytest.mark.parametrize(
    ("product", "about"),
    [
        (DFU, "Edge TPU on USB, port 2-1, 5000 Mbit/s, its firmware not loaded yet"),
        (LOADED, "Edge TPU on USB, port 2-1, 5000 Mbit/s"),
    ],
)
def test_a_stick_is_known_by_its_port(host: Host, product: tuple[str, str], about: str) -> None:
    host.add_usb("2-1", product)
    device = only(host)
    assert (device.id, device.bus, device.node, device.about) == (USB, "usb", "2-1", about)


def test_cards_come_before_sticks_and_the_cpu_last(host: Host) -> None:
    host.add_usb("1-1")
    host.add_pci(1)
    host.add_pci(0)
    found = [device.id for device in discover("here", root=host.root)]
    assert found == [PCI, "pci:0000:04:00.0", "usb:1-1", "cpu"]


def test_other_hardware_is_no_edge_tpu(host: Host) -> None:
    card = host.root / "sys/bus/pci/devices/0000:00:02.0"
    card.mkdir()
    (card / "vendor").write_text("0x8086\n")
    (card / "device").write_text("0x089a\n")
    host.add_usb("1-2", ("18d1", "4ee7"))  # a phone of the same maker
    (host.root / "sys/bus/usb/devices/1-2:1.0").mkdir()
    assert edgetpus(host.root) == []


def test_a_host_without_sysfs_has_none(tmp_path: Path) -> None:
    assert edgetpus(tmp_path / "nothing") == []


def test_a_link_to_the_device_may_be_missing_where_its_address_is_a_file(host: Host) -> None:
    host.add_pci()
    (host.root / "sys/class/apex/apex_0/device").unlink()
    assert (only(host).id, only(host).node) == (PCI, "apex_0")


def test_a_card_that_only_its_driver_shows_is_found_too(host: Host) -> None:
    host.add_pci()
    shutil.rmtree(host.root / "sys/bus/pci/devices")
    assert (only(host).id, only(host).problem) == (PCI, "")


PROBLEMS = [
    ("sys/class/apex/apex_0", "was not accepted by its driver"),
    ("dev/apex_0", "has no node /dev/apex_0 here"),
]


def make_file(path: Path) -> None:
    """What LXC's create=file leaves."""
    path.touch()


def make_folder(path: Path) -> None:
    """What `docker run --volume` leaves."""
    path.mkdir()


def make_broken_link(path: Path) -> None:
    """What a link to a node that has gone is."""
    path.symlink_to("nowhere")


def make_pipe(path: Path) -> None:
    """Anything else."""
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_file, "a file"),
        (make_folder, "a folder"),
        (make_broken_link, "a broken link"),
        (make_pipe, "something else"),
    ],
)
def test_what_is_no_device_node_is_told_as_what_it_is(
    host: Host, make: Callable[[Path], None], kind: str
) -> None:
    host.add_pci()
    host.add_usb()
    for device, name in zip(edgetpus(host.root), ("apex_0", "bus/usb/002/001"), strict=True):
        assert device.problem == ""
        node = host.root / "dev" / name
        node.unlink()
        make(node)
        (again,) = (each for each in edgetpus(host.root) if each.id == device.id)
        assert f"/dev/{name} is {kind} here and no device node" in again.problem


def bind(host: Host, driver: str) -> None:
    """Let a driver have the card."""
    link = host.root / "sys/bus/pci/devices" / PCI[4:] / "driver"
    link.symlink_to(f"../../drivers/{driver}")


@pytest.mark.parametrize("driver", discovery.GUEST_DRIVERS)
def test_a_card_that_a_virtual_machine_has_is_told_as_that(host: Host, driver: str) -> None:
    host.add_pci()
    shutil.rmtree(host.root / "sys/class/apex/apex_0")
    (host.root / "sys/module/apex").rmdir()
    (host.root / "sys/bus/pci/devices" / PCI[4:] / "power/control").write_text("auto\n")
    bind(host, driver)
    device = only(host)
    assert device.problem.startswith(f"is held for a virtual machine by the host's driver {driver}")
    assert telemetry.look(device, host.root).findings == ()


def test_a_card_that_another_driver_has_is_told_with_how_to_free_it(host: Host) -> None:
    host.add_pci()
    shutil.rmtree(host.root / "sys/class/apex/apex_0")
    bind(host, "uio_pci_generic")
    problem = only(host).problem
    assert "held by the driver uio_pci_generic" in problem
    assert f"/sys/bus/pci/devices/{PCI[4:]}/driver/unbind" in problem


def test_a_card_that_its_own_driver_has_is_well(host: Host) -> None:
    host.add_pci()
    bind(host, discovery.PCI_DRIVER)
    assert only(host).problem == ""


@pytest.mark.parametrize(("gone", "problem"), PROBLEMS)
def test_what_a_card_lacks_is_its_problem(host: Host, gone: str, problem: str) -> None:
    host.add_pci()
    (host.root / gone).rename(host.root / "hidden")
    assert only(host).problem.startswith(problem)


def test_a_node_that_may_not_be_opened_names_its_group(host: Host) -> None:
    host.add_pci()
    host.add_usb()
    card, stick = edgetpus(host.root, may_open=lambda _node: False)
    for device in (card, stick):
        assert "belongs to group" in device.problem
        assert "group_add" in device.problem


def test_files_that_vanish_fail_or_are_garbage_stop_nothing(host: Host) -> None:
    """Every file and folder of the trees in turn: gone, a folder, bytes that are no text."""
    host.add_pci()
    host.add_usb("2-1", LOADED)
    files = [each for each in sorted((host.root / "sys").rglob("*")) if not each.is_symlink()]
    assert len(files) > 40
    for path in files:
        hidden = host.root / "hidden"
        path.rename(hidden)
        for harm in (None, "folder", "garbage"):
            if harm == "folder":
                path.mkdir()
            elif harm == "garbage":
                path.rmdir()
                path.write_bytes(b"\xff\xfe\0garbage")
            for device in edgetpus(host.root):
                telemetry.look(device, host.root)
        path.unlink()
        hidden.rename(path)
    assert len(edgetpus(host.root)) == 2


def test_devices_that_come_and_go_all_the_time_stop_nothing(host: Host) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            host.add_pci()
            host.add_usb()
            host.remove_usb()
            host.remove_pci()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            for device in edgetpus(host.root):
                telemetry.look(device, host.root)
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------------------- chosen


@pytest.mark.parametrize("word", ["gpu", "pci:", "usb:2", "apex", "AUTO", "cpu:0", "0000:03:00.0"])
def test_a_word_that_names_no_device_stops_the_start(word: str) -> None:
    with pytest.raises(SettingsError, match="REEF_DEVICES: takes auto, cpu, pci, usb") as error:
        choose((word,))
    assert repr(word) in str(error.value)


def test_auto_stands_alone() -> None:
    with pytest.raises(SettingsError, match="name nothing beside it"):
        choose(("auto", "pci"))


@pytest.mark.parametrize(
    ("words", "asks"),
    [((), False), (("auto",), False), (("cpu",), False), (("usb",), True), (("apex_1",), True)],
)
def test_naming_edge_tpus_is_asking_for_them(words: tuple[str, ...], asks: bool) -> None:
    assert choose(words).asks_for_edgetpu is asks


def test_the_cpu_alone_leaves_edge_tpus_alone(host: Host) -> None:
    host.add_pci()
    found = discover("here", root=host.root, choice=Choice(("cpu",)))
    assert [device.id for device in found] == ["cpu"]


# ---------------------------------------------------------------------------- how they are


def shown(host: Host) -> Telemetry:
    """The figures of the one Edge TPU."""
    return telemetry.read(only(host), host.root)


def test_a_card_shows_heat_owner_power_and_link(host: Host) -> None:
    host.add_pci(temp="51300", is_device_owned="1", device_owner="77", reset_count="3")
    told = shown(host)
    assert (told.temperature_c, told.trip_points_c) == (51.3, (84.8, 89.8, 94.8))
    assert (told.shutdown_c, told.off_the_bus, told.throttle_level) == (99.8, False, 0)
    assert (told.owner, told.resets) == (77, 3)
    assert (told.runtime_status, told.power_control, told.aspm) == ("active", "on", "0")
    assert (told.link, told.link_best) == ("5.0 GT/s x1", "5.0 GT/s x1")


@pytest.mark.parametrize(
    ("temperature", "level"),
    [("84799", 0), ("84800", 1), ("89800", 2), ("94800", 3), ("-89700", 0), ("garbage", 0)],
)
def test_each_trip_point_halves_the_clock(host: Host, temperature: str, level: int) -> None:
    host.add_pci(temp=temperature)
    assert shown(host).throttle_level == level


@pytest.mark.parametrize(
    ("temperature", "config", "off"),
    [
        ("-89700", b"", True),
        ("-89700", bytes.fromhex("c11a9a08"), True),
        ("51300", b"\xff\xff\xff\xff", True),
        ("garbage", b"\xff\xff\xff\xff", True),
        ("51300", bytes.fromhex("c11a9a08"), False),
        ("51300", b"\xff", False),
        ("garbage", b"", False),
    ],
)
def test_a_card_of_which_nothing_but_ones_is_read_is_off_the_bus(
    host: Host, temperature: str, config: bytes, off: bool
) -> None:
    host.add_pci(temp=temperature)
    (host.root / "sys/bus/pci/devices" / PCI[4:] / "config").write_bytes(config)
    sighting = telemetry.look(only(host), host.root)
    assert sighting.off_the_bus is off
    assert (telemetry.OFF_THE_BUS in {each.check for each in sighting.findings}) is off


def test_who_is_to_remove_a_card_from_its_bus_is_told_to_stop_reef_first(host: Host) -> None:
    host.add_pci(temp="-89700")
    (finding,) = telemetry.look(only(host), host.root).findings
    assert finding.says.index("stop Reef") < finding.says.index("remove and rescan")


def test_a_stick_shows_its_speed_and_its_firmware(host: Host) -> None:
    host.add_usb("2-1", speed="480")
    told = shown(host)
    assert (told.usb_mbits, told.firmware_loaded, told.temperature_c) == (480, False, None)


def test_a_free_card_has_no_owner(host: Host) -> None:
    host.add_pci(is_device_owned="0", device_owner="77")
    assert shown(host).owner is None


def test_the_cpu_shows_nothing() -> None:
    assert telemetry.read(Device("cpu", "cpu", "", "")) == Telemetry()


@pytest.mark.parametrize(
    ("speed", "width"),
    [
        ("Unknown", "255"),
        ("Unknown speed", "0"),
        ("Unknown", "63"),
        ("5.0 GT/s PCIe", "0"),
        ("5.0 GT/s PCIe", "255"),
        ("2.5 GT/s PCIe", "63"),
        ("Unknown", "1"),
        ("", "1"),
        ("5.0 GT/s PCIe", ""),
    ],
)
@pytest.mark.parametrize("which", ["current", "max"])
def test_a_link_that_the_kernel_does_not_know_is_not_complained_of(
    host: Host, which: str, speed: str, width: str
) -> None:
    host.add_pci()
    pci = host.root / "sys/bus/pci/devices" / PCI[4:]
    (pci / f"{which}_link_speed").write_text(f"{speed}\n")
    (pci / f"{which}_link_width").write_text(f"{width}\n")
    sighting = telemetry.look(only(host), host.root)
    assert sighting.findings == ()
    assert "Unknown" not in only(host).about
    assert "" in (sighting.telemetry.link, sighting.telemetry.link_best)


@pytest.mark.parametrize(
    ("status", "told"),
    [("ALIVE", False), ("DEAD", True), ("LAMED", True), ("DRIVER_EXITING", False), ("", False)],
)
def test_what_its_driver_says_of_a_card_is_told(host: Host, status: str, told: bool) -> None:
    host.add_pci(status=status)
    findings = telemetry.look(only(host), host.root).findings
    assert [each.check for each in findings] == ["driver_status"] * told
    assert all(each.grave and status in each.says and "dmesg" in each.says for each in findings)


@pytest.mark.parametrize(
    ("told", "check"),
    [
        (Telemetry(runtime_status="error"), "power_error"),
        (Telemetry(aspm="1"), "aspm"),
        (Telemetry(power_control="auto"), "autosuspend"),
        (Telemetry(off_the_bus=True, temperature_c=-89.7), "off_the_bus"),
        (Telemetry(link="5.0 GT/s x1", link_best="5.0 GT/s x4"), "link_downgraded"),
        (Telemetry(usb_mbits=480, firmware_loaded=True), "usb2"),
    ],
)
def test_what_is_wrong_is_one_finding(told: Telemetry, check: str) -> None:
    device = Device(PCI, "edgetpu", "", "", bus="pci")
    (finding,) = telemetry.findings(device, told)
    assert finding.check == check
    assert PCI in finding.says


@pytest.mark.parametrize(
    "told",
    [
        Telemetry(),
        Telemetry(usb_mbits=480, firmware_loaded=False),  # DFU may well be at USB 2
        Telemetry(usb_mbits=10000, firmware_loaded=True),
        Telemetry(temperature_c=84.7, trip_points_c=(84.8,)),
    ],
)
def test_what_is_usual_is_no_finding(told: Telemetry) -> None:
    assert list(telemetry.findings(Device(PCI, "edgetpu", "", "", bus="pci"), told)) == []


# ---------------------------------------------------------------------------- what they say

SAID = [
    # what is written, by whom it doesn't matter; and what it means
    ("libedgetpu.so.1: cannot open shared object file: No such file", "no_library"),
    ("libusb-1.0.so.0: cannot open shared object file: No such file", "library_incomplete"),
    (
        "Package requires runtime version (14), which is newer than this runtime version (13).",
        "newer_model",
    ),
    ("Encountered unresolved custom op: edgetpu-custom-op.", "not_delegated"),
    ("Device open failed : -1 (Permission denied)", "permission"),
    ("Device open failed : -1 (Operation not permitted)", "busy"),
    ("Device open failed : -1 (Connection timed out)", "chip_dead"),
    ("Device open failed : -1 (Input/output error)", "io_error"),
    ("Device open failed : -1 (No such device)", "removed"),
    ("Device open failed : -1 (No such file or directory)", "no_node"),
    (
        "Could not enable coherent allocator size 16384. : fd=9 (Cannot allocate memory)",
        "coherent_memory",
    ),
    ("CoherentAllocator Could not mmap size 16384.", "coherent_memory"),
    ("Setting Event Fd Failed : 8 (Inappropriate ioctl for device)", "eventfd"),
    ("Internal: HIB Error. hib_error_status = ffffffffffffffff, hib_first", "off_the_bus"),
    ("F mmio_driver.cc:527] Non-OK-status: NotifyRequestCompletion()", "unexpected_state"),
    ("Permission denied: USB error -3 [OpenDevice]", "permission"),
    ("Deadline exceeded: USB error -6 [ClaimInterface]", "usb_busy"),
    ("Unknown: USB error -9 [GetDeviceDescriptor]", "usb_stall"),
    ("Resource exhausted: USB error -11 [AsyncBulkOutTransfer]", "usb_memory"),
    ("Unknown: USB error -1 [OpenDevice]", "usb_unopened"),
    ("Failed to prepare for TPU. Invalid argument: Executable is corrupt.", "refused_model"),
    ("Could not map pages : 10 (Device or resource busy)", "unmapped"),
    ("Process 12 is opening a node held by 7", "busy"),
    ("Device open failed : -1 (No such device or address)", "dead_node"),
    ("Failed to stat /dev/apex_0: No such file or directory", "no_node"),
    ("Could not partition page table. : 6 (Operation not permitted)", "page_table"),
    ("E driver/mmio_driver.cc:254] HIB Error. hib_error_status = 0000000000002200", "hib_error"),
    (
        "HandleQueuedBulkIn transfer in failed. Not found: USB transfer error 5 "
        "[LibUsbDataInCallback]",
        "usb_gone",
    ),
    (
        "F driver/usb/usb_driver.cc:859] transfer on tag 1 failed. Abort. Deadline exceeded: "
        "USB transfer error 2 [LibUsbDataOutCallback]",
        "usb_power",
    ),
    ("[0-0] bulk out for header failed. Abort. Unknown: USB transfer error 1", "usb_link"),
    ("RAM did not enable within timeout (12000 ms)", "chip_dead"),
    ("apex 0001:03:00.0: Couldn't initialize interrupts: -524", "interrupts"),
    ("apex 0000:03:00.0: MSI-X table init timed out", "probe_failed"),
    ("free(): invalid pointer", "wrong_library"),
]


@pytest.mark.parametrize(("line", "key"), SAID)
def test_every_known_message_has_a_cause(line: str, key: str) -> None:
    cause = causes.known([line])
    assert cause
    assert cause.key == key


def test_a_harmless_message_has_none() -> None:
    harmless = "Could not set performance expectation : 4 (Inappropriate ioctl for device)"
    assert causes.known([harmless]) is None


def test_an_internal_error_of_the_chip_is_told_by_its_bus() -> None:
    line = "E driver/mmio_driver.cc:254] HIB Error. hib_error_status = 0000000000002200"
    for bus, key, says in (("pci", "hib_error", "DMA"), ("usb", "usb_hib_error", "stick")):
        cause = causes.known([line], bus)  # type: ignore[arg-type]
        assert cause
        assert (cause.key, says in cause.says) == (key, True)
    assert "pcie_aspm" not in causes.why_failed("hung", [line], "usb")


@pytest.mark.parametrize(
    "line",
    [
        "I driver/usb/local_usb_device.cc:100] ConvertLibUsbTransferStatus: USB transfer error 2 "
        "[LibUsbDataInCallback]",
        "I driver/usb/usb_driver.cc:1138] bulk in 1024 bytes from buffer index [5]",
        "I driver/kernel/kernel_registers.cc:83] Opening /dev/apex_0. read_only=0",
        "I driver/driver_factory_default.cc:48] Failed to stat /dev/apex_1: No such file",
        "E driver/driver_factory_default.cc:52] /dev/apex_1 is not a character device.",
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    ],
)
def test_chatter_explains_no_failure_and_is_not_quoted(line: str) -> None:
    assert causes.why_failed("hung", [line], "usb") == "hung"
    assert causes.why_ended("ready", -9, [line], "pci") == "its process was killed by SIGKILL"


def test_the_cpus_process_has_none_of_an_edge_tpus_troubles() -> None:
    said = causes.why_ended("ready", 1, ["PermissionError: Permission denied"], "cpu")
    assert said == "its process ended with status 1: PermissionError: Permission denied"


def test_a_crash_means_something_else_at_each_stage() -> None:
    def why(stage: causes.Stage, status: int | None) -> str:
        return causes.why_ended(stage, status, [], "pci")

    assert "built for another TensorFlow Lite" in why("model", -11)
    assert why("ready", -11) == "its process was killed by SIGSEGV"
    assert "x86-64-v2" in why("library", -4)
    assert why("ready", 3) == "its process ended with status 3"
    assert why("ready", None) == "its process closed its socket"


# ---------------------------------------------------------------------------- watched


class Told:
    """Takes the place of the pool."""

    def __init__(self) -> None:
        self.updates: list[list[Sighting]] = []

    def update(self, there: list[Sighting]) -> None:
        """Remember."""
        self.updates.append(there)


@pytest.mark.parametrize(("repeat_s", "logged"), [(0.0, 3), (600.0, 2)])
def test_what_is_wrong_is_logged_once_and_when_it_is_over_and_not_at_every_turn(
    caplog: pytest.LogCaptureFixture, repeat_s: float, logged: int
) -> None:
    caplog.set_level("INFO")
    card = Device(PCI, "edgetpu", "", "")
    hot = Sighting(card, findings=(Finding("hot", f"{PCI} is hot"),))
    glances = iter([[hot]] * 5 + [[Sighting(card)]] * 5 + [[hot]] * 5)
    told = Told()
    watch = Watch(lambda: next(glances, []), told, every_s=0.001, repeat_s=repeat_s)
    watch.start()
    wait_for(lambda: len(told.updates) > 16)
    watch.close()
    lines = [record.message for record in caplog.records]
    expected = [f"{PCI} is hot", f"{PCI}: all is well again (hot)", f"{PCI} is hot"]
    assert lines == expected[:logged]


def test_a_look_that_the_kernel_does_not_answer_is_told() -> None:
    answer = threading.Event()
    told = Told()

    def look() -> list[Sighting]:
        answer.wait(30)
        return []

    watch = Watch(look, told, every_s=0.001, stalled_s=0.05)
    assert watch.notes() == []
    watch.start()
    wait_for(lambda: bool(watch.notes()))
    assert "until it does, none that comes" in watch.notes()[0]
    answer.set()
    wait_for(lambda: len(told.updates) > 2)
    watch.close()
    assert watch.notes() == []


def test_a_glance_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    glances = iter([1, 0, 1, 1])
    told = Told()
    watch = Watch(lambda: [][: 1 // next(glances, 1)], told, every_s=0.001)
    watch.start()
    wait_for(lambda: len(told.updates) >= 4)
    watch.close()
    assert [record.message for record in caplog.records] == ["Looking for devices failed: a bug"]


def test_no_device_is_opened_by_looking() -> None:
    source = Path(discovery.__file__).read_text() + Path(telemetry.__file__).read_text()
    assert "open(" not in source.replace("may_open(", "").replace("_may_open", "")
