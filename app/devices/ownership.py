"""Whether another program has an Edge TPU open, as sysfs tells. Nothing here opens a device.

Reef's own processes keep each other off a device with a lock file; others know nothing of it. And
a second open of a stick resets it, which aborts whoever has it.
"""

from pathlib import Path

from app.devices import sysfs

CLAIMED = "usbfs"  # the kernel's driver of an interface that a program has claimed


def owner(bus: str, node: str, root: Path = Path("/")) -> str:
    """Who has a device, in words; empty if nobody has, or nothing tells.

    `node`: `apex_0`, or a stick's port, `2-1`.
    """
    match bus:
        case "usb":
            interface = root / "sys/bus/usb/devices" / node / f"{node}:1.0"
            claimed = sysfs.target(interface / "driver") == CLAIMED
            return "another program" if claimed else ""
        case "pci":
            card = root / "sys/class/apex" / node
            pid = sysfs.number(card / "device_owner")
            if sysfs.number(card / "is_device_owned") and pid is not None:
                return f"another program (process {pid} of the host)"
    return ""
