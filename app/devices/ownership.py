"""Whether another program has an Edge TPU open, as sysfs tells. Nothing here opens a device.

Reef's own processes keep each other off a device with a lock file; others know nothing of it. And
a second open of a stick resets it, which aborts whoever has it.
"""

from pathlib import Path

CLAIMED = "usbfs"  # the kernel's driver of an interface that a program has claimed


def owner(bus: str, node: str, root: Path = Path("/")) -> str:
    """Who has a device, in words; empty if nobody has, or nothing tells.

    `node`: `apex_0`, or a stick's port, `2-1`.
    """
    match bus:
        case "usb":
            return _stick_owner(root / "sys/bus/usb/devices" / node)
        case "pci":
            return _card_owner(root / "sys/class/apex" / node)
    return ""


def _stick_owner(stick: Path) -> str:
    try:
        claimed = (stick / f"{stick.name}:1.0/driver").readlink().name == CLAIMED
    except OSError:
        return ""
    return "another program" if claimed else ""


def _card_owner(card: Path) -> str:
    try:
        if int((card / "is_device_owned").read_text()) == 0:
            return ""
        return f"another program (process {int((card / 'device_owner').read_text())} of the host)"
    except (OSError, ValueError):
        return ""
