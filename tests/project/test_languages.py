"""What Python and shell both know, because neither can read the other, is the same in both."""

import re
from pathlib import Path

import pytest

from app import system
from app.devices import discovery, telemetry
from app.devices.discovery import DFU_ID, DRIVER_REMEDY, PCI_ID, USB_ID
from tests.host.hosts import Host, make_host
from tests.support import ROOT

CHECKS = (ROOT / "host-setup/lib/checks.sh").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host for the shell's side."""
    return make_host(tmp_path)


def test_a_card_without_its_driver_gets_the_same_remedy(host: Host) -> None:
    host.card()
    remedies = re.findall(r"driver (?:present|built|loaded)  .*\n +remedy: (.*)", host.run().text)
    assert remedies == [DRIVER_REMEDY] * 3
    (device,) = discovery.edgetpus(host.root)
    assert f"`{DRIVER_REMEDY}`" in device.problem


def test_no_document_and_no_message_names_another_remedy() -> None:
    for path in (*(ROOT / "app").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "install gasket-dkms" not in path.read_text(), path


@pytest.mark.parametrize("product", [DFU_ID, USB_ID])
def test_a_stick_is_known_by_the_same_ids(host: Host, product: tuple[str, str]) -> None:
    host.stick(*product)
    assert host.run("list", script="scripts/devices.sh").text == "USB 2-1\n"
    assert [device.id for device in discovery.edgetpus(host.root)] == ["usb:2-1"]


def test_a_card_is_known_by_the_same_ids(host: Host) -> None:
    vendor, device = PCI_ID
    host.card("0000:03:00.0", vendor=vendor, device=device)
    assert host.run("list", script="scripts/devices.sh").text == "PCIe 0000:03:00.0\n"
    assert [each.id for each in discovery.edgetpus(host.root)] == ["pci:0000:03:00.0"]


def test_the_udev_rules_are_for_these_ids() -> None:
    rules = {path.name: path.read_text() for path in (ROOT / "host-setup/udev").iterdir()}
    cards = re.findall(r'ATTR\{vendor\}=="(\w+)", ATTR\{device\}=="(\w+)"', "".join(rules.values()))
    assert set(cards) == {PCI_ID}
    sticks = re.findall(r'idVendor\}=="(\w+)", ATTR\{idProduct\}=="(\w+)"', "".join(rules.values()))
    assert set(sticks) == {DFU_ID, USB_ID}
    (products,) = re.findall(r'ENV\{PRODUCT\}=="(.*?)"', rules["99-reef-devices.rules"])
    wanted = (f"{int(vendor, 16):x}/{int(product, 16):x}/*" for vendor, product in (DFU_ID, USB_ID))
    assert products == "|".join(wanted)


@pytest.mark.parametrize("flag", discovery.X86_64_V2)
def test_a_processor_without_one_instruction_is_refused_by_both(host: Host, flag: str) -> None:
    others = " ".join(each for each in discovery.X86_64_V2 if each != flag)
    host.write("/proc/cpuinfo", f"flags\t\t: fpu {others} avx2\n")
    assert host.run().check("architecture").startswith(f"bad x86-64 without {flag}:")
    assert discovery.missing_instructions(host.root) == [flag]


def test_a_processor_with_all_of_them_is_taken_by_both(host: Host) -> None:
    host.write("/proc/cpuinfo", f"flags\t\t: fpu {' '.join(discovery.X86_64_V2)}\n")
    assert host.run().check("architecture").startswith("ok ")
    assert discovery.missing_instructions(host.root) == []


@pytest.mark.parametrize(("slower", "verdict"), [(0, "ok"), (1, "warn")])
def test_a_port_of_usb_3_begins_at_the_same_speed(host: Host, slower: int, verdict: str) -> None:
    speed = telemetry.USB3_MBITS - slower
    host.stick(*USB_ID, speed=str(speed))
    assert host.run().check("usb speed").startswith(f"{verdict} ")
    (stick,) = discovery.edgetpus(host.root)
    checks = {each.check for each in telemetry.look(stick, host.root).findings}
    assert ("usb2" in checks) == (verdict == "warn")


@pytest.mark.parametrize("driver", [*discovery.GUEST_DRIVERS, "uio_pci_generic", "apex"])
def test_a_card_that_another_driver_has_is_told_by_both(host: Host, driver: str) -> None:
    host.card()
    (host.root / "sys/bus/pci/devices/0000:03:00.0/driver").symlink_to(f"../../drivers/{driver}")
    taken = driver != discovery.PCI_DRIVER
    assert (f"held by the driver {driver}" in host.run().text) is taken
    (device,) = discovery.edgetpus(host.root)
    assert (driver in device.problem) is taken


def test_the_docker_from_which_on_threads_start_is_the_same(host: Host) -> None:
    host.note("docker-info", f"{system.DOCKER_WITH_THREADS}|[]\n")
    assert host.run().check("docker") == f"ok {system.DOCKER_WITH_THREADS}"
    *others, last = system.DOCKER_WITH_THREADS.split(".")
    host.note("docker-info", f"{'.'.join(others)}.{int(last) - 1}|[]\n")
    assert host.run().check("docker").startswith("warn ")
    document = (ROOT / "docs/host-setup.md").read_text()
    assert f"Before Docker {system.DOCKER_WITH_THREADS}," in document


def test_drivers_of_virtual_machines_are_named_by_the_shell_too() -> None:
    (named,) = re.findall(r'"(.*) hold it for a virtual machine', CHECKS)
    for driver in discovery.GUEST_DRIVERS:
        assert driver.removeprefix("xen-") in named
