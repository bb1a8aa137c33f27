"""Device nodes of the Edge TPU's numbers, 120 and 189, in a folder that stands in for /dev.

They are real. No driver is behind them, so a program that may open one is told ENXIO or ENODEV, and
a program that may not, EACCES (by the group) or EPERM (by the container's rule on devices).
"""

from pathlib import Path

from tests.container.engine import IMAGE, LABEL, told

APEX, USB = 120, 189
APEX_GID, USB_GID = 54321, 54322
MAY_OPEN = {"ENXIO", "ENODEV", "opened"}

MAKE_NODE = """
import os, sys
path, major, minor, mode, gid = sys.argv[1:]
os.mknod(path, 0o020000, os.makedev(int(major), int(minor)))
os.chmod(path, int(mode, 8)); os.chown(path, 0, int(gid))
"""


class Dev:
    """A folder that stands in for the host's root. The engine makes the nodes, as root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev/bus/usb/002").mkdir(parents=True)
        (root / "etc").mkdir()

    def add(self, path: str, major: int, minor: int, mode: int, gid: int) -> None:
        """A character device."""
        numbers = (str(major), str(minor), f"{mode:o}", str(gid))
        options = ("--rm", "--label", LABEL, "--user", "0:0", "--network", "none")
        mount = ("--volume", f"{self.root}:/host", "--entrypoint", "python3")
        told("run", *options, *mount, IMAGE, "-c", MAKE_NODE, f"/host{path}", *numbers)

    def card(self, number: int) -> None:
        """The node of a card, as the setup's rule makes it."""
        self.add(f"/dev/apex_{number}", APEX, number, 0o660, APEX_GID)

    def stick(self, device: int) -> None:
        """The node of a stick, as the setup's rule makes it, and what sysfs has of it."""
        shown = self.root / "sys/bus/usb/devices/2-1"
        shown.mkdir(parents=True, exist_ok=True)
        files = {"idVendor": "18d1", "idProduct": "9302", "busnum": 2, "devnum": device}
        for name, value in files.items():
            (shown / name).write_text(f"{value}\n")
        self.add(f"/dev/bus/usb/002/{device:03}", USB, 128 + device - 1, 0o664, USB_GID)

    def remove(self, path: str) -> None:
        """A device is gone."""
        (self.root / path.lstrip("/")).unlink()
