"""The virtual machine: made once, and kept in build/vm for as long as its recipe stays."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.vm.machine import Machine

IMAGE = ROOT / "build" / "vm"
IMAGE_S = 1200
STANDIN = ROOT / "tests" / "vm" / "driver"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is emulated takes its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1500, func_only=True))


@pytest.fixture(scope="session")
def image() -> Path:
    """A disk with Debian 13."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.fail("QEMU is missing: sudo apt-get install qemu-system-x86", pytrace=False)
    command = [str(ROOT / "tests" / "vm" / "image.sh"), str(IMAGE)]
    if os.getuid():
        command.insert(0, "sudo")
    made = subprocess.run(command, timeout=IMAGE_S, check=False)
    if made.returncode:
        pytest.fail("the machine's disk can't be made; see above", pytrace=False)
    return IMAGE


@pytest.fixture(scope="session")
def driver_source() -> Path:
    """The driver's source: Google's, where DRIVER_SOURCE names it, or else the stand-in's."""
    return Path(os.environ.get("DRIVER_SOURCE") or STANDIN).resolve()


@pytest.fixture(scope="session")
def machine(
    image: Path, driver_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A machine with this checkout in /opt/reef and the driver's source in /opt/source."""
    folder = tmp_path_factory.mktemp("vm")
    files = folder / "files.tar"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    with tarfile.open(files, "w") as archive:
        for name in listed.stdout.split("\0"):
            if name and (ROOT / name).exists() and not name.startswith("models/"):
                archive.add(ROOT / name, f"reef/{name}")
        archive.add(driver_source, "source")
    machine = Machine(image, files, folder)
    try:
        machine("mkdir -p /opt && tar --extract --no-same-owner --file /dev/vdb --directory /opt")
        yield machine
    finally:
        machine.stop()
