"""What must be known of a run to repeat it: the tool, this computer, the server."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from app import __version__
from bench.benchmarking.server import About, mapping

ROOT = Path(__file__).parents[2]
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def tool() -> dict[str, Any]:
    """This program: a version says little of a working copy, so its files are summed too."""
    files = sorted((ROOT / "bench" / "benchmarking").glob("*.py"))
    content = b"".join(path.read_bytes() for path in (ROOT / "bench" / "benchmark.py", *files))
    return {
        "name": "reef-benchmark",
        "version": __version__,
        "revision": _revision(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def host() -> dict[str, Any]:
    """This computer."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.exists() else None,
        "in_container": Path("/.dockerenv").exists(),
    }


def cpu_name(root: Path = Path("/")) -> str:
    """The processor as its maker calls it; on an Arm board, the board."""
    try:
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
        return (root / "proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        return platform.machine()


def target(url: str, about: About, *, local: bool) -> dict[str, Any]:
    """The server, as it said of itself at the start."""
    models = [
        {
            "name": str(mapping(model).get("name", "")),
            "sha256": {
                str(mapping(each).get("device_kind", "")): str(mapping(each).get("sha256", ""))
                for each in mapping(model).get("variants", [])
            },
        }
        for model in about.models
    ]
    devices = [
        {name: mapping(each).get(name) for name in ("id", "kind", "about", "state")}
        for each in about.devices
    ]
    return {
        "url": url,
        "local": local,
        "version": about.version,
        "model": about.model,
        "models": models,
        "devices": devices,
        "notes": about.notes,
    }


def _revision() -> str | None:
    """The commit of the sources; None where they came without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("BENCH_REVISION") or None
    return done.stdout.strip()
