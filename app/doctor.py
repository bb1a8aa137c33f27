"""`reef doctor`: what keeps an Edge TPU from working, each in one sentence with what to do.

It reads what the kernel shows, asks a running server, and loads libedgetpu in a throw-away process
that opens no device: it is safe while devices are at work.
"""

import json
import os
import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from math import inf
from pathlib import Path
from typing import Any, Literal

from app import local, models
from app.advice import HERE
from app.devices import causes, discovery, link, ownership, sysfs, telemetry
from app.devices.discovery import DFU_ID, PCI_ID, USB_ID, Device
from app.devices.status import STARTING
from app.errors import StartError
from app.settings import Settings

Level = Literal["ok", "note", "warning", "error"]

EXIT_STATUS: dict[Level, int] = {"ok": 0, "note": 0, "warning": 10, "error": 20}
"""By the worst finding; others than those of wrong usage and wrong settings."""

CAP_SYS_ADMIN = 1 << 21
PAGE_BYTES = 4096
PROBE_LIMIT_S = 60
USBFS_MEMORY = "sys/module/usbcore/parameters/usbfs_memory_mb"
USBFS_MIB_OF_A_STICK = 4
"""libedgetpu has up to 3 transfers of 1 MiB to a stick under way, and 32 smaller ones from it
(beagle_usb_driver_provider.cc)."""
KERNEL_LOG_BYTES = 4 * 1024 * 1024

KERNEL_CAUSES = ("chip_dead", "interrupts", "probe_failed", "secure_boot", "page_table")
KERNEL_CAUSES_IF_OFTEN = {"registers_garbage": 3, "usb_resets": 6}
"""How often in ten minutes is too often: to open a stick resets its port once or twice."""
OFTEN_WITHIN_S = 600
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `check` names it for programs, `says` is for people."""

    check: str
    level: Level
    says: str


@dataclass(frozen=True)
class Patient:
    """What is examined; what is not in a tree of files is an argument, for tests."""

    settings: Settings
    release: str
    """The kernel's, as `uname -r` says it."""
    page_bytes: int
    may_open: Callable[[Path], bool]

    @classmethod
    def this_host(cls, settings: Settings) -> "Patient":
        """The host, or container, that this process runs in."""
        pages = os.sysconf("SC_PAGESIZE")
        return cls(settings, os.uname().release, pages, discovery.may_open)

    @property
    def root(self) -> Path:
        """Where its trees begin."""
        return self.settings.host_root

    @property
    def in_container(self) -> bool:
        """Whether this is a container."""
        return any(sysfs.there(self.root / name) for name in (".dockerenv", "run/.containerenv"))


def examine(patient: Patient) -> list[Finding]:
    """Look at everything, the worst first."""
    edgetpus = discovery.edgetpus(patient.root, patient.may_open)
    found = [
        *_devices(patient, edgetpus),
        *_usb_memory(patient, edgetpus),
        *_container(patient),
        *_cpu(patient),
        *_model(patient, edgetpus),
        *_library(patient, edgetpus),
        *_kernel_log(patient, edgetpus),
        *_server(patient),
    ]
    order = ("error", "warning", "note", "ok")
    return sorted(found, key=lambda finding: order.index(finding.level))


def report(findings: list[Finding], *, as_json: bool) -> str:
    """The findings, for people or for programs."""
    if as_json:
        shown = [asdict(finding) for finding in findings]
        return json.dumps({"worst": worst(findings), "findings": shown}, indent=2)
    lines = [f"{finding.level.upper():8}{finding.says}" for finding in findings]
    count = Counter(finding.level for finding in findings)
    return "\n".join([*lines, "", f"{count['error']} errors, {count['warning']} warnings"])


def worst(findings: list[Finding]) -> Level:
    """The gravest level among the findings."""
    levels: tuple[Level, ...] = ("error", "warning", "note")
    return next((level for level in levels if any(f.level == level for f in findings)), "ok")


# ---------------------------------------------------------------------------- the checks


def _devices(patient: Patient, edgetpus: list[Device]) -> Iterator[Finding]:
    if not edgetpus:
        try:
            wanted = discovery.choose(patient.settings.devices).asks_for_edgetpu
        except StartError as error:
            yield from (Finding("devices", "error", problem) for problem in error.problems)
            wanted = False
        yield Finding(
            "no_device",
            "error" if wanted else "note",
            f"there is no Edge TPU on PCIe ({_id(PCI_ID)}) or USB ({_id(DFU_ID)}, {_id(USB_ID)}): "
            "check that it is plugged in and powered and the slot is enabled, and give it to the "
            "virtual machine if this is one; without it the CPU serves",
        )
    for device in edgetpus:
        shown = telemetry.read(device, patient.root)
        findings = [
            Finding(each.check, "error" if each.grave else "warning", each.says)
            for each in telemetry.findings(device, shown)
        ]
        findings += _owner(patient, device, shown)
        if device.problem:
            yield Finding("unusable", "error", f"{device.id} {_why_unusable(patient, device)}")
        elif not any(each.level == "error" for each in findings):
            yield Finding("device", "ok", f"{device.id}: {device.about}")
        yield from findings
        if shown.firmware_loaded is False:
            yield Finding(
                "dfu",
                "note",
                f"{device.id} waits for its firmware (DFU), which it gets when it is first opened; "
                "if it still says so while the server runs, try another port and cable",
            )
    if patient.page_bytes != PAGE_BYTES and any(device.bus == "pci" for device in edgetpus):
        yield Finding(
            "page_size",
            "error",
            f"this kernel's memory pages have {patient.page_bytes} bytes, and the card's driver "
            "needs 4096: on a Raspberry Pi 5 set kernel=kernel8.img in config.txt",
        )


def _id(words: tuple[str, str]) -> str:
    """As lspci and lsusb write it: `1ac1:089a`."""
    return ":".join(word.removeprefix("0x") for word in words)


def _why_unusable(patient: Patient, device: Device) -> str:
    """The problem; where there is no driver, also what has become of it."""
    if device.problem != discovery.NO_DRIVER or patient.in_container:
        return device.problem
    kernel = patient.root / "lib/modules" / patient.release
    built = [*kernel.glob("updates/dkms/apex.ko*"), *kernel.glob("**/gasket/apex.ko*")]
    if built:
        try:
            secure = (patient.root / SECURE_BOOT).read_bytes()[-1:] == b"\x01"
        except OSError:
            secure = False
        hint = f"; {causes.UNSIGNED_DRIVER}" if secure else ""
        return (
            f"has a driver for kernel {patient.release} that is not loaded: `sudo modprobe apex`, "
            f"or anew: `{discovery.DRIVER_REMEDY}`{hint}"
        )
    if sysfs.entries(patient.root / "var/lib/dkms/gasket"):
        return (
            f"has a driver that is not built for kernel {patient.release}: run "
            f"`{discovery.DRIVER_REMEDY}`, which builds one for it"
        )
    return device.problem


def _owner(patient: Patient, device: Device, shown: telemetry.Telemetry) -> Iterator[Finding]:
    if not ownership.owner(device.bus, device.node, patient.root):
        return
    ours = sysfs.number(patient.settings.run_dir / f"{device.lock}.lock")
    if ours is not None and sysfs.there(patient.root / f"proc/{ours}"):
        yield Finding("owner", "ok", f"{device.id} is at work for Reef, process {ours}")
        return
    who = "a program"  # which one, the kernel doesn't tell of a stick
    if shown.owner is not None:
        name = sysfs.read(patient.root / f"proc/{shown.owner}/comm")
        who = f"process {shown.owner}{f' ({name})' if name else ' of the host'}"
    yield Finding(
        "owner",
        "error",
        f"{device.id} belongs to {who}: one process at a time may have it, so stop that one, or "
        "let it ask Reef over HTTP",
    )


def _usb_memory(patient: Patient, edgetpus: list[Device]) -> Iterator[Finding]:
    sticks = sum(device.bus == "usb" for device in edgetpus)
    have = sysfs.number(patient.root / USBFS_MEMORY)
    need = sticks * USBFS_MIB_OF_A_STICK
    if sticks > 1 and have and have <= need:  # 0 is no limit
        enough = 2 * need
        yield Finding(
            "usbfs_memory",
            "warning",
            f"the kernel gives all programs together {have} MiB for transfers over USB, and "
            f"{sticks} Edge TPUs may have {need} MiB under way at a time, after which transfers "
            f"fail: on the host, `echo {enough} | sudo tee /{USBFS_MEMORY}`, and for good "
            f"usbcore.usbfs_memory_mb={enough} on the kernel's command line",
        )


def _container(patient: Patient) -> Iterator[Finding]:
    if not patient.in_container:
        return
    status = sysfs.read(patient.root / "proc/self/status").splitlines()
    effective = next((line.split()[1] for line in status if line.startswith("CapEff:")), "0")
    if int(effective, 16) & CAP_SYS_ADMIN:
        yield Finding(
            "privileged",
            "warning",
            "this container is privileged, which switches off the driver's own check that a card "
            "has one owner: drop `privileged` and give it the devices alone",
        )


def _cpu(patient: Patient) -> Iterator[Finding]:
    if missing := discovery.missing_instructions(patient.root):
        yield Finding("old_cpu", "error", f"{causes.OLD_CPU}; it has no {', '.join(missing)}")


def _model(patient: Patient, edgetpus: list[Device]) -> Iterator[Finding]:
    try:
        catalogue = models.load(patient.settings)
    except StartError as error:
        yield from (Finding("model", "error", problem) for problem in error.problems)
        return
    default = catalogue.default
    if edgetpus and "edgetpu" not in default.variants:
        yield Finding(
            "model_not_compiled",
            "error",
            f"the model {default.name} is not compiled for the Edge TPU, so the CPU runs it: "
            f"`{HERE.pull('ssdlite_mobiledet')}` fetches the default one, and edgetpu_compiler "
            "compiles one of your own",
        )
    else:
        kinds = " and ".join(default.variants)
        yield Finding("model", "ok", f"the model {default.name} runs on {kinds}")


def _library(patient: Patient, edgetpus: list[Device]) -> Iterator[Finding]:
    bad: Level = "error" if edgetpus else "note"  # who has no Edge TPU needs no library
    command = [sys.executable, "-m", "app.devices.probe", patient.settings.libedgetpu]
    try:
        ran = subprocess.run(
            command, env=link.environment(), capture_output=True, text=True, timeout=PROBE_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        yield Finding("runtime", "error", f"TensorFlow Lite did not load in {PROBE_LIMIT_S} s")
        return
    if ran.returncode:
        words = ran.stderr.splitlines()
        ended = causes.why_ended("library", ran.returncode, words, None)
        yield Finding(
            "runtime", "error", f"TensorFlow Lite and libedgetpu can't be loaded: {ended}"
        )
        return
    probed: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    if "error" in probed:
        known = causes.known([probed["error"]])
        says = f"{known.says} ({probed['error']})" if known else probed["error"]
        yield Finding("libedgetpu", bad, says)
    elif "CL_NUMBER" in probed["libedgetpu"]:  # Google's own builds are labelled so
        yield Finding(
            "wrong_library",
            bad,
            f"libedgetpu ({probed['libedgetpu']}) seems to be Google's package of 2021, which "
            "crashes today's TensorFlow Lite: install the rebuild 16.0tf2.19.1-1",
        )
    else:
        yield Finding("libedgetpu", "ok", f"libedgetpu {probed['libedgetpu']}, {probed['runtime']}")


def _kernel_log(patient: Patient, edgetpus: list[Device]) -> Iterator[Finding]:
    ports = [f"usb {device.node}:" for device in edgetpus if device.bus == "usb"]
    when: dict[str, list[float]] = {}
    said: dict[str, str] = {}
    for seconds, line in _kernel_lines(patient.root / "dev/kmsg"):
        for cause in causes.CAUSES:
            elsewhere = cause.key == "usb_resets" and not any(port in line for port in ports)
            if cause.pattern.search(line) and not elsewhere:
                when.setdefault(cause.key, []).append(seconds)
                said[cause.key] = line.strip()[-160:]
    for cause in causes.CAUSES:
        times = when.get(cause.key, [])
        often = _most_within(times, OFTEN_WITHIN_S) >= KERNEL_CAUSES_IF_OFTEN.get(cause.key, inf)
        if often or (cause.key in KERNEL_CAUSES and times):
            yield Finding(
                f"kernel_{cause.key}",
                "warning",
                f"the kernel's log: {cause.says} ({said[cause.key]})",
            )


def _most_within(times: list[float], span_s: float) -> int:
    """How many of these ascending times lie within one span, at the most."""
    return max((bisect_right(times, at + span_s) - n for n, at in enumerate(times)), default=0)


def _kernel_lines(path: Path) -> Iterator[tuple[float, str]]:
    """The kernel's log, where it may be read: seconds since the start of the computer, and a line.

    /dev/kmsg gives one record a call: `PRIORITY,NUMBER,MICROSECONDS,FLAGS;LINE`.
    """
    text = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while len(text) < KERNEL_LOG_BYTES and (record := os.read(descriptor, 8192)):
            text += record
    except OSError:  # EAGAIN: that was the last line
        pass
    finally:
        os.close(descriptor)
    for record_line in text.decode(errors="replace").splitlines():
        head, _, line = record_line.partition(";")
        fields = head.split(",")
        if len(fields) >= 3 and fields[2].isdigit():
            yield int(fields[2]) / 1e6, line


def _server(patient: Patient) -> Iterator[Finding]:
    url = patient.settings.local_url
    where = "in this container" if patient.in_container else f"at {url}"  # another is published
    try:
        ready = local.ask(patient.settings, "/ready")
        shown = local.ask(patient.settings, "/devices")
        keyed = shown.status == HTTPStatus.UNAUTHORIZED
        devices = [] if keyed else shown.body["devices"]
        failing = [
            (each["id"], each["reason"])
            for each in devices
            if each["kind"] == "edgetpu" and each["state"] != "ready" and each["reason"] != STARTING
        ]
        notes, reason = ready.body["notes"], ready.body["reason"]
    except (local.NoServer, KeyError, TypeError):
        yield Finding("server", "note", f"no Reef answers {where}")
        return
    if keyed:
        yield Finding(
            "server_key", "note", f"Reef at {url} tells of its devices with its key: REEF_API_KEY"
        )
    for device, why in failing:
        yield Finding("server_device", "error", f"the server says: {device} {why}")
    if not failing and reason:
        yield Finding("server", "warning", f"the server says: {reason}")
    if not failing and not reason:
        yield Finding("server", "ok", f"Reef is ready {where}")
    for note in notes:
        if note.startswith("this image"):
            yield Finding("image", "warning", note)
