"""host-setup.sh in Debian 12 and 13 from Debian's archive: by chroot, with their own tools."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.host.hosts import KERNEL, STUBS, Host, changes, copy_checkout
from tests.support import ROOT

ROOTS = ROOT / "build" / "roots"
PACKAGES = "udev,patch,openssl"
SOURCE = ROOT / "tests" / "vm" / "driver"
REAL = ("groupadd", "groupdel", "dpkg-query")
"""What these systems have themselves."""

OPTIONS = ("--pcie", "--usb", "--cdi", "--service", "--driver-source", "/opt/source")

pytestmark = pytest.mark.timeout(900, func_only=True)


def why_not() -> str | None:
    """Why there can be none here."""
    if os.getuid():
        return "only root can enter another root file system"
    if not shutil.which("mmdebstrap"):
        return "mmdebstrap is missing: apt-get install mmdebstrap"
    return None


def made(suite: str) -> Path:
    """Its root file system; made once, and kept."""
    folder = ROOTS / f"{suite}-{PACKAGES.replace(',', '-')}"
    if not folder.exists():
        ROOTS.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        keyring = "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"
        options = ("--variant=minbase", "--quiet", keyring, f"--include={PACKAGES}")
        command = ["mmdebstrap", *options, "--dpkgopt=force-unsafe-io", suite, str(unfinished)]
        subprocess.run(command, check=True, timeout=600)
        unfinished.rename(folder)
    return folder


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Such a system, with a card, a stick and headers. What its users would install is missing."""
    if why := why_not():
        if os.environ.get("REEF_REQUIRE_CONTAINER") == "1" and not os.getuid():
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    root = tmp_path_factory.mktemp("host") / request.param
    subprocess.run(["cp", "--archive", made(request.param), root], check=True, timeout=300)
    host = Host(root, root / "stubs", root / "opt/reef", inside=True)
    host.stubs.mkdir()
    for stub in STUBS.iterdir():
        if stub.name not in REAL:
            shutil.copy(stub, host.stubs)
    copy_checkout(host.checkout)
    shutil.copytree(SOURCE, root / "opt/source")
    host.card()
    host.stick()
    host.write(f"/lib/modules/{KERNEL}/build/Makefile")
    for path in ("var/lib/dkms", "usr/src"):
        (root / path).mkdir(parents=True, exist_ok=True)
    return host


def test_check_and_dry_run_change_nothing(host: Host) -> None:
    before = host.files()
    said = host.run()
    assert said.status == 1, said.text
    assert said.check("distribution").startswith("ok Debian GNU/Linux")
    said = host.run("install", *OPTIONS, "--dry-run")
    assert said.status == 0, said.text
    assert host.run("install", "--usb").status == 3  # nobody says yes
    assert host.files() == before


def test_install_and_uninstall(host: Host) -> None:
    before = host.files()
    said = host.run("install", *OPTIONS, "--yes")
    assert said.status == 0, said.text
    after = host.files()
    changed = changes(before, after)
    for path in (
        "etc/udev/rules.d/99-reef-apex.rules",
        "etc/udev/rules.d/99-reef-usb.rules",
        "etc/systemd/system/reef.service",
        "etc/cdi/reef.json",
        "etc/group",
        "etc/gshadow",
        f"usr/lib/modules/{KERNEL}/updates/dkms/apex.ko",
        "opt/reef/.env",
        "opt/reef/compose.devices.yaml",
    ):
        assert path in changed, path
    tops = {path.split("/")[0] for path in changed}
    assert tops == {"etc", "opt", "usr", "var"}
    group = (host.root / "etc/group").read_text()
    assert "\napex:x:" in group

    assert host.run("install", *OPTIONS[:-2], "--yes").text.strip().endswith("set up already")
    assert host.files() == after

    said = host.run("uninstall", "--yes")
    assert said.status == 0, said.text
    assert changes(before, host.files()) == set()


def test_udev_takes_the_rules(host: Host) -> None:
    """udevadm has `verify` since systemd 254; Debian 12's has not."""
    asked = 'udevadm verify --help >/dev/null 2>&1 || exit 0; udevadm verify "$@"'
    rules = [f"/opt/reef/{path.relative_to(host.checkout)}"
             for path in (host.checkout / "host-setup/udev").iterdir()]  # fmt: skip
    command = ["chroot", str(host.root), "sh", "-c", asked, "sh", "--resolve-names=never", *rules]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr
    if host.root.name == "trixie":
        assert "Success: 3" in said.stdout
