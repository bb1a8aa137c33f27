"""What libedgetpu, its driver and the kernel say when they fail, in words that help. Pure.

libedgetpu gives one empty error for a dozen causes; the true one is only on its stderr. The texts
matched here are quoted in the issues of google-coral/edgetpu and blakeblackshear/frigate.
"""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Stage = Literal["", "lock", "library", "device", "model", "ready"]
"""How far a device process has come: what it was doing when it failed."""

WRONG_LIBRARY = (
    "libedgetpu was built for another TensorFlow Lite and crashed it; use the rebuild "
    "16.0tf2.19.1-1 and not Google's package of 2021"
)
OLD_CPU = (
    "this CPU lacks instructions that TensorFlow Lite needs (x86-64-v2: SSE4.2 and POPCNT); in a "
    "virtual machine, set the CPU type to `host`"
)
UNSIGNED_DRIVER = (
    "Secure Boot refuses the driver; enrol its key (`mokutil --import /var/lib/dkms/mok.pub`, "
    "then reboot), or switch Secure Boot off"
)
NO_DEVICE = (
    "libedgetpu found no such device; a container needs its node (compose.pcie.yaml, or "
    "compose.usb.yaml for USB), and a stick must not belong to another program"
)


@dataclass(frozen=True)
class Cause:
    """A known trouble. `says` is the cause and what to do, in one sentence."""

    key: str
    pattern: re.Pattern[str]
    says: str


def _cause(key: str, pattern: str, says: str) -> Cause:
    return Cause(key, re.compile(pattern), says)


CAUSES = (
    # ------------------------------------------------ opening a device
    _cause(
        "no_library",
        r"libedgetpu\S*: cannot open shared object file",
        "libedgetpu is not installed; the container image brings it, elsewhere install "
        "libedgetpu1-std 16.0tf2.19.1-1 or name the file in REEF_LIBEDGETPU",
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
        "not_delegated",
        r"unresolved custom op: edgetpu-custom-op",
        "the model is compiled for the Edge TPU, but libedgetpu did not take it; it was compiled "
        "for another runtime",
    ),
    _cause(
        "permission",
        r"Permission denied",
        "no permission to open it; add the server to the node's group (group_add in compose), or "
        "install Reef's udev rules on the host",
    ),
    _cause(
        "page_table",
        r"Could not partition page table|entry \d+ is not free",
        "the card's page table is still held by another process, or its interrupts don't work "
        "(Raspberry Pi 5: dtoverlay=pcie-32bit-dma-pi5); stop the other process, or reboot",
    ),
    _cause(
        "busy",
        r"Operation not permitted|Device or resource busy|opening a node held by",
        "another process has it, or the container was not given the right to it; an Edge TPU "
        "serves one process at a time: stop the other one (`reef doctor` names it)",
    ),
    _cause(
        "dead_node",
        r"No such device or address",
        "its node has no driver behind it; reload the driver on the host (`modprobe apex`), or "
        "reboot",
    ),
    _cause(
        "no_node",
        r"Failed to stat /dev/apex_\d+",
        "its node is not in this container; give it (compose.pcie.yaml), under the name that the "
        "host has for it",
    ),
    # ------------------------------------------------ at work
    _cause(
        "hib_error",
        r"HIB Error",
        "the card met a DMA or page fault and will not answer again; if it comes back often, load "
        "the driver with gasket.dma_bit_mask=32, or try pcie_aspm=off",
    ),
    _cause(
        "usb_power",
        r"(?:USB transfer error 2|Deadline exceeded).*(?:DataOut|Callback)|USB transfer error 2\b",
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
        r"|GCB did not leave reset|Error in device open cb: -110",
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


def known(lines: Iterable[str], causes: Sequence[Cause] = CAUSES) -> Cause | None:
    """The first known trouble, in the order above, that one of these lines tells of."""
    said = list(lines)
    return next((each for each in causes if any(map(each.pattern.search, said))), None)


def why_not_loaded(stage: Stage, error: str, words: Sequence[str], on_edgetpu: bool) -> str:
    """Why a device process could not load, from its error and what libedgetpu wrote."""
    if on_edgetpu and stage in ("library", "device", "model"):
        if cause := known([error]) or known(words):
            return f"can't be used: {cause.says} ({_short(error, words)})"
        if stage == "device":
            return f"can't be used: {NO_DEVICE} ({_short(error, words)})"
    return f"can't load the model: {error}"


ROUTINE = "INFO: "  # what TensorFlow Lite says when all is well


def why_ended(stage: Stage, status: int | None, words: Sequence[str], on_edgetpu: bool) -> str:
    """How a device process ended, and why: `status` is as subprocess gives it, None unknown."""
    if status is None:
        how = "closed its socket"
    elif status < 0:
        names = {each.value: each.name for each in signal.Signals}
        how = f"was killed by {names.get(-status, f'signal {-status}')}"
    else:
        how = f"ended with status {status}"
    cause = known(words)
    crashed = status in (-signal.SIGSEGV, -signal.SIGABRT)
    if status == -signal.SIGILL:
        why = f": {OLD_CPU}"
    elif cause:
        why = f": {cause.says}"
    elif on_edgetpu and stage == "model" and crashed:
        why = f": {WRONG_LIBRARY}"
    else:
        why = ""
    if said := " | ".join([each for each in words if not each.startswith(ROUTINE)][-3:]):
        why += f" ({said})" if why else f": {said}"
    return f"its process {how}{why}"


def _short(error: str, words: Sequence[str]) -> str:
    """The raw texts, for whoever searches the web for them."""
    said = " | ".join(words[-2:]) or " ".join(error.split())
    return said[-300:]
