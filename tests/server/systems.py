"""Programs on systems that lack something: threads are refused, or folders missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.devices.link import ROOT
from tests.client import ENVIRON

REFUSE_THREADS = Path(__file__).with_name("refuse_threads.py")
TEMPORARY = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108 - those that Python looks for
IN_MEMORY = "/dev/shm"  # noqa: S108


def run(
    *arguments: str, before: Sequence[str] = (), cwd: str | Path = ROOT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """`python -m app`, behind another command."""
    return subprocess.run(
        [*before, sys.executable, "-m", "app", *arguments],
        env={**ENVIRON, "PYTHONPATH": str(ROOT), **environ},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def with_clone3_answering(error: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m app` where the system call that starts threads fails like this."""
    return subprocess.run(
        [sys.executable, REFUSE_THREADS, str(error), "-m", "app", *arguments],
        env={**ENVIRON, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def behind_mounts(*mounts: str) -> list[str]:
    """What runs a command in a mount namespace of its own, after these lines of shell."""
    return [
        *("unshare", "--map-root-user", "--mount", "sh", "-ec"),
        "\n".join((*mounts, 'exec "$@"')),
        "sh",
    ]


def needs_mounts() -> None:
    """Skip where no namespace can be made."""
    command = shutil.which("unshare")
    tried = command and subprocess.run(
        [*behind_mounts("mount -t tmpfs -o ro none /mnt"), "true"], capture_output=True
    )
    if not tried or tried.returncode:
        pytest.skip("this system makes no mount namespaces")


def empty(*folders: str) -> list[str]:
    """The lines that put nothing, which can't be written to, over these folders. One that this
    checkout lies in keeps what it has, or there would be no program to run."""
    lines: list[str] = []
    for folder in filter(os.path.isdir, folders):
        if ROOT.is_relative_to(folder):
            lines.append(f"mount --rbind {folder} {folder}")
            lines.append(f"mount -o remount,bind,ro,nosuid,nodev {folder}")
        else:
            lines.append(f"mount -t tmpfs -o ro none {folder}")
    return lines
