"""What libedgetpu, its driver and the kernel say when they fail, in words that help. Pure.

libedgetpu gives one empty error for a dozen causes; the true one is only on its stderr. The texts
matched here are in its sources and gasket's, or quoted in the issues of google-coral/edgetpu and
blakeblackshear/frigate.
"""

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from app.advice import HERE
from app.devices.discovery import Bus

Stage = Literal["", "lock", "library", "device", "model", "ready"]
"""How far a device process has come: what it was doing when it failed."""

WRONG_LIBRARY = (
    "libedgetpu was built for another TensorFlow Lite and crashed it; use the rebuild "
    "16.0tf2.19.1-1 and not Google's package of 2021"
)
QUOTED = 240  # characters of a line
OLD_CPU = (
    "this CPU lacks instructions that TensorFlow Lite needs (x86-64-v2: SSE4.2 and POPCNT); in a "
    "virtual machine, set the CPU type to `host`"
)
UNSIGNED_DRIVER = (
    "Secure Boot refuses the driver; enrol its key (`mokutil --import /var/lib/dkms/mok.pub`, "
    "then reboot), or switch Secure Boot off"
)
NOT_LISTED: Mapping[Bus, str] = {
    "pci": (
        "libedgetpu lists no such card; a container needs its node (compose.pcie.yaml), under the "
        "name that the host has for it"
    ),
    "usb": "libedgetpu lists no such stick; a container needs /dev/bus/usb (compose.usb.yaml)",
}
NOT_OPENED = "libedgetpu can't open it, for a reason that Reef does not know"
SLOW_OPENING: Mapping[Bus, str] = {
    "pci": (
        "a chip that does not answer keeps libedgetpu waiting without a word; power the computer "
        "off and on (a reboot is often not enough), and check cooling and slot"
    ),
    "usb": "pull the stick and plug it in again, into another port if it goes on",
}
NEEDS_MAX = (
    "for REEF_USB_PERFORMANCE=max, libedgetpu must be the variant `max`, and this one is `std`; "
    "LIBEDGETPU_VARIANT=max builds an image with it"
)


@dataclass(frozen=True)
class Cause:
    """A known trouble. `says` is the cause and what to do, in one sentence; `bus` is where the
    text means that, if it means something else elsewhere."""

    key: str
    pattern: re.Pattern[str]
    says: str
    bus: Bus | None = None


def _cause(key: str, pattern: str, says: str, bus: Bus | None = None) -> Cause:
    return Cause(key, re.compile(pattern), says, bus)


CAUSES = (
    # ------------------------------------------------ the library and the model
    _cause(
        "no_library",
        r"libedgetpu\S*: cannot open shared object file",
        "libedgetpu is not installed; an image that is built with a network has it (make up), "
        "elsewhere install libedgetpu1-std 16.0tf2.19.1-1 or name the file in REEF_LIBEDGETPU",
    ),
    _cause(
        "library_incomplete",
        r"cannot open shared object file|undefined symbol|version `\S+' not found|invalid ELF",
        "libedgetpu can't be loaded, because it or something that it needs (libusb-1.0) is missing "
        "or made for another system; install the package for this one",
    ),
    _cause(
        "newer_model",
        r"Package requires runtime version \(\d+\), which is newer than this runtime",
        "the model was compiled for a newer Edge TPU runtime than this libedgetpu has; compile it "
        "with `edgetpu_compiler --min_runtime_version 14`, or install a newer libedgetpu",
    ),
    _cause(
        "refused_model",
        r"Failed to prepare for TPU",
        "libedgetpu refuses the model; check that its file is whole, or compile it again",
    ),
    _cause(
        "not_delegated",
        r"unresolved custom op: edgetpu-custom-op",
        "the model is compiled for the Edge TPU, but libedgetpu did not take it; it was compiled "
        "for another runtime",
    ),
    # ------------------------------------------------ a card, at its opening or at work
    _cause(
        "off_the_bus",
        r"hib_error_status = f{16}",
        "the card fell off its bus: all of its registers read as ones; stop Reef, power the "
        "computer off and on, and check the card's seat, power and cooling",
        "pci",
    ),
    _cause(
        "hib_error",
        r"HIB Error",
        "the card met a DMA or page fault and will not answer again; if it comes back often, load "
        "the driver with gasket.dma_bit_mask=32, or try pcie_aspm=off",
        "pci",
    ),
    _cause(
        "usb_hib_error",
        r"HIB Error",
        "the stick met a fault inside its chip; if it comes back often, check its power and "
        "cooling, and try another stick",
        "usb",
    ),
    _cause(
        "unmapped",
        r"Could not (?:un)?map pages",
        "the driver could not give the card access to memory; a second process at the card (which "
        "a privileged container makes possible) does this, and want of memory",
    ),
    _cause(
        "unexpected_state",
        r"Non-OK-status",
        "libedgetpu and the chip disagree on what was done, so it ended itself; if it comes back "
        "often, update the driver, and try pcie_aspm=off",
        "pci",
    ),
    _cause(
        "page_table",
        r"Could not partition page table|entry \d+ is not free",
        "the card's page table is still held by another process, or its interrupts don't work "
        "(Raspberry Pi 5: dtoverlay=pcie-32bit-dma-pi5); stop the other process, or reboot",
    ),
    _cause(
        "coherent_memory",
        r"Could not enable coherent allocator|CoherentAllocator Could not mmap",
        "the kernel had no coherent memory for the card; stop any other process that has the card, "
        "free memory, or reboot",
    ),
    _cause(
        "eventfd",
        r"Setting Event Fd Failed",
        "the driver did not take libedgetpu's event files, so no interrupt would arrive; update "
        "the driver (gasket-dkms), and reboot",
    ),
    # ------------------------------------------------ a stick, at its opening
    _cause(
        "usb_busy",
        r"USB error -6\b",
        "another program has claimed the stick, and a stick serves one at a time; stop the other "
        "program",
    ),
    _cause(
        "usb_stall",
        r"USB error -9\b",
        "the stick refuses to tell what it is, which mostly is a transfer that was cut off; pull "
        "it and plug it in again",
    ),
    _cause(
        "usb_memory",
        r"USB error -11\b",
        "the kernel's memory for USB transfers is used up; give it more on the host (usbcore."
        "usbfs_memory_mb=128), above all with four sticks or more",
    ),
    _cause(
        "permission",
        r"\(Permission denied\)|USB error -3\b|: Permission denied",
        "no permission to open it; add the server to the node's group (group_add in compose), or "
        "install Reef's udev rules on the host",
    ),
    _cause(
        "usb_unopened",
        r"USB error -\d+",
        "the stick can't be opened over USB; try another port, without a hub, and another cable",
    ),
    # ------------------------------------------------ a card's node
    _cause(
        "busy",
        r"Operation not permitted|Device or resource busy|opening a node held by",
        "another process has it, or the container was not given the right to it; an Edge TPU "
        f"serves one process at a time: stop the other one (`{HERE.command('doctor')}` names it)",
    ),
    _cause(
        "dead_node",
        r"\(No such device or address\)",
        "its node has no driver behind it; reload the driver on the host (`modprobe apex`), or "
        "reboot",
    ),
    _cause(
        "removed",
        r"\(No such device\)",
        "the card was taken from its bus while its node stayed; rescan the bus, or reboot",
    ),
    _cause(
        "io_error",
        r"\(Input/output error\)",
        "the driver can't reach the card (input/output error); power the computer off and on, and "
        "check the card's seat and slot",
    ),
    _cause(
        "no_node",
        r"Failed to stat /dev/apex_\d+|-1 \(No such file or directory\)",
        "its node is not in this container; give it (compose.pcie.yaml), under the name that the "
        "host has for it",
    ),
    # ------------------------------------------------ a stick, at work
    _cause(
        "usb_power",
        r"^F .*(?:Deadline exceeded|USB transfer error 2\b)",
        "the stick stopped taking data, which is mostly power or the cable; use the cable that "
        "came with it and a port, or a powered hub, that gives 900 mA",
    ),
    _cause(
        "usb_gone",
        r"USB transfer error 5|LIBUSB_ERROR_NO_DEVICE|transfer in failed\. Not found",
        "the stick was reset or pulled, or a second program opened it; let one program alone use "
        "it, and check port, cable and power",
    ),
    _cause(
        "usb_link",
        r"USB transfer error \d+|bulk out for header failed",
        "the USB link fails; try another port, without a hub, and another cable",
    ),
    # ------------------------------------------------ the kernel's log
    _cause(
        "chip_dead",
        r"RAM did not enable within timeout|DMAs did not quiesce|RAM did not shut down"
        r"|GCB did not leave reset|Error in device open cb: -110|-1 \(Connection timed out\)",
        "the chip does not answer its driver; power the computer off and on (a reboot is often not "
        "enough), and check cooling and slot",
    ),
    _cause(
        "interrupts",
        r"Couldn't initialize interrupts: -524",
        "the card got no interrupts; on a Raspberry Pi 5 set dtoverlay=pciex1-compat-pi5,no-mip "
        "and dtoverlay=pcie-32bit-dma-pi5",
    ),
    _cause(
        "probe_failed",
        r"Page table init timed out|MSI-X table init timed out|apex: probe .* error -110",
        "the driver could not start the card, so there is no /dev/apex_N; power the computer off "
        "and on, reseat the card, or try another slot",
    ),
    _cause(
        "secure_boot",
        r"Key was rejected by service",
        UNSIGNED_DRIVER,
    ),
    _cause(
        "registers_garbage",
        r"Apex performance not throttled due to temperature",
        "the card's registers read as garbage, which comes before it falls off the bus; check its "
        "seat, power and cooling",
    ),
    _cause(
        "usb_resets",
        r"reset (?:SuperSpeed|high-speed) .*USB device",
        "the USB port resets the stick again and again; use another port, a shorter cable, or a "
        "powered hub",
    ),
    _cause("wrong_library", r"free\(\): invalid pointer", WRONG_LIBRARY),
)


CHATTER = re.compile(
    r"I (?!\S+\] Failed )|I \S+\] Failed to stat |E \S+\] \S+ is not a character device"
    r"|W \S+\] Could not set performance expectation|INFO: "
)
"""What explains no failure. At level I, libedgetpu says why it did not open a device, and much
else; it also names each node that is not there, which may be another card's."""

UNLISTED = re.compile(r"libedgetpu lists .*, not (?P<node>\S+)$")  # app.devices.runtime's own words
DROPPED = re.compile(r"Performance expectation level Max is not supported .* Drop to (\w+)")


def known(
    lines: Iterable[str], bus: Bus | None = None, causes: Sequence[Cause] = CAUSES
) -> Cause | None:
    """The first known trouble, in the order above, that one of these lines tells of."""
    said = list(lines)
    here = (each for each in causes if None in (bus, each.bus) or each.bus == bus)
    return next((each for each in here if any(map(each.pattern.search, said))), None)


def why_not_loaded(stage: Stage, error: str, words: Sequence[str], bus: Bus) -> str:
    """Why a device process could not load, from its error and what libedgetpu wrote."""
    if bus == "cpu" or stage not in ("library", "device", "model"):
        return f"can't load the model: {error}"
    if unlisted := UNLISTED.search(error):
        missed = [line for line in words if f"/dev/{unlisted['node']}:" in line]
        cause = known(missed, bus)
        says, quoted = (cause.says, missed) if cause else (NOT_LISTED[bus], [error])
        return f"can't be used: {says} ({_short(quoted)})"
    telling = _telling(words)
    if cause := known([error], bus):
        return f"can't be used: {cause.says} ({_short([error])})"
    if cause := known(telling, bus):
        return f"can't be used: {cause.says} ({_short(telling)})"
    if stage == "device":
        return f"can't be used: {NOT_OPENED} ({_short(telling or [error])})"
    return f"can't load the model: {error}"


def why_left_out(error: str, bus: Bus) -> str:
    """Why a device serves without one of its models."""
    cause = None if bus == "cpu" else known([error], bus)
    return f"{cause.says} ({_short([error])})" if cause else error


def why_ended(stage: Stage, status: int | None, words: Sequence[str], bus: Bus | None) -> str:
    """How a device process ended, and why: `status` is as subprocess gives it, None unknown."""
    if status is None:
        how = "closed its socket"
    elif status < 0:
        names = {each.value: each.name for each in signal.Signals}
        how = f"was killed by {names.get(-status, f'signal {-status}')}"
    else:
        how = f"ended with status {status}"
    what = f"its process {how}"
    crashed = status in (-signal.SIGSEGV, -signal.SIGABRT)
    if status == -signal.SIGILL:
        return _told(what, OLD_CPU, words)
    if bus != "cpu" and stage == "model" and crashed and not known(_telling(words), bus):
        return _told(what, WRONG_LIBRARY, words)
    return why_failed(what, words, bus)


def why_failed(what: str, words: Sequence[str], bus: Bus | None) -> str:
    """What happened to a device process, and why, where that or its last words tell it."""
    cause = None if bus == "cpu" else known([what], bus) or known(_telling(words), bus)
    return _told(what, cause.says if cause else "", words)


def why_slow(what: str, words: Sequence[str], bus: Bus) -> str:
    """Why a device did not open in time."""
    if bus in SLOW_OPENING and not known(_telling(words), bus):
        return _told(what, SLOW_OPENING[bus], words)
    return why_failed(what, words, bus)


def why_not_max(words: Iterable[str]) -> str:
    """Why a stick is slower than REEF_USB_PERFORMANCE=max wants it; empty if it is not."""
    dropped = next(filter(None, map(DROPPED.search, words)), None)
    return f"runs at {dropped[1]}: {NEEDS_MAX}" if dropped else ""


def _telling(words: Iterable[str]) -> list[str]:
    """What may explain a failure."""
    return [each for each in words if not CHATTER.match(each)]


def _told(what: str, why: str, words: Iterable[str]) -> str:
    """What happened, why, and the last words, for whoever searches the web for them."""
    said = _short(_telling(words))
    if why and said:
        return f"{what}: {why} ({said})"
    return ": ".join(filter(None, (what, why, said)))


def _short(lines: Sequence[str]) -> str:
    """The last two lines, with their beginnings, where the cause is."""
    return " | ".join(" ".join(line.split())[:QUOTED] for line in lines[-2:])
