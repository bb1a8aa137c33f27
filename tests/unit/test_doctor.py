"""`reef doctor`: every way in which an Edge TPU may not work has one sentence, and is found."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app import doctor
from app.advice import HERE
from app.devices import discovery
from app.doctor import Finding, Patient
from tests import colour_model
from tests.client import free_port
from tests.site import LocalSite, QuietHandler
from tests.standin import compiled_model
from tests.standin.host import LOADED, Host
from tests.standin.host import library as compile_library
from tests.support import make_settings
from tests.unit.test_main import run

PCI, USB = "pci:0000:03:00.0", "usb:2-1"
KERNEL = "6.12.0-test"


def anybody(_node: Path) -> bool:
    """Everybody may open everything."""
    return True


@pytest.fixture
def patient(host: Host, edgetpu_library: Path, tmp_path: Path) -> Patient:
    """A host on which all is well, but for its having no Edge TPU yet."""
    told = make_settings(
        host_root=host.root,
        libedgetpu=str(edgetpu_library),
        model=str(compiled_model.write(tmp_path / "finder_edgetpu.tflite")),
        model_cpu=str(colour_model.write(tmp_path / "colour.tflite")),
        run_dir=tmp_path / "run",
        port=free_port(),
    )
    return Patient(told, KERNEL, 4096, anybody)


def without_driver(host: Host) -> None:
    """A card, and no module that drives it."""
    host.add_pci()
    (host.root / "sys/class/apex/apex_0").rename(host.root / "gone")
    (host.root / "sys/module/apex").rmdir()


def put(host: Host, name: str, text: str = "") -> None:
    """Write a file of the host's."""
    path = host.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def driver_for_another_kernel(host: Host) -> None:
    """gasket-dkms is there, but nothing for this kernel."""
    without_driver(host)
    put(host, "var/lib/dkms/gasket/1.0/source/gasket.c")


def driver_not_loaded(host: Host) -> None:
    """It is built, and Secure Boot is on."""
    without_driver(host)
    put(host, f"lib/modules/{KERNEL}/updates/dkms/apex.ko.xz")
    put(host, doctor.SECURE_BOOT, "\x06\x00\x00\x00\x01")


def given_away(host: Host) -> None:
    """vfio-pci has the card."""
    without_driver(host)
    (host.root / "sys/bus/pci/devices" / PCI[4:] / "driver").symlink_to("../drivers/vfio-pci")


def node_is_a_file(host: Host) -> None:
    """An LXC container that was started before the host had the card."""
    host.add_pci()
    (host.root / "dev/apex_0").unlink()
    (host.root / "dev/apex_0").touch()


def not_accepted(host: Host) -> None:
    """The driver is there and could not start the card."""
    host.add_pci()
    (host.root / "sys/class/apex/apex_0").rename(host.root / "gone")


def no_node(host: Host) -> None:
    """A container that wasn't given the card."""
    host.add_pci()
    (host.root / "dev/apex_0").unlink()


def no_usb_node(host: Host) -> None:
    """A container that wasn't given the bus."""
    host.add_usb()
    next((host.root / "dev/bus/usb/002").iterdir()).unlink()


def privileged(host: Host) -> None:
    """A container with every right."""
    put(host, ".dockerenv")
    put(host, "proc/self/status", "Name:\treef\nCapEff:\t000001ffffffffff\n")


def owned(host: Host) -> None:
    """Frigate has the card."""
    host.add_pci()
    host.apex(is_device_owned="1", device_owner="4711")
    put(host, "proc/4711/comm", "frigate.detecto\n")


def claimed(host: Host) -> None:
    """Some program has the stick."""
    host.add_usb("2-1", LOADED)
    interface = host.root / "sys/bus/usb/devices/2-1/2-1:1.0"
    interface.mkdir()
    (interface / "driver").symlink_to("../../../../bus/usb/drivers/usbfs")


def kernel_says(*lines: str) -> Callable[[Host], None]:
    """These lines are in the kernel's log."""

    def say(host: Host) -> None:
        host.add_pci()
        put(host, "dev/kmsg", "".join(f"4,1,1,-;{line}\n" for line in lines))

    return say


ILL: dict[str, tuple[Callable[[Host], object], str, str, str]] = {
    # what is done to the host, the check that finds it, its level, and words of it
    "no device": (lambda _: None, "no_device", "note", "check that it is plugged in"),
    "no driver": (without_driver, "unusable", "error", discovery.DRIVER_REMEDY),
    "given to a virtual machine": (given_away, "unusable", "error", "for a virtual machine"),
    "a node that is a file": (node_is_a_file, "unusable", "error", "/dev/apex_0 is a file here"),
    "lamed": (lambda host: host.add_pci(status="LAMED"), "driver_status", "error", "LAMED"),
    "another kernel's driver": (
        driver_for_another_kernel,
        "unusable",
        "error",
        f"not built for kernel {KERNEL}: run `{discovery.DRIVER_REMEDY}`",
    ),
    "driver not loaded": (driver_not_loaded, "unusable", "error", "Secure Boot refuses the driver"),
    "not accepted": (not_accepted, "unusable", "error", "dmesg | grep -i apex"),
    "no node": (no_node, "unusable", "error", "compose.pcie.yaml"),
    "no node on USB": (no_usb_node, "unusable", "error", "compose.usb.yaml"),
    "owned": (owned, "owner", "error", "belongs to process 4711 (frigate.detecto)"),
    "claimed": (claimed, "owner", "error", "usb:2-1 belongs to a program"),
    "waits for firmware": (lambda host: host.add_usb(), "dfu", "note", "waits for its firmware"),
    "USB 2": (
        lambda host: host.add_usb("2-1", LOADED, speed="480"),
        "usb2",
        "warning",
        "use a USB 3 port",
    ),
    "link downgraded": (
        lambda host: put(
            host,
            str(Path("sys/bus/pci/devices") / host.add_pci()[4:] / "current_link_speed"),
            "2.5 GT/s PCIe\n",
        ),
        "link_downgraded",
        "warning",
        "runs at 2.5 GT/s x1 and not at 5.0 GT/s x1",
    ),
    "autosuspend": (
        lambda host: host.add_usb("2-1", LOADED, **{"power/control": "auto"}),
        "autosuspend",
        "warning",
        "write `on` into its power/control",
    ),
    "hot": (lambda host: host.add_pci(temp="91000"), "hot", "warning", "1/4 of its clock"),
    "off the bus": (lambda host: host.add_pci(temp="-89700"), "off_the_bus", "error", "rescan"),
    "privileged": (privileged, "privileged", "warning", "drop `privileged`"),
    "old CPU": (
        lambda host: put(host, "proc/cpuinfo", "flags\t\t: fpu sse sse2 ssse3 cx16\n"),
        "old_cpu",
        "error",
        "has no popcnt, sse4_1, sse4_2",
    ),
    "dead chip": (
        kernel_says("apex 0000:03:00.0: RAM did not enable within timeout (12000 ms)"),
        "kernel_chip_dead",
        "warning",
        "power the computer off and on",
    ),
    "no interrupts": (
        kernel_says("apex 0001:03:00.0: Couldn't initialize interrupts: -524"),
        "kernel_interrupts",
        "warning",
        "pcie-32bit-dma-pi5",
    ),
    "probe failed": (
        kernel_says("apex 0000:03:00.0: Page table init timed out"),
        "kernel_probe_failed",
        "warning",
        "no /dev/apex_N",
    ),
    "unsigned driver": (
        kernel_says("Loading of unsigned module: Key was rejected by service"),
        "kernel_secure_boot",
        "warning",
        "mokutil",
    ),
    "garbage": (
        kernel_says(*["apex: Apex performance not throttled due to temperature"] * 3),
        "kernel_registers_garbage",
        "warning",
        "before it falls off the bus",
    ),
}


@pytest.mark.parametrize("name", ILL)
def test_what_is_wrong_is_found_and_said_in_one_sentence(
    patient: Patient, host: Host, name: str
) -> None:
    befall, check, level, words = ILL[name]
    befall(host)
    findings = [each for each in doctor.examine(patient) if each.check == check]
    assert findings, doctor.examine(patient)
    assert findings[0].level == level
    assert words in findings[0].says
    assert "\n" not in findings[0].says


def found(patient: Patient) -> dict[str, Finding]:
    """What is found, by check."""
    return {each.check: each for each in doctor.examine(patient)}


def test_a_well_host_has_nothing_to_complain_of(patient: Patient, host: Host) -> None:
    host.add_pci()
    host.add_usb("2-1", LOADED)
    findings = doctor.examine(patient)
    assert {each.level for each in findings} == {"ok", "note"}
    assert host.events == []  # no device was opened


@pytest.mark.parametrize("trouble", [owned, claimed])
def test_what_cannot_be_used_is_not_called_well(
    patient: Patient, host: Host, trouble: Callable[[Host], None]
) -> None:
    trouble(host)
    assert "device" not in found(patient)


def test_a_card_that_reef_itself_has_is_well(patient: Patient, host: Host) -> None:
    host.add_pci()
    host.apex(is_device_owned="1", device_owner="12345")
    put(host, "proc/77/comm", "python3")
    patient.settings.run_dir.mkdir()
    (patient.settings.run_dir / "pci-0000:03:00.0.lock").write_text("77")
    assert found(patient)["owner"].says == f"{PCI} is at work for Reef, process 77"


def test_who_may_not_open_a_node_is_told_its_group(patient: Patient, host: Host) -> None:
    host.add_pci()
    shut_out = replace(patient, may_open=lambda _node: False)
    assert "belongs to group" in found(shut_out)["unusable"].says


def test_large_pages_hurt_cards_and_not_sticks(patient: Patient, host: Host) -> None:
    host.add_usb()
    large = replace(patient, page_bytes=16384)
    assert "page_size" not in found(large)
    host.add_pci()
    assert "kernel=kernel8.img" in found(large)["page_size"].says


def test_a_model_that_is_not_compiled_is_told(patient: Patient, host: Host, tmp_path: Path) -> None:
    host.add_pci()
    settings = patient.settings.model_copy(update={"model": str(tmp_path / "colour.tflite")})
    settings = settings.model_copy(update={"model_cpu": ""})
    said = found(replace(patient, settings=settings))["model_not_compiled"]
    assert said.level == "error"
    assert f"`{HERE.pull('ssdlite_mobiledet')}`" in said.says


def test_everything_that_is_wrong_with_the_models_is_told(patient: Patient) -> None:
    wrong = {"extra_models": ("/gone.tflite",), "only_labels": ("persn",)}
    settings = patient.settings.model_copy(update=wrong)
    findings = doctor.examine(replace(patient, settings=settings))
    told = [each.says for each in findings if each.check == "model"]
    assert len(told) == len(wrong)
    assert "\n" not in "".join(told)


def test_googles_own_library_is_told(patient: Patient, host: Host, tmp_path: Path) -> None:
    host.add_pci()
    old = compile_library(tmp_path / "old", "-DOLD_STRUCT")
    settings = patient.settings.model_copy(update={"libedgetpu": str(old)})
    assert (
        "Google's package of 2021"
        in found(replace(patient, settings=settings))["wrong_library"].says
    )


def test_a_missing_library_hurts_only_who_has_an_edge_tpu(patient: Patient, host: Host) -> None:
    settings = patient.settings.model_copy(update={"libedgetpu": "libedgetpu-of-nobody.so.1"})
    bare = replace(patient, settings=settings)
    assert found(bare)["libedgetpu"].level == "note"
    host.add_pci()
    assert found(bare)["libedgetpu"].level == "error"
    assert "libedgetpu is not installed" in found(bare)["libedgetpu"].says


def test_a_device_that_was_asked_for_and_is_not_there_is_an_error(patient: Patient) -> None:
    settings = patient.settings.model_copy(update={"devices": ("pci",)})
    assert found(replace(patient, settings=settings))["no_device"].level == "error"


@pytest.fixture
def server(patient: Patient) -> Iterator[dict[str, object]]:
    """A server that answers what a test puts here, by path; without it, that it wants its key."""
    bodies: dict[str, object] = {}

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            body = json.dumps(bodies.get(self.path, {"code": "unauthorized"})).encode()
            self.send_response(503 if self.path in bodies else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    site = LocalSite(Handler, patient.settings.port)
    yield bodies
    site.close()


def test_what_a_running_server_says_of_its_devices_is_passed_on(
    patient: Patient, server: dict[str, object]
) -> None:
    reason = "its process was killed by SIGABRT: the stick was reset or pulled"
    device = {"id": USB, "kind": "edgetpu", "state": "waiting", "reason": reason}
    server["/ready"] = {"reason": f"{USB} {reason}", "notes": ["this image lacks a spoon"]}
    server["/devices"] = {"devices": [device]}
    findings = found(patient)
    assert findings["server_device"].says == f"the server says: {USB} {reason}"
    assert findings["image"].says == "this image lacks a spoon"


def test_a_server_that_wants_its_key_is_a_server(
    patient: Patient, server: dict[str, object]
) -> None:
    server["/ready"] = {"reason": "", "notes": []}
    findings = found(patient)
    assert findings["server"].level == "ok"
    assert "REEF_API_KEY" in findings["server_key"].says


@pytest.mark.parametrize(
    ("sticks", "limit", "told"),
    [
        (1, "16", False),
        (1, "2", False),
        (3, "16", False),
        (4, "16", True),
        (6, "16", True),
        (4, "17", False),
        (6, "64", False),
        (4, "0", False),  # no limit
        (4, "", False),
    ],
)
def test_sticks_that_may_want_more_memory_than_usb_has_are_told(
    patient: Patient, host: Host, sticks: int, limit: str, told: bool
) -> None:
    for port in range(sticks):
        host.add_usb(f"2-{port + 1}", LOADED)
    put(host, doctor.USBFS_MEMORY, f"{limit}\n")
    finding = found(patient).get("usbfs_memory")
    assert (finding is not None) is told
    if finding:
        assert finding.level == "warning"
        assert f"{limit} MiB" in finding.says
        assert f"`echo {8 * sticks} | sudo tee /{doctor.USBFS_MEMORY}`" in finding.says


RESET = "usb 2-1: reset SuperSpeed USB device number 3 using xhci_hcd"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([(second, RESET) for second in range(6)], True),
        ([(second, RESET) for second in range(5)], False),
        ([(hour * 3600, RESET) for hour in range(9)], False),  # it was started so often
        ([(second, RESET.replace("2-1", "4-1")) for second in range(9)], False),
    ],
    ids=["again and again", "now and then", "hours apart", "another device"],
)
def test_a_port_that_resets_its_stick_again_and_again_is_told(
    patient: Patient, host: Host, lines: list[tuple[int, str]], told: bool
) -> None:
    host.add_usb("2-1", LOADED)
    log = "".join(f"6,{n},{at * 1_000_000},-;{line}\n" for n, (at, line) in enumerate(lines))
    put(host, "dev/kmsg", log)
    assert ("kernel_usb_resets" in found(patient)) == told


def test_the_command_prints_text_or_json_and_its_status_is_the_worst(
    host: Host, tmp_path: Path
) -> None:
    host.add_pci(temp="91000")
    told = {"REEF_HOST_ROOT": host.root, "REEF_PORT": free_port(), "REEF_RUN_DIR": tmp_path}
    ran = run("doctor", **told)
    assert ran.returncode == 20  # the embedded model is the CPU's
    assert ran.stdout.startswith("ERROR ")
    assert ran.stdout.splitlines()[-1].endswith(" warnings")
    shown = json.loads(run("doctor", "--json", **told).stdout)
    assert shown["worst"] == "error"
    assert {"hot", "model_not_compiled"} <= {each["check"] for each in shown["findings"]}


@pytest.mark.parametrize(
    ("levels", "status"), [((), 0), (("ok", "note"), 0), (("note", "warning"), 10)]
)
def test_the_status_of_what_is_not_grave(levels: tuple[doctor.Level, ...], status: int) -> None:
    findings = [Finding("check", level, "says") for level in levels]
    assert doctor.EXIT_STATUS[doctor.worst(findings)] == status
