"""How the real libedgetpu fails, as the stand-in plays it, and what Reef then says: one table."""

from dataclasses import dataclass
from typing import Literal

Bus = Literal["pci", "usb"]


@dataclass(frozen=True)
class Failure:
    """`behaviour` is the stand-in's, see libedgetpu.c; `says` and `quotes` are parts of what Reef
    says: the cause in words that help, and the library's own."""

    behaviour: str
    bus: Bus
    says: str
    quotes: str = ""

    @property
    def key(self) -> str:
        """Whose behaviour it is."""
        return {"pci": "apex_0", "usb": "2-1"}[self.bus]

    def __str__(self) -> str:
        return f"{self.bus} {self.behaviour}"


OPENING = [
    Failure("create=permission", "pci", "no permission to open it", "-1 (Permission denied)"),
    Failure("create=busy", "pci", "another process has it", "-1 (Operation not permitted)"),
    Failure("create=dead", "pci", "its node has no driver behind it", "No such device or address"),
    Failure("create=removed", "pci", "taken from its bus while its node stayed", "No such device"),
    Failure("create=io_error", "pci", "the driver can't reach the card", "Input/output error"),
    Failure(
        "create=reset_timeout", "pci", "the chip does not answer its driver", "Connection timed out"
    ),
    Failure("create=off_bus", "pci", "the card fell off its bus", "status = ffffffffffffffff"),
    Failure("create=hib", "pci", "met a DMA or page fault", "HIB Error. hib_error_status = 0000"),
    Failure("create=page_table", "pci", "page table is still held", "Could not partition page tab"),
    Failure("create=coherent", "pci", "no coherent memory", "Could not enable coherent allocator"),
    Failure("create=eventfd", "pci", "event files", "Setting Event Fd Failed : 8"),
    Failure("create=map", "pci", "could not give the card access to memory", "Could not map pages"),
    Failure("create=missing", "pci", "its node is not in this container", "Failed to stat /dev/ap"),
    Failure("create=unlisted", "pci", "libedgetpu lists no such card", "lists nothing on pci"),
    Failure("create=fail", "pci", "a reason that Reef does not know", "can't open /dev/apex_0"),
    Failure("create=newer", "pci", "compiled for a newer Edge TPU runtime", "runtime version (15)"),
    Failure("create=unprepared", "pci", "libedgetpu refuses the model", "Executable is corrupt"),
    Failure("create=segv", "pci", "was killed by SIGSEGV"),
    Failure("create=unlisted", "usb", "libedgetpu lists no such stick", "lists nothing on usb"),
    Failure(
        "create=usb_permission", "usb", "no permission to open it", "USB error -3 [OpenDevice]"
    ),
    Failure("create=usb_busy", "usb", "another program has claimed the stick", "USB error -6"),
    Failure("create=usb_stall", "usb", "refuses to tell what it is", "USB error -9 [GetDevice"),
    Failure("create=usb_other", "usb", "can't be opened over USB", "USB error -1 [OpenDevice]"),
    Failure("create=abort", "usb", "the stick was reset or pulled", "USB transfer error 5"),
    Failure("invoke=fail", "pci", "failed its self-test", "(EdgeTpuDelegateForCustomOp) failed"),
    Failure("invoke=map", "pci", "could not give the card access to memory", "Could not map pages"),
]
"""A device that never becomes ready."""

AT_WORK = [
    Failure("invoke=hang", "pci", "hung in an inference for more than 0.5 s"),
    Failure("invoke=spin", "pci", "hung in an inference for more than 0.5 s"),
    Failure("invoke=hib", "pci", "hung in an inference for more than 0.5 s: the card met a DMA or "
            "page fault", "hib_first_error_status = 0000000000000200"),
    Failure("invoke=off_bus", "pci", "hung in an inference for more than 0.5 s: the card fell off "
            "its bus", "hib_error_status = ffffffffffffffff"),
    Failure("invoke=spurious", "pci", "libedgetpu and the chip disagree", "No active request"),
    Failure("invoke=unmap", "pci", "could not give the card access to memory", "Could not unmap"),
    Failure("invoke=fail", "pci", "failed 3 times", "Failed to execute request."),
    Failure("invoke=map", "pci", "could not give the card access to memory", "failed 3 times"),
    Failure("invoke=segv", "pci", "its process was killed by SIGSEGV"),
    Failure("invoke=kill", "pci", "its process was killed by SIGKILL"),
    Failure("invoke=usb_gone", "usb", "the stick was reset or pulled", "USB transfer error 5"),
    Failure("invoke=usb_link", "usb", "the USB link fails", "bulk out for header failed"),
    Failure("invoke=usb_power", "usb", "stopped taking data, which is mostly power", "on tag 1"),
    Failure("invoke=usb_hib", "usb", "the stick met a fault inside its chip", "CheckHibError()"),
    Failure("invoke=usb_memory", "usb", "usbfs_memory_mb", "USB error -11 [AsyncBulkOut"),
    Failure("invoke=usb_held", "usb", "hung in an inference for more than 0.5 s: the stick was "
            "reset or pulled", "USB transfer error 5"),
]  # fmt: skip
"""A device that fails once it is at work."""
