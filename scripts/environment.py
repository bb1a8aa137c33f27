"""Makes a virtual environment and installs locked packages into it, or says in one line why not.

python3 scripts/environment.py make FOLDER
FOLDER/bin/python scripts/environment.py install REQUIREMENTS

It needs nothing but Python. What is too old for it, the Makefile refuses.
"""

import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass

NEWEST = (3, 14)
"""The last Python for which every locked package is published."""
MACHINES = ("x86_64", "aarch64")
NOT_REACHED = ("connection broken by", "Max retries exceeded", "Could not fetch URL")
"""What pip says of an index that doesn't answer."""
CONTAINER = "the container brings what is needed: make up"


@dataclass(frozen=True)
class Interpreter:
    """What decides whether packages are published for a Python."""

    version: "tuple[int, int]"
    bits: int
    machine: str
    glibc: bool
    system: str = "linux"
    implementation: str = "cpython"

    @classmethod
    def this(cls) -> "Interpreter":
        """The one that runs this."""
        try:
            glibc = bool(os.confstr("CS_GNU_LIBC_VERSION"))
        except (OSError, ValueError):  # musl knows no such name
            glibc = False
        return cls(
            version=sys.version_info[:2],
            bits=8 * struct.calcsize("P"),
            machine=platform.machine(),
            glibc=glibc,
            system=sys.platform,
            implementation=sys.implementation.name,
        )

    def objection(self) -> str:
        """Why Reef's packages can't be had for it, in one sentence; empty when they can."""
        version, newest = ("{}.{}".format(*number) for number in (self.version, NEWEST))
        if self.system != "linux":
            return f"Reef runs on Linux, not on {self.system}; {CONTAINER}"
        if self.bits != 64:
            return (
                f"this Python has {self.bits} bits ({self.machine}), and TensorFlow Lite is not "
                "published for such: install a 64-bit system, as the 64-bit Raspberry Pi OS is"
            )
        if self.machine not in MACHINES:
            return f"Reef runs on x86-64 and arm64, not on {self.machine}"
        if not self.glibc:
            return (
                "this system has another C library than glibc (musl, as Alpine has), and "
                f"TensorFlow Lite is not published for it; {CONTAINER}"
            )
        if self.implementation != "cpython":
            return (
                f"Reef needs CPython, not {self.implementation}; name one: make run PYTHON=python3"
            )
        if self.version > NEWEST:
            return (
                f"Python {version} is newer than {newest}, the last that Reef's packages are "
                f"published for; name another: make run PYTHON=python{newest}"
            )
        return ""


def make(folder: str) -> int:
    """Make the environment; returns the exit status."""
    command = [sys.executable, "-m", "venv", "--clear", folder]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        last = made.stdout.decode(errors="replace").strip().splitlines()[-1:]
        why = "install its package (Debian and Ubuntu: apt install python3-venv)"
        return fail(f"no virtual environment can be made; {why}", *last)
    return 0


def install(requirements: str) -> int:
    """Install what is locked, with pip; returns the exit status."""
    if importlib.util.find_spec("pip") is None:
        return fail("the environment was made by a Python that has gone; make it anew: make clean")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "2", "--require-hashes", "--requirement", requirements]
    ran = subprocess.run(command, stderr=subprocess.PIPE)
    words = ran.stderr.decode(errors="replace")
    if not ran.returncode:
        sys.stderr.write(words)
        return 0
    if any(sign in words for sign in NOT_REACHED):
        return fail(
            "the package index can't be reached: look at the network, or name a proxy in "
            "https_proxy or a mirror in PIP_INDEX_URL"
        )
    return fail(f"{requirements} can't be installed; pip says why", words.strip())


def fail(why: str, *words: str) -> int:
    """Say what somebody else said, then why; returns an exit status."""
    print(*words, f"reef: {why}", sep="\n", file=sys.stderr)  # noqa: T201
    return 1


def main(arguments: "list[str]") -> int:
    """See above; returns the exit status."""
    action, place = arguments
    if why := Interpreter.this().objection():
        return fail(why)
    return {"make": make, "install": install}[action](place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
