"""A host with Edge TPUs that are not there: a tree like the kernel's, and the stand-in libedgetpu.

Both sides read the same tree: Reef finds devices in it (REEF_HOST_ROOT), the library opens them.
Devices appear, vanish and change while both run.
"""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("libedgetpu.c")
COMPILE = ("cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
SONAME = "libedgetpu.so.1"
MARKER = "STANDIN_ROOT"

PCI_SYSFS: Mapping[str, str] = {
    "vendor": "0x1ac1",
    "device": "0x089a",
    "current_link_speed": "5.0 GT/s PCIe",
    "current_link_width": "1",
    "max_link_speed": "5.0 GT/s PCIe",
    "max_link_width": "1",
    "power/control": "on",
    "power/runtime_status": "active",
    "d3cold_allowed": "0",
    "link/l1_aspm": "0",
}
APEX_SYSFS: Mapping[str, str] = {
    "temp": "51300",
    "trip_point0_temp": "84800",
    "trip_point1_temp": "89800",
    "trip_point2_temp": "94800",
    "temp_poll_interval": "5000",
    "hw_temp_warn2": "99800",
    "is_device_owned": "0",
    "device_owner": "0",
    "reset_count": "0",
    "driver_version": "1.2",
    "status": "ALIVE",
}
USB_SYSFS: Mapping[str, str] = {
    "speed": "5000",
    "power/control": "on",
    "power/runtime_status": "active",
    "power/autosuspend_delay_ms": "-1000",
}
CHARACTER_DEVICE = "/dev/null"
"""What stands in for a node: only root can make a real one."""
DFU, LOADED = ("1a6e", "089a"), ("18d1", "9302")


class NoCompiler(Exception):
    """There is no C compiler; the stand-in can't be made."""


@cache
def library(folder: Path, *flags: str) -> Path:
    """The stand-in library, compiled into `folder`. Raises NoCompiler."""
    if shutil.which(COMPILE[0]) is None:
        raise NoCompiler("there is no C compiler: apt-get install gcc libc6-dev")
    made = folder / SONAME
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*COMPILE, *flags, "-o", str(made), str(SOURCE)], check=True)
    return made


@dataclass(frozen=True)
class Event:
    """Something that the stand-in did: `opened`, `closed`, `double-open`, `firmware`, …"""

    seconds: float
    pid: int
    what: str
    key: str


class Host:
    """The tree below `root`, and what the stand-in does there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in (
            "sys/class/apex", "sys/bus/pci/devices", "sys/bus/usb/devices", "sys/module/apex",
            "dev/bus/usb", "control", "owners",
        ):  # fmt: skip
            (root / folder).mkdir(parents=True, exist_ok=True)
        self._bus_numbers = 0

    def environ(self, library: Path) -> dict[str, str]:
        """What a server needs to be told to live on this host."""
        return {
            MARKER: str(self.root),
            "REEF_HOST_ROOT": str(self.root),
            "REEF_LIBEDGETPU": str(library),
        }

    # ------------------------------------------------------------ devices come and go

    def add_pci(self, number: int = 0, address: str = "", **sysfs: str) -> str:
        """A card with its driver: apex_`number`. Returns its identity."""
        address = address or f"0000:{number + 3:02x}:00.0"
        apex = f"apex_{number}"
        pci = self.root / "sys/bus/pci/devices" / address
        self._write(pci, PCI_SYSFS)
        self._write(pci / "apex" / apex, {})
        entry = self.root / "sys/class/apex" / apex
        fresh = entry.with_name(f".{apex}")
        unique = {"unique_id": f"{number + 1:032x}", "pci_address": address}
        self._write(fresh, {**APEX_SYSFS, **unique, **sysfs})
        (fresh / "device").symlink_to(Path("../../../bus/pci/devices") / address)
        (self.root / "dev" / apex).symlink_to(CHARACTER_DEVICE)
        fresh.rename(entry)
        return f"pci:{address}"

    def remove_pci(self, number: int = 0, address: str = "") -> None:
        """The card is gone from the bus: `echo 1 > remove`, or pulled."""
        address = address or f"0000:{number + 3:02x}:00.0"
        self._remove(self.root / "sys/class/apex" / f"apex_{number}")
        (self.root / "dev" / f"apex_{number}").unlink()
        self._remove(self.root / "sys/bus/pci/devices" / address)

    def add_usb(self, port: str = "2-1", product: tuple[str, str] = DFU, **sysfs: str) -> str:
        """A stick at a port, without firmware unless told otherwise. Returns its identity."""
        self._bus_numbers += 1
        number = self._bus_numbers
        entry = self.root / "sys/bus/usb/devices" / port
        fresh = self.root / f"coming-{port}"
        names = {"idVendor": product[0], "idProduct": product[1]}
        bus = port.partition("-")[0]
        where = {"busnum": bus, "devnum": str(number)}
        self._write(fresh, {**USB_SYSFS, **names, **where, **sysfs})
        node = self.root / "dev/bus/usb" / f"{int(bus):03d}" / f"{number:03d}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.symlink_to(CHARACTER_DEVICE)
        fresh.rename(entry)
        return f"usb:{port}"

    def remove_usb(self, port: str = "2-1") -> None:
        """Somebody pulls the stick."""
        self._remove(self.root / "sys/bus/usb/devices" / port)

    def apex(self, number: int = 0, **sysfs: str) -> None:
        """Change what sysfs says of a card."""
        self._write(self.root / "sys/class/apex" / f"apex_{number}", sysfs)

    # ------------------------------------------------------------ what they do

    def behave(self, key: str, how: str) -> None:
        """What a device (`apex_0`, `2-1`, `default`) does from now on; see libedgetpu.c."""
        fresh = self.root / f"control-{key}"
        fresh.write_text(how)
        fresh.replace(self.root / "control" / key)

    def fault_is_over(self, key: str) -> bool:
        """Whether a fault that happens once has happened."""
        return not (self.root / "control" / key).exists()

    @property
    def events(self) -> list[Event]:
        """What the stand-in did, in order."""
        try:
            lines = (self.root / "events").read_text().splitlines()
        except FileNotFoundError:
            return []
        words = (line.split() for line in lines)
        return [Event(float(when), int(pid), what, key) for when, pid, what, key in words]

    def happened(self, what: str) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.events if event.what == what]

    def _write(self, folder: Path, files: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def _remove(self, entry: Path) -> None:
        gone = self.root / f"gone-{entry.name}"
        shutil.rmtree(gone, ignore_errors=True)
        entry.rename(gone)  # at once, as in the kernel
        shutil.rmtree(gone)
