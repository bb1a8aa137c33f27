"""How an Edge TPU is: heat, power, link and owner, as sysfs tells it; and what is wrong with that.

Nothing here opens a device: every figure can be read while the device is busy or dead.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.advice import HERE
from app.devices import sysfs
from app.devices.discovery import DFU_ID, Device, other_driver, pci_link

OFF_THE_BUS = "off_the_bus"
"""The check of a card that no longer answers."""
LOST = (
    f"has fallen off the bus (its registers read as all ones): {HERE.stop} first, because "
    "removing a card that is open makes the kernel use freed memory; then remove and rescan it on "
    "the PCI bus, or power the computer off and on"
)
OFF_THE_BUS_C = -89.7
"""What the driver computes from a register that reads as all ones."""
NO_ANSWER = b"\xff\xff"
"""The vendor of a PCI device that does not answer: what a read of nothing gives."""
DRIVER_STATUS = {  # enum gasket_status of the driver's gasket_constants.h
    "DEAD": "it could not be initialised, or failed since; power the computer off and on",
    "LAMED": "the kernel could not set up a part of it, its interrupts mostly; run "
    "`host-setup/host-setup.sh check`",
}
USB3_MBITS = 5000
SLOWED = 1.8
"""So many times its best latency, and a device was most likely throttled: its clock halves."""
THROTTLED_MOST = 8
"""The driver lowers the clock to an eighth, so that heat explains no more than that."""


@dataclass(frozen=True)
class Telemetry:
    """What sysfs shows of an Edge TPU; None or empty where it shows nothing."""

    temperature_c: float | None = None
    trip_points_c: tuple[float, ...] = ()
    """From these on the driver runs the chip at 1/2, 1/4 and 1/8 of its clock."""
    shutdown_c: float | None = None
    """From here on the chip may be switched off until the next power cycle."""
    off_the_bus: bool = False
    """Its registers, or those of its PCI interface, read as all ones: nothing answers there."""
    driver_status: str = ""
    """`ALIVE`, or what its driver says is the matter: `DEAD`, `LAMED`, `DRIVER_EXITING`."""
    owner: int | None = None
    """The process that has the device open, as the host numbers it."""
    resets: int | None = None
    runtime_status: str = ""
    """`active`, `suspended`, … of the kernel's power management."""
    power_control: str = ""
    """`on`: it is never put to sleep; `auto`: it may be."""
    aspm: str = ""
    """`1` where the PCIe link may go to sleep (L1)."""
    link: str = ""
    """`5.0 GT/s x1`, or `5000 Mbit/s`."""
    link_best: str = ""
    """What card and slot could do."""
    usb_mbits: int | None = None
    firmware_loaded: bool | None = None

    @property
    def throttle_level(self) -> int:
        """How many trip points are reached: 0 full clock, 1 half, 2 a quarter, 3 an eighth."""
        if self.temperature_c is None:
            return 0
        return sum(point <= self.temperature_c for point in self.trip_points_c)


@dataclass(frozen=True)
class Finding:
    """Something wrong: `check` names it for programs, the rest is for people."""

    check: str
    says: str
    """What is the matter and what to do about it, in one sentence."""
    grave: bool = False
    """Whether the device can't be used like this."""


@dataclass(frozen=True)
class Sighting:
    """A device that is there, as it is at this moment."""

    device: Device
    telemetry: Telemetry = Telemetry()
    findings: tuple[Finding, ...] = ()

    @property
    def off_the_bus(self) -> bool:
        """Whether it is a card that nothing can be asked of: it must be left, and not be opened."""
        return self.telemetry.off_the_bus


def look(device: Device, root: Path = Path("/")) -> Sighting:
    """Read the figures of a device and judge them."""
    shown = read(device, root)
    return Sighting(device, shown, tuple(findings(device, shown)))


def read(device: Device, root: Path = Path("/")) -> Telemetry:
    """The figures of an Edge TPU; of a CPU there are none."""
    match device.bus:
        case "pci":
            return _card(device, root)
        case "usb":
            return _stick(root / "sys/bus/usb/devices" / device.node)
    return Telemetry()


def findings(device: Device, shown: Telemetry) -> Iterator[Finding]:
    """What is wrong with an Edge TPU that shows these figures."""
    where = device.id
    if shown.off_the_bus:
        yield Finding(
            OFF_THE_BUS,
            f"{where} {LOST}",
            grave=True,
        )
    elif shown.throttle_level:
        clock = 1 << shown.throttle_level
        yield Finding(
            "hot",
            f"{where} is {shown.temperature_c:.0f} °C hot and runs at 1/{clock} of its clock: "
            "give it a heatsink or more air",
        )
    if not shown.off_the_bus and (matter := DRIVER_STATUS.get(shown.driver_status)):
        yield Finding(
            "driver_status",
            f"{where}'s driver calls it {shown.driver_status}: {matter}; the host's "
            "`sudo dmesg | grep -e apex -e gasket` has the cause",
            grave=True,
        )
    if shown.link_best and shown.link != shown.link_best:
        yield Finding(
            "link_downgraded",
            f"{where}'s link runs at {shown.link} and not at {shown.link_best}: reseat the card, "
            "check its adapter, and set the slot's speed to Auto in the firmware's setup",
        )
    if shown.usb_mbits and shown.usb_mbits < USB3_MBITS and shown.firmware_loaded:
        yield Finding(
            "usb2",
            f"{where} runs at {shown.usb_mbits} Mbit/s, which makes every inference slower: use a "
            "USB 3 port and the cable that came with it",
        )
    if shown.power_control == "auto":
        what = "USB autosuspend" if device.bus == "usb" else "PCIe runtime suspend"
        yield Finding(
            "autosuspend",
            f"{what} may put {where} to sleep, from where it often does not return: write `on` "
            "into its power/control; Reef's udev rules do that",
        )
    if shown.runtime_status == "error":
        yield Finding(
            "power_error",
            f"the kernel could not wake {where}: plug it out and in again, or power the computer "
            "off and on",
            grave=True,
        )
    if shown.aspm == "1":
        yield Finding(
            "aspm",
            f"PCIe power saving (ASPM L1) is on for {where}, which makes some boards lose the "
            "card: boot the host with pcie_aspm=off",
        )


def slowed(device: Device, slowdown: float) -> Finding | None:
    """What its own latency tells of an Edge TPU; a stick shows its heat in no other way."""
    if device.kind != "edgetpu" or slowdown < SLOWED:
        return None
    why = "it is throttled by heat, so cool it, or the computer has too much else to do"
    if slowdown > 1.5 * THROTTLED_MOST:  # its best was measured with the computer's help, too
        why = (
            "heat does no such thing: the computer has too much else to do, or the device fails; "
            "restart Reef, and if it stays so, power the computer off and on"
        )
    return Finding(
        "slowed", f"{device.id} takes {slowdown:.1f} times as long as at its best: {why}"
    )


def _card(device: Device, root: Path) -> Telemetry:
    pci = root / "sys/bus/pci/devices" / device.id.removeprefix("pci:")
    if other_driver(pci):
        return Telemetry()  # how it is, is another's business
    apex = root / "sys/class/apex" / device.node if device.node else root / "nowhere"
    temperature = _celsius(apex / "temp")
    trips = (_celsius(apex / f"trip_point{number}_temp") for number in range(3))
    owner = sysfs.number(apex / "device_owner")
    owned = sysfs.number(apex / "is_device_owned")
    link, best = pci_link(pci, "current"), pci_link(pci, "max")
    return Telemetry(
        temperature_c=temperature,
        trip_points_c=tuple(point for point in trips if point is not None),
        shutdown_c=_celsius(apex / "hw_temp_warn2"),
        off_the_bus=temperature == OFF_THE_BUS_C or not _answers(pci),
        driver_status=sysfs.read(apex / "status"),
        owner=owner if owned else None,
        resets=sysfs.number(apex / "reset_count"),
        runtime_status=sysfs.read(pci / "power/runtime_status"),
        power_control=sysfs.read(pci / "power/control"),
        aspm=sysfs.read(pci / "link/l1_aspm"),
        link=link,
        link_best=best if link else "",
    )


def _answers(pci: Path) -> bool:
    """Whether the card's PCI interface does: `config` is read from it, `vendor` is the kernel's."""
    return sysfs.beginning(pci / "config", len(NO_ANSWER)) != NO_ANSWER


def _stick(entry: Path) -> Telemetry:
    speed = sysfs.number(entry / "speed")
    vendor = sysfs.read(entry / "idVendor")
    return Telemetry(
        runtime_status=sysfs.read(entry / "power/runtime_status"),
        power_control=sysfs.read(entry / "power/control"),
        link=f"{speed} Mbit/s" if speed else "",
        usb_mbits=speed,
        firmware_loaded=vendor != DFU_ID[0] if vendor else None,
    )


def _celsius(path: Path) -> float | None:
    thousandths = sysfs.number(path)
    return None if thousandths is None else thousandths / 1000
