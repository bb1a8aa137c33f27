"""Throw-away hosts: a root file system in a folder, with the commands that a test needs.

Commands that would act on the machine that runs the tests, or ask a network, are small scripts
here; what they do to a host's files, they do to the tree.
"""

import hashlib
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import ROOT

KERNEL = "6.12.1+deb13-amd64"
CARD = "0000:03:00.0"
TOOLS = (
    "basename bash cat chmod chown cmp cp cut df dirname env find getconf grep gzip head id"
    " install ln ls mkdir mktemp mv od paste patch readlink rm rmdir sed seq sh sha256sum sort"
    " stat tac tail tar touch tr wc xargs"
)

OS_RELEASE = {
    "debian-12": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "debian-13": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "ubuntu-22.04": 'ID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "ubuntu-24.04": 'ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
}

ENTER = 'mount -t proc proc "$1/proc" && exec chroot "$@"'
"""Bash needs /proc for its `< <(…)`."""

STUBS = Path(__file__).with_name("stubs")
"""Each has its arguments, HOST_ROOT, and in STUBS the notes that tests leave for it."""


@dataclass
class Host:
    """A host in a folder. `inside`: commands run in it by chroot, or else beside it."""

    root: Path
    stubs: Path
    checkout: Path
    inside: bool = False
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, script: str = "host-setup/host-setup.sh") -> "Said":
        """Run the setup, or another script of the checkout."""
        command = ["bash", str(self._seen(self.checkout) / script), *arguments]
        path = [str(self._seen(self.stubs))]
        if self.inside:
            command = ["sh", "-c", ENTER, "sh", str(self.root), *command]
            command = ["unshare", "--mount", "--propagation", "private", *command]
            path += ["/usr/sbin", "/usr/bin"]
        else:
            path.append(str(self.stubs / "tools"))
        done = subprocess.run(
            command,
            cwd="/",
            env={
                "PATH": ":".join(path),
                "HOST_ROOT": "" if self.inside else str(self.root),
                "STUBS": str(self._seen(self.stubs)),
                "LC_ALL": "C",
                **self.environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        return Said(done.returncode, done.stdout)

    def _seen(self, path: Path) -> Path:
        """A path as commands see it."""
        return Path("/", path.relative_to(self.root)) if self.inside else path

    def stub(self, name: str, body: str) -> None:
        """A command that does this."""
        path = self.stubs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def note(self, name: str, text: str = "") -> None:
        """Something that a command shall know."""
        (self.stubs / name).write_text(text)

    def write(self, path: str, text: str = "") -> None:
        """A file of the host."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def card(self, address: str = CARD, **files: str) -> None:
        """A card on its PCI bus."""
        for name, text in ({"vendor": "0x1ac1", "device": "0x089a"} | files).items():
            self.write(f"/sys/bus/pci/devices/{address}/{name}", f"{text}\n")

    def stick(self, vendor: str = "1a6e", product: str = "089a", **files: str) -> None:
        """A stick on its USB bus."""
        shown = {"idVendor": vendor, "idProduct": product, "busnum": "2", "devnum": "5"}
        for name, text in (shown | {"speed": "5000"} | files).items():
            self.write(f"/sys/bus/usb/devices/2-1/{name}", f"{text}\n")
        self.write("/dev/bus/usb/002/005")

    def headers(self) -> None:
        """Those of its kernel, and what builds a driver with them."""
        self.write(f"/lib/modules/{KERNEL}/build/Makefile")
        self.note("installed", "dkms\nopenssl\npatch\n")

    def files(self) -> dict[str, str]:
        """What it has: path, and kind, mode and content. Not what a package manager or the tools
        keep for themselves."""
        found = {}
        for top in {self.root} if self.inside else {self.root, self.checkout}:
            for folder, folders, names in os.walk(top):
                for name in (*names, *folders):
                    path = Path(folder, name)
                    if not _is_noise(path.relative_to(top)) and self.stubs not in path.parents:
                        found[str(path.relative_to(top))] = _describe(path)
        return found


def _is_noise(path: Path) -> bool:
    text = str(path)
    return text.startswith(("proc", "tmp", "stubs", "var/cache", "var/lib/apt", "var/log")) or (
        text.endswith("-") and text.startswith("etc/")  # groupadd's copies of before
    )


def _describe(path: Path) -> str:
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        return f"-> {path.readlink()}"
    if stat.S_ISREG(about.st_mode):
        return f"{about.st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{about.st_mode:o}"


@dataclass(frozen=True)
class Said:
    """How the setup ended, and what it said."""

    status: int
    text: str

    def check(self, name: str) -> str:
        """The verdict and the reason of a named check."""
        for line in self.text.splitlines():
            verdict, _, rest = line.partition("  ")
            if rest.strip().startswith(f"{name}  "):
                return f"{verdict.strip()} {rest.strip().removeprefix(name).strip()}"
        raise AssertionError(f"there is no check {name!r} in:\n{self.text}")


def changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The paths that differ."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def copy_checkout(folder: Path) -> None:
    """The part of this checkout that sets hosts up."""
    for name in ("host-setup", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(
        ROOT / "models", folder / "models", ignore=lambda *_: ["efficientdet_lite0.tflite"]
    )
    shutil.copy(ROOT / "compose.yaml", folder)
    (folder / "app").mkdir()
    for name in ("__init__.py", "download.py"):
        shutil.copy(ROOT / "app" / name, folder / "app")


def make_host(folder: Path, os_release: str = OS_RELEASE["debian-13"]) -> Host:
    """A host without an Edge TPU, beside which commands run."""
    host = Host(folder / "root", folder / "stubs", folder / "checkout")
    host.stubs.mkdir(parents=True)
    copy_checkout(host.checkout)
    host.stub("ldconfig", "")
    host.write("/etc/os-release", os_release)
    host.write("/etc/group", "root:x:0:\nplugdev:x:46:\n")
    host.write("/proc/cpuinfo", "flags\t\t: fpu ssse3 sse4_1 sse4_2 popcnt cx16 avx2\n")
    for path in ("var/lib/dkms", "usr/src", "usr/local/lib", f"lib/modules/{KERNEL}"):
        (host.root / path).mkdir(parents=True)
    tools = host.stubs / "tools"
    tools.mkdir()
    for name in TOOLS.split():
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)
    for stub in STUBS.iterdir():
        shutil.copy(stub, host.stubs)
    return host
