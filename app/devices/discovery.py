"""Which devices this host has."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from app.models import Kind

MAX_USEFUL_THREADS = 4
"""TensorFlow Lite's small detectors gain little beyond four threads."""


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


def discover(address: str, cpu_threads: int = 0, root: Path = Path("/")) -> list[Device]:
    """The devices to serve from, for the server at `address`.

    `cpu_threads` 0 takes every core that this process may use. Servers may share the CPU, so each
    has a lock of its own there.
    """
    cores = available_cores(root)
    threads = cpu_threads or min(cores, MAX_USEFUL_THREADS)
    about = f"{cpu_name(root)}, {threads} of {cores} cores"
    return [Device("cpu", "cpu", about, f"cpu-{address}", threads)]


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
