"""host-setup.sh on throw-away hosts: what it changes, and what it refuses before it changes any."""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.host.hosts import CARD, KERNEL, OS_RELEASE, Host, changes, make_host
from tests.support import ROOT
from tests.unit.test_fetch import DEB, LIBRARY_BYTES, Site, make_package

SOURCE = ROOT / "tests" / "vm" / "driver"
DRIVER = ("--driver-source", str(SOURCE))
PI5 = "Raspberry Pi 5 Model B Rev 1.0\0"


@pytest.fixture(params=OS_RELEASE)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    """One of each distribution."""
    return make_host(tmp_path, OS_RELEASE[request.param])


@pytest.fixture
def debian(tmp_path: Path) -> Host:
    """Debian 13, where the distribution makes no difference."""
    return make_host(tmp_path)


EVERYTHING = ("install", "--pcie", "--usb", "--cdi", "--service", "--yes", *DRIVER)


def prepare(host: Host) -> None:
    """A card, a stick, and all that a driver needs."""
    host.card()
    host.stick()
    host.headers()


# ---------------------------------------------------------------------------- what is changed


def test_check_and_dry_run_change_nothing(host: Host) -> None:
    prepare(host)
    before = host.files()
    assert host.run().status == 1
    said = host.run("install", "--pcie", "--usb", "--cdi", "--service", "--dry-run", *DRIVER)
    assert said.status == 0, said.text
    assert "This will be done" in said.text
    assert host.run("uninstall", "--dry-run").status == 0
    assert host.files() == before


def test_install_changes_what_it_says_and_uninstall_takes_it_back(host: Host) -> None:
    prepare(host)
    before = host.files()
    said = host.run(*EVERYTHING)
    assert said.status == 0, said.text
    after = host.files()
    assert {path for path in changes(before, after) if "." in Path(path).name} == {
        "etc/udev/rules.d/99-reef-apex.rules",
        "etc/udev/rules.d/99-reef-usb.rules",
        "etc/udev/rules.d/99-reef-devices.rules",
        "etc/systemd/system/reef.service",
        "etc/systemd/system/reef-devices.service",
        "etc/systemd/system/multi-user.target.wants/reef.service",
        "etc/systemd/system/multi-user.target.wants",
        "etc/udev/rules.d",
        "etc/cdi/reef.json",
        f"lib/modules/{KERNEL}/updates/dkms/apex.ko",
        *(path for path in after if path.startswith("usr/src/gasket-own-") and "." in path),
        "compose.devices.yaml",
        ".env",
    }
    assert "etc/group" in changes(before, after)
    assert host.run(*EVERYTHING[:-2]).text.strip().endswith("this host is set up already")
    assert host.files() == after
    said = host.run("uninstall", "--yes")
    assert said.status == 0, said.text
    assert host.files() == before
    assert host.run("uninstall", "--yes").text.endswith("nothing to take back\n")


def test_every_change_is_printed_with_the_way_back(debian: Host) -> None:
    prepare(debian)
    said = debian.run(*EVERYTHING)
    planned = re.findall(r"^    \* (.+)$", said.text, re.MULTILINE)
    assert len(planned) >= 7
    assert all("(undo: " in line or line.startswith("tell Docker") for line in planned)


def test_what_was_there_comes_back(debian: Host) -> None:
    debian.stick()
    debian.write("/etc/udev/rules.d/99-reef-usb.rules", "# mine\n")
    before = debian.files()
    assert debian.run("install", "--yes").status == 0
    assert debian.files() != before
    assert debian.run("uninstall", "--yes").status == 0
    assert debian.files() == before


def test_what_is_missing_is_installed_and_goes_again(debian: Host) -> None:
    debian.card()
    debian.note("available", f"linux-headers-{KERNEL}\n")
    before = debian.files()
    said = debian.run("install", "--yes", *DRIVER)
    assert said.status == 0, said.text
    installed = (debian.stubs / "installed").read_text().split()
    assert installed == [
        f"linux-headers-{KERNEL}",
        "linux-headers-amd64",
        "dkms",
        "openssl",
        "patch",
    ]
    assert debian.run("uninstall", "--yes").status == 0
    assert (debian.stubs / "installed").read_text() == ""
    assert debian.files() == before


def test_without_yes_and_without_a_terminal_it_stops(debian: Host) -> None:
    debian.stick()
    before = debian.files()
    said = debian.run("install")
    assert said.status == 3
    assert "say --yes" in said.text
    assert debian.files() == before


def test_a_change_that_fails_says_what_was_done(debian: Host) -> None:
    prepare(debian)
    debian.stub("dkms", "echo 'Error! out of luck' >&2; exit 9")
    said = debian.run("install", "--pcie", "--yes", *DRIVER)
    assert said.status == 4
    assert "out of luck" in said.text
    assert "* dkms gasket/own-" in said.text


# ---------------------------------------------------------------------------- what it refuses


def refused(host: Host, *arguments: str) -> str:
    """What install says when it stops, having changed nothing, with a remedy."""
    before = host.files()
    said = host.run("install", "--yes", *arguments)
    assert said.status == 3, said.text
    assert host.files() == before
    assert "stopped before anything was changed: " in said.text
    assert "  remedy: " in said.text
    return said.text


def test_no_edge_tpu(debian: Host) -> None:
    assert "no Edge TPU is seen" in refused(debian)


def test_missing_headers_that_apt_does_not_have(debian: Host) -> None:
    debian.card()
    said = refused(debian, *DRIVER)
    assert f"apt has no linux-headers-{KERNEL}" in said
    assert "linux-image-amd64 linux-headers-amd64, and start the computer again" in said


def test_no_network_for_packages(debian: Host) -> None:
    debian.card()
    debian.note("available", f"linux-headers-{KERNEL}\n")
    debian.note("offline")
    assert "can't be fetched" in refused(debian, *DRIVER)


def test_no_network_for_the_driver(debian: Host) -> None:
    prepare(debian)
    debian.stub("curl", "echo 'curl: (6) Could not resolve host: github.com' >&2; exit 6")
    said = refused(debian)
    assert (
        "the driver's source can't be fetched from https://github.com/google/gasket-driver" in said
    )
    assert "--driver-source DIR" in said


def test_another_source_than_the_pinned_one(debian: Host, tmp_path: Path) -> None:
    prepare(debian)
    archive = tmp_path / "source.tar.gz"
    os.system(f"tar czf {archive} -C {SOURCE.parent} {SOURCE.name}")  # noqa: S605
    debian.stub("curl", f'while [ "$1" != --output ]; do shift; done; cp {archive} "$2"')
    assert "is not the commit that it should be" in refused(debian)


def test_secure_boot_without_the_key(debian: Host) -> None:
    prepare(debian)
    secure_boot(debian, on=True)
    said = refused(debian, *DRIVER)
    assert "Secure Boot is on" in said
    assert "mokutil --import /var/lib/dkms/mok.pub" in said
    assert "Enroll MOK" in said


def test_secure_boot_with_the_key_is_no_hindrance(debian: Host) -> None:
    prepare(debian)
    secure_boot(debian, on=True)
    debian.write("/var/lib/dkms/mok.pub", "a key")
    debian.note("enrolled")
    assert debian.run("install", "--yes", *DRIVER).status == 0


def secure_boot(host: Host, *, on: bool) -> None:
    """The firmware's variable: four bytes of attributes, and one that tells."""
    host.write("/sys/firmware/efi/efivars/SecureBoot-8be4df61", f"\6\0\0\0{chr(on)}")


def test_an_old_driver(debian: Host) -> None:
    prepare(debian)
    debian.write("/var/lib/dkms/gasket/1.0/source/dkms.conf")
    said = refused(debian, *DRIVER)
    assert "an old driver, gasket/1.0, is in DKMS" in said
    assert "sudo dkms remove gasket/1.0 --all" in said
    debian.note("installed", "dkms\nopenssl\npatch\ngasket-dkms\n")
    assert "sudo apt-get purge gasket-dkms" in refused(debian, *DRIVER)


def test_a_driver_that_works_already_stays(debian: Host) -> None:
    debian.card()
    debian.write(f"/lib/modules/{KERNEL}/updates/dkms/apex.ko.xz")
    said = debian.run("install", "--yes")
    assert said.status == 0, said.text
    assert "dkms" not in said.text


def test_a_driver_that_does_not_build(debian: Host) -> None:
    prepare(debian)
    debian.note("broken")
    said = refused(debian, *DRIVER)
    assert f"does not build for {KERNEL}" in said
    assert "error: it is broken" in said


def test_a_source_that_the_patches_do_not_fit(debian: Host, tmp_path: Path) -> None:
    prepare(debian)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/gasket_core.c").write_text("x = no_llseek;\n")
    said = refused(debian, "--driver-source", str(tmp_path / "odd"))
    assert "0001-no_llseek-6.12.patch does not fit" in said


def test_a_source_that_is_not_there(debian: Host) -> None:
    prepare(debian)
    assert "there is no folder /nowhere" in refused(debian, "--driver-source", "/nowhere")


def test_a_container_gets_no_driver(debian: Host) -> None:
    debian.card()
    debian.stub("systemd-detect-virt", "echo lxc")
    assert "drivers are the host's" in refused(debian, *DRIVER)


def test_a_machine_that_reef_does_not_run_on(debian: Host) -> None:
    debian.stick()
    debian.stub("uname", "case $1 in -m) echo armv7l ;; *) echo 6.1 ;; esac")
    assert "armv7l" in refused(debian)


def test_the_service_without_docker(debian: Host) -> None:
    debian.stick()
    (debian.stubs / "docker").unlink()
    assert "apt-get install docker.io docker-compose" in refused(debian, "--service")


def for_make_run(host: Host) -> None:
    """A checkout with what `make run` installs, and a stick."""
    host.stick()
    host.note("installed", "libusb-1.0-0\n")
    (host.checkout / ".venv/bin").mkdir(parents=True)
    (host.checkout / ".venv/bin/python").symlink_to(sys.executable)
    found = shutil.which("dpkg-deb")
    assert found
    (host.stubs / "dpkg-deb").symlink_to(found)


def test_libedgetpu_is_put_where_make_run_finds_it(debian: Host, tmp_path: Path) -> None:
    for_make_run(debian)
    package = make_package(tmp_path / "package", "libedgetpu.so.1.0")
    debian.stub("id", "case $1 in -u) echo 0 ;; -nG) echo alice sudo ;; esac")
    debian.stub("usermod", 'sed -i "s/^apex:.*/&$4/" "$HOST_ROOT/etc/group"')
    debian.stub("gpasswd", 'sed -i "s/^apex:\\(.*\\)$2/apex:\\1/" "$HOST_ROOT/etc/group"')
    before = debian.files()
    site = Site()
    try:
        site.files = {DEB.replace("amd64", each): package for each in ("amd64", "arm64")}
        debian.environ |= {"EDGETPU_MIRROR": site.url, "SUDO_USER": "alice"}
        debian.environ["LIBEDGETPU_SHA256"] = hashlib.sha256(package).hexdigest()
        said = debian.run("install", "--runtime", "--yes")
    finally:
        site.close()
    assert said.status == 0, said.text
    library = debian.root / "usr/local/lib/libedgetpu.so.1"
    assert library.read_bytes() == LIBRARY_BYTES
    assert "apex:x:321:alice" in (debian.root / "etc/group").read_text()
    assert debian.run("uninstall", "--yes").status == 0
    assert debian.files() == before


def test_libedgetpu_that_is_not_the_right_one(debian: Host, tmp_path: Path) -> None:
    for_make_run(debian)
    package = make_package(tmp_path / "package", "libedgetpu.so.1.0")
    site = Site()
    try:
        site.files = {DEB.replace("amd64", each): package for each in ("amd64", "arm64")}
        debian.environ["EDGETPU_MIRROR"] = site.url
        assert "libedgetpu is not what it should be" in refused(debian, "--runtime")
    finally:
        site.close()


def test_libedgetpu_that_can_not_be_fetched(debian: Host) -> None:
    for_make_run(debian)
    debian.environ["EDGETPU_MIRROR"] = "http://127.0.0.1:9"
    said = refused(debian, "--runtime")
    assert "libedgetpu can't be fetched" in said
    assert "127.0.0.1:9 could not be reached" in said


def test_cut_off_anywhere_it_does_nothing(debian: Host) -> None:
    prepare(debian)
    before = debian.files()
    for path in sorted((debian.checkout / "host-setup").rglob("*.sh")):
        whole = path.read_text()
        lines = whole.splitlines(keepends=True)
        for count in range(0, len(lines), 10):
            path.write_text("".join(lines[:count]))
            said = debian.run(*EVERYTHING)
            assert said.status in (0, 1, 2, 3, 127), said.text
            path.write_text(whole)
            assert debian.files() == before, f"{path.name} cut off after {count} lines"


@pytest.mark.parametrize("wrong", [["--lunch"], ["lunch"], ["--driver-source"]])
def test_wrong_usage(debian: Host, wrong: list[str]) -> None:
    said = debian.run(*wrong)
    assert said.status == 2
    assert "--help" in said.text or "takes" in said.text


def test_help_tells_the_exit_statuses(debian: Host) -> None:
    said = debian.run("--help")
    assert said.status == 0
    for status in range(6):
        assert re.search(rf"^  {status}  ", said.text, re.MULTILINE)


# ---------------------------------------------------------------------------- the checks

FLAVOURS = {
    "6.1.0-47-cloud-amd64": "linux-image-cloud-amd64 linux-headers-cloud-amd64",
    "6.12.107+deb13-amd64": "linux-image-amd64 linux-headers-amd64",
    "6.12.25+rpt-rpi-2712": "linux-image-rpi-2712 linux-headers-rpi-2712",
    "6.8.0-45-generic": "linux-image-generic linux-headers-generic",
    "6.14.8-2-pve": "proxmox-default-kernel proxmox-default-headers",
}


@pytest.mark.parametrize("kernel", FLAVOURS)
def test_the_packages_named_are_those_of_the_kernel(debian: Host, kernel: str) -> None:
    debian.stub("uname", f"case $1 in -m) echo x86_64 ;; *) echo {kernel} ;; esac")
    said = debian.run("check", "--pcie").text
    assert re.search(rf"sudo apt-get install \w+-headers-{re.escape(kernel)}\n", said)
    assert f"sudo apt-get install {FLAVOURS[kernel]}, and start" in said


CHECKS: dict[str, tuple[dict[str, str], dict[str, str], str, str]] = {
    # notes or stubs, files, the check's name, what it says
    "an old processor": (
        {},
        {"/proc/cpuinfo": "flags : fpu\n"},
        "architecture",
        "bad x86-64 without cx16",
    ),
    "arm64": (
        {"uname": "case $1 in -m) echo aarch64 ;; *) echo 6.12 ;; esac"},
        {},
        "architecture",
        "ok arm64",
    ),
    "32-bit Pi OS": (
        {},
        {"/etc/os-release": "ID=raspbian\nVERSION_ID=12\n"},
        "distribution",
        "bad 32-bit",
    ),
    "a NAS": (
        {"apt-get": ""},
        {"/etc/os-release": "ID=dsm\n"},
        "distribution",
        "warn unknown: it has apt",
    ),
    "no headers": ({}, {}, "headers", f"bad of {KERNEL} are missing"),
    "no stick": ({}, {}, "usb device", "bad no 1a6e:089a or 18d1:9302 on USB"),
    "no driver": ({}, {}, "driver present", "bad no driver for the card"),
    "a driver for another kernel": (
        {},
        {"/var/lib/dkms/gasket/1.0/source/dkms.conf": ""},
        "driver built",
        f"bad not for {KERNEL}",
    ),
    "a driver not loaded": (
        {},
        {f"/lib/modules/{KERNEL}/apex.ko": ""},
        "driver loaded",
        "bad apex is not loaded",
    ),
    "no node": ({}, {"/sys/module/apex/version": "1.2\n"}, "node", "bad no /dev/apex_0"),
    "a node in LXC": (
        {"systemd-detect-virt": "echo lxc"},
        {},
        "node",
        "bad no /dev/apex_0 in this container",
    ),
    "Secure Boot off": (
        {},
        {"/sys/firmware/efi/efivars/SecureBoot-1": "\6\0\0\0\0"},
        "secure boot",
        "ok off",
    ),
    "Secure Boot on": (
        {},
        {"/sys/firmware/efi/efivars/SecureBoot-1": "\6\0\0\0\1"},
        "secure boot",
        "bad on, and the key",
    ),
    "no Docker engine": ({"docker": "exit 1"}, {}, "docker", "bad the engine doesn't answer"),
    "an old Docker": (
        {"docker-info": "19.03.1|[]\n"},
        {},
        "docker",
        "bad 19.03.1; Reef needs 20.10",
    ),
    "a Docker that may refuse threads": (
        {"docker-info": "20.10.5+dfsg1|[]\n"},
        {},
        "docker",
        "warn 20.10.5+dfsg1: before 20.10.10",
    ),
    "a node that is a file": (
        {},
        {"/dev/apex_0": ""},
        "node",
        "bad no device node: /dev/apex_0 is a file",
    ),
    "a node that is a folder": (
        {},
        {"/dev/apex_0/x": ""},
        "node",
        "bad no device node: /dev/apex_0 is a folder",
    ),
    "rootless": (
        {"docker-info": "26.1.5|[name=rootless]\n"},
        {},
        "rootless",
        "bad Docker runs without root",
    ),
    "users mapped": (
        {"docker-info": "26.1.5|[name=userns]\n"},
        {},
        "rootless",
        "warn Docker maps users",
    ),
    "privileged": ({"privileged": ""}, {}, "privileged", "warn /frigate: the driver lets"),
    "a full disk": ({"df": "printf 'Avail\\n 12\\n'"}, {}, "space", "bad 12 MiB free"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_check(debian: Host, name: str) -> None:
    notes, files, check, says = CHECKS[name]
    for note, text in notes.items():
        if (debian.stubs / note).exists() or note == "df":
            debian.stub(note, text)
        else:
            debian.note(note, text)
    for path, text in files.items():
        debian.write(path, text)
    said = debian.run("check", "--pcie", "--usb")
    assert said.status == 1
    assert said.check(check).startswith(says), said.text
    if says.startswith(("bad", "warn")) and "it has apt" not in says:
        assert re.search(rf"  {check}  .*\n +remedy: ", said.text)


@pytest.mark.parametrize("version", ["20.10.10", "20.10.24+dfsg1", "26.1.5", "28.0.0"])
def test_a_docker_that_lets_threads_start_is_well(debian: Host, version: str) -> None:
    debian.note("docker-info", f"{version}|[]\n")
    assert debian.run().check("docker") == f"ok {version}"


def test_a_card_given_to_a_virtual_machine_needs_no_driver_here(debian: Host) -> None:
    debian.card()
    (debian.root / f"sys/bus/pci/devices/{CARD}/driver").symlink_to("../../drivers/vfio-pci")
    said = debian.run()
    assert said.check("pci device").startswith(f"bad {CARD} is held by the driver vfio-pci")
    for check in ("driver present", "driver built", "driver loaded", "node"):
        assert said.check(check) == "-- another driver holds the card"
    assert "held by the driver vfio-pci" in refused(debian, *DRIVER)


def test_a_slow_port_is_named(debian: Host) -> None:
    debian.stick(speed="480")
    assert debian.run().check("usb speed").startswith("warn 2-1: 480 Mbit/s")
    debian.stick(speed="5000")
    assert debian.run().check("usb speed") == "ok 2-1: 5000 Mbit/s"


def test_a_link_that_sleeps_is_named(debian: Host) -> None:
    debian.card(**{"link/l1_aspm": "1"})
    assert debian.run().check("aspm").startswith(f"warn the link of {CARD} may sleep")


def test_a_card_that_may_sleep_is_named(debian: Host) -> None:
    debian.card(**{"power/control": "auto", "d3cold_allowed": "1"})
    said = debian.run().check("sleep")
    assert "power/control is 'auto'" in said
    assert "d3cold_allowed is '1'" in said
    debian.card(**{"power/control": "on", "d3cold_allowed": "0"})
    assert debian.run().check("sleep").startswith("ok")


def test_what_a_raspberry_pi_5_lacks_is_named(debian: Host) -> None:
    debian.write("/proc/device-tree/model", PI5)
    debian.card()
    lines = [
        "dtparam=pciex1",
        "kernel=kernel8.img",
        "dtoverlay=pciex1-compat-pi5,no-mip",
        "dtoverlay=pcie-32bit-dma-pi5",
    ]
    debian.stub("getconf", "echo 16384")
    said = debian.run()
    assert said.check("pi5").startswith("bad lines are missing")
    assert all(line in said.text for line in lines)
    debian.write("/boot/firmware/config.txt", "\n".join(lines))
    assert "pages of 16384 bytes" in debian.run().check("pi5")
    debian.stub("getconf", "echo 4096")
    assert debian.run().check("pi5").startswith("warn pcie_aspm=off is missing")
    debian.write("/boot/firmware/cmdline.txt", "root=/dev/mmcblk0p2 pcie_aspm=off\n")
    assert debian.run().check("pi5").startswith("ok")


def test_who_holds_a_stick_is_named(debian: Host) -> None:
    debian.stick()
    debian.write("/proc/77/cmdline", "frigate\0--detect\0")
    (debian.root / "proc/77/fd").mkdir()
    (debian.root / "proc/77/fd/9").symlink_to("/dev/bus/usb/002/005")
    assert (
        debian.run()
        .check("holder")
        .startswith("warn in use: /dev/bus/usb/002/005: pid 77 (frigate")
    )
    debian.write("/proc/77/cmdline", "python\0-m\0app.devices.worker\0")
    assert debian.run().check("holder").startswith("ok Reef holds")


def test_without_docker_check_says_so(debian: Host) -> None:
    (debian.stubs / "docker").unlink()
    assert debian.run("check", "--usb").check("docker") == "bad none here"


def test_the_checks_that_the_document_names_are_there(debian: Host) -> None:
    text = (ROOT / "docs/host-setup.md").read_text()
    named = set(re.findall(r"^\| `([a-z0-9 ]+)`: ", text, re.MULTILINE))
    said = debian.run("check", "--pcie", "--usb")
    assert len(named) > 10
    assert all(said.check(name) for name in named)


def test_the_options_that_the_documents_name_are_there(debian: Host) -> None:
    offered = set(re.findall(r"--[a-z-]+", debian.run("--help").text))
    for name in ("README.md", "docs/host-setup.md", "docs/container.md"):
        commands = re.findall(r"host-setup\.sh ([^`\n]*)", (ROOT / name).read_text())
        assert set(re.findall(r"--[a-z-]+", " ".join(commands))) <= offered
