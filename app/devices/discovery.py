"""Which devices this host has, told from what the kernel shows: no device is ever opened here."""

import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.advice import HERE
from app.devices import sysfs
from app.errors import SettingsError
from app.manifest import Kind

Bus = Literal["cpu", "pci", "usb"]
MayOpen = Callable[[Path], bool]

MAX_USEFUL_THREADS = 4
"""TensorFlow Lite's small detectors gain little beyond four threads."""

X86_64_V2 = ("cx16", "popcnt", "sse4_1", "sse4_2", "ssse3")

PCI_ID = ("0x1ac1", "0x089a")
DFU_ID = ("1a6e", "089a")
"""A USB stick whose firmware is not loaded; libedgetpu loads it when it opens the stick."""
USB_ID = ("18d1", "9302")
MISTAKEN_NODES = (
    "`docker run --volume` makes a folder where there is none, LXC's `create=file` an empty file"
)
UNIQUE_ID = re.compile(r"[0-9a-f]{32}")
PCI_DRIVER = "apex"
DRIVER_REMEDY = "sudo host-setup/host-setup.sh install --pcie"
"""What brings the driver of cards, for a new kernel too; the script itself says the same."""
NO_DRIVER = f"has no driver: on the host, run `{DRIVER_REMEDY}`"
GUEST_DRIVERS = ("vfio-pci", "pci-stub", "pciback", "xen-pciback")
"""What holds a PCI device for a virtual machine."""
LINK_SPEED = re.compile(r"\d+(\.\d+)? GT/s")
LINK_WIDTHS = ("1", "2", "4", "8", "12", "16", "32")
"""A link that the kernel can't see, as in a virtual machine, has 0, 63 or 255 lanes."""


@dataclass(frozen=True)
class Device:
    """Something that runs models. `id` stays the same for as long as the hardware does."""

    id: str
    kind: Kind
    about: str
    lock: str
    """Name of its lock file: two processes that name the same one never hold it together."""
    threads: int = 1
    """Threads of one inference; it matters on the CPU only."""
    bus: Bus = "cpu"
    node: str = ""
    """An Edge TPU's last name in sysfs and in libedgetpu's list: `apex_0`, or `2-1` on USB."""
    unique_id: str = ""
    """Of a card: its own number, wherever it is plugged in."""
    problem: str = ""
    """Why it can't be opened as things are, in words; empty when it can."""


@dataclass(frozen=True)
class Choice:
    """What REEF_DEVICES asks for."""

    words: tuple[str, ...] = ("auto",)

    @property
    def asks_for_edgetpu(self) -> bool:
        """Whether it names Edge TPUs, so that the CPU alone is not what was asked for."""
        return any(word not in ("auto", "cpu") for word in self.words)

    @property
    def only_cpu(self) -> bool:
        """Whether Edge TPUs are to be left alone."""
        return self.words == ("cpu",)

    def takes(self, device: Device) -> bool:
        """Whether an Edge TPU is among those asked for."""
        names = {"auto", device.bus, device.id, device.node, device.unique_id}
        return bool(names & set(self.words))


def choose(words: Sequence[str]) -> Choice:
    """What REEF_DEVICES says. Raises SettingsError for a word that names no device."""
    for word in words:
        known = word in ("auto", "cpu", "pci", "usb") or UNIQUE_ID.fullmatch(word)
        if not known and not re.fullmatch(r"pci:\S+|usb:\d+-[\d.]+|apex_\d+", word):
            raise SettingsError(
                "REEF_DEVICES: takes auto, cpu, pci, usb, or devices with commas between, as in "
                f"pci:0000:03:00.0 or usb:2-1, not {word[:40]!r}; "
                f"`{HERE.command('doctor')}` lists them"
            )
    if "auto" in words and len(words) > 1:
        raise SettingsError("REEF_DEVICES: auto takes every device; name nothing beside it")
    return Choice(tuple(words) or ("auto",))


def discover(
    address: str,
    cpu_threads: int = 0,
    root: Path = Path("/"),
    choice: Choice = Choice(),
) -> list[Device]:
    """The devices to serve from, for the server at `address`, those of PCIe first.

    `cpu_threads` 0 takes every core that this process may use. Servers may share the CPU, so each
    has a lock of its own there. The CPU is always among them: whether it is needed, the pool knows.
    """
    found = [] if choice.only_cpu else [each for each in edgetpus(root) if choice.takes(each)]
    return [*found, cpu(address, cpu_threads, root)]


def cpu(address: str, cpu_threads: int = 0, root: Path = Path("/")) -> Device:
    """The CPU as a device."""
    cores = available_cores(root)
    threads = cpu_threads or min(cores, MAX_USEFUL_THREADS)
    about = f"{cpu_name(root)}, {threads} of {cores} cores"
    return Device("cpu", "cpu", about, f"cpu-{address}", threads)


# ---------------------------------------------------------------------------- Edge TPUs


def may_open(node: Path) -> bool:
    """Whether this process may read and write a device's node, as libedgetpu does."""
    return os.access(node, os.R_OK | os.W_OK)


def edgetpus(root: Path = Path("/"), may_open: MayOpen = may_open) -> list[Device]:
    """Every Edge TPU that the kernel knows, those that can't be used too."""
    return [*_on_pci(root, may_open), *_on_usb(root, may_open)]


def on_bus(device: Device, root: Path = Path("/")) -> bool:
    """Whether an Edge TPU is there at this moment; a CPU always is."""
    match device.bus:
        case "usb":
            return sysfs.there(root / "sys/bus/usb/devices" / device.node)
        case "pci":
            address = device.id.removeprefix("pci:")
            node = bool(device.node) and sysfs.there(root / "sys/class/apex" / device.node)
            return node or sysfs.there(root / "sys/bus/pci/devices" / address)
    return True


def _on_pci(root: Path, may_open: MayOpen) -> list[Device]:
    nodes: dict[str, str] = {}  # PCI address → apex_N
    for entry in sysfs.entries(root / "sys/class/apex"):
        if entry.name.startswith("apex_"):
            address = sysfs.target(entry / "device") or sysfs.read(entry / "pci_address")
            nodes[address or entry.name] = entry.name
    cards = [
        entry
        for entry in sysfs.entries(root / "sys/bus/pci/devices")
        if (sysfs.read(entry / "vendor"), sysfs.read(entry / "device")) == PCI_ID
    ]
    addresses = [card.name for card in cards]
    addresses += [address for address in nodes if address not in addresses]
    return [_card(root, address, nodes.get(address, ""), may_open) for address in addresses]


def _card(root: Path, address: str, node: str, may_open: MayOpen) -> Device:
    pci = root / "sys/bus/pci/devices" / address
    about = "Edge TPU on PCIe"
    if node:
        about += f", /dev/{node}"
    if link := pci_link(pci, "current"):
        about += f", {link}"
    return Device(
        id=f"pci:{address}",
        kind="edgetpu",
        about=about,
        lock=f"pci-{address}",
        bus="pci",
        node=node,
        unique_id=sysfs.read(root / "sys/class/apex" / node / "unique_id") if node else "",
        problem=_card_problem(root, pci, node, may_open),
    )


def pci_link(pci: Path, which: Literal["current", "max"]) -> str:
    """A card's link as `5.0 GT/s x1`; empty where the kernel doesn't know it."""
    speed = sysfs.read(pci / f"{which}_link_speed").removesuffix(" PCIe")
    width = sysfs.read(pci / f"{which}_link_width")
    return f"{speed} x{width}" if LINK_SPEED.fullmatch(speed) and width in LINK_WIDTHS else ""


def other_driver(pci: Path) -> str:
    """The name of a driver that has the card and is not the Edge TPU's; empty when none has."""
    driver = sysfs.target(pci / "driver")
    return "" if driver == PCI_DRIVER else driver


def _card_problem(root: Path, pci: Path, node: str, may_open: MayOpen) -> str:
    if driver := other_driver(pci):
        if driver in GUEST_DRIVERS:
            return (
                f"is held for a virtual machine by the host's driver {driver}: run Reef in that "
                "machine, or take the card from it and start the host again"
            )
        return (
            f"is held by the driver {driver}, which is not the Edge TPU's: unbind it on the host "
            f"(`echo {pci.name} | sudo tee /sys/bus/pci/devices/{pci.name}/driver/unbind`), then "
            f"run `{DRIVER_REMEDY}`"
        )
    if not node:
        if not sysfs.there(root / "sys/module/apex"):
            return NO_DRIVER
        return (
            "was not accepted by its driver: `dmesg | grep -i apex` on the host tells why; power "
            "the computer off and on, or try another slot"
        )
    how = "needs it given, as compose.pcie.yaml does"
    return _node_problem(root, f"/dev/{node}", how, may_open)


def _on_usb(root: Path, may_open: MayOpen) -> list[Device]:
    sticks = []
    for entry in sysfs.entries(root / "sys/bus/usb/devices"):
        product = (sysfs.read(entry / "idVendor"), sysfs.read(entry / "idProduct"))
        if product in (DFU_ID, USB_ID):
            sticks.append(_stick(root, entry, product == DFU_ID, may_open))
    return sticks


def _stick(root: Path, entry: Path, waits: bool, may_open: MayOpen) -> Device:
    speed = sysfs.read(entry / "speed")
    about = f"Edge TPU on USB, port {entry.name}"
    if speed:
        about += f", {speed} Mbit/s"
    if waits:
        about += ", its firmware not loaded yet"
    bus, number = sysfs.number(entry / "busnum"), sysfs.number(entry / "devnum")
    problem = ""
    if bus is not None and number is not None:  # else it is just leaving, or coming
        how = "needs the whole bus, as compose.usb.yaml gives it"
        problem = _node_problem(root, f"/dev/bus/usb/{bus:03d}/{number:03d}", how, may_open)
    return Device(
        id=f"usb:{entry.name}",
        kind="edgetpu",
        about=about,
        lock=f"usb-{entry.name}",
        bus="usb",
        node=entry.name,
        problem=problem,
    )


def _node_problem(root: Path, name: str, how: str, may_open: MayOpen) -> str:
    """Why a device node can't be opened; `how` a container gets it. Empty when it can."""
    path = root / name[1:]
    if not sysfs.there(path):
        return f"has no node {name} here: a container {how}"
    if mistaken := _mistaken(path):
        return (
            f"can't be opened, because {name} is {mistaken} here and no device node: give the "
            f"container the host's node while the host has it ({MISTAKEN_NODES})"
        )
    if may_open(path):
        return ""
    try:
        group = f"group {path.stat().st_gid}"
    except OSError:
        group = "its group"
    return (
        f"may not be opened by user {os.geteuid()}: {name} belongs to {group}; add the server to "
        "it (group_add in compose, or usermod), or install Reef's udev rules on the host"
    )


def _mistaken(node: Path) -> str:
    """What something that should be a device node is instead; empty when it is one."""
    try:
        mode = node.stat().st_mode
    except FileNotFoundError:
        return "a broken link"
    except OSError:
        return ""  # it may be one
    if stat.S_ISCHR(mode):
        return ""
    return {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}.get(
        stat.S_IFMT(mode), "something else"
    )


# ---------------------------------------------------------------------------- the CPU


def cpu_name(root: Path = Path("/")) -> str:
    """The processor as its maker calls it, or its architecture."""
    for path, field in (("proc/cpuinfo", "model name"), ("proc/device-tree/model", "")):
        try:
            lines = (root / path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(field):
                return line.partition(":")[2].strip() if field else line.strip("\0 ")
    return os.uname().machine


def missing_instructions(root: Path = Path("/")) -> list[str]:
    """What TensorFlow Lite needs and an x86-64 processor lacks, as /proc/cpuinfo calls it."""
    lines = sysfs.read(root / "proc/cpuinfo").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return [flag for flag in X86_64_V2 if flags and flag not in flags]


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its affinity, and its container's CPU quota rounded up."""
    allowed = len(os.sched_getaffinity(0))
    for path in ("sys/fs/cgroup/cpu.max", "sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        try:
            quota, *period = (root / path).read_text().split()
            period = period or [(root / path).with_name("cpu.cfs_period_us").read_text()]
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return max(1, min(allowed, math.ceil(int(quota) / int(period[0]))))
    return allowed
