"""Host setup on a real kernel with systemd and udev: virtual sticks, a virtual card, real Docker.

The tests tell one story, in this order, in one machine.
"""

import json
import re

import pytest

from tests.vm.machine import Machine

SETUP = "/opt/reef/host-setup/host-setup.sh"
GADGET = "/opt/reef/tests/vm/gadget.sh"
CARD = "1ac1:00:00.0"
PCI = f"/sys/bus/pci/devices/{CARD}"
BUILD_S = 1200
IMAGE = """
set -e
rm -rf /tmp/image; mkdir -p /tmp/image/bin; cp /bin/busybox /tmp/image/bin/sh
ln -s sh /tmp/image/bin/sleep; ln -s sh /tmp/image/bin/id; ln -s sh /tmp/image/bin/cat
cat >/tmp/image/serve <<'END'
try() {
  for node in /dev/apex_* /dev/bus/usb/*/*; do
    [ -c "$node" ] || continue
    if (: <>"$node") 2>/dev/null; then echo "Detected $node"; else echo "refused $node"; fi
  done
}
[ "${1:-}" != try ] || { try; exit; }
trap 'echo drained; exit 0' TERM
echo "serving as $(id -u)"
try
while :; do sleep 1; done
END
tar --create --directory /tmp/image . |
  docker import --change 'ENTRYPOINT ["sh", "/serve"]' - reef:local
"""
"""In place of Reef's image, which would be too slow here: it says what it can open."""


def checks(machine: Machine, *options: str) -> dict[str, str]:
    """What `check` says, by name: the verdict and the reason."""
    said = machine.run(f"{SETUP} check {' '.join(options)}").text
    found = re.findall(r"^(ok|warn|bad|--) +([a-z0-9]+(?: [a-z]+)*)  +(\S.*)$", said, re.MULTILINE)
    return {name: f"{verdict} {reason}" for verdict, name, reason in found}


def node(machine: Machine, path: str) -> str:
    """Group and mode of a device node, and its numbers in hexadecimal."""
    return machine(f"stat --format '%G %a %t:%T' {path}")


def stick(machine: Machine, vendor: str, product: str) -> tuple[str, str]:
    """Plug a stick in; its folder in sysfs, and its node."""
    folder = machine(f"{GADGET} {vendor} {product}").splitlines()[-1]
    number = machine(f"printf '%03d/%03d' $(cat {folder}/busnum) $(cat {folder}/devnum)")
    return folder, f"/dev/bus/usb/{number}"


# ---------------------------------------------------------------------------- USB


def test_without_an_edge_tpu_check_says_so_and_install_stops(machine: Machine) -> None:
    found = checks(machine)
    assert (found["pci device"], found["usb device"]) == ("-- none", "-- none")
    assert found["docker"].startswith("bad the engine doesn't answer")  # not started yet
    assert not [said for name, said in found.items() if said[:3] == "bad" and name != "docker"]
    said = machine.run(f"{SETUP} install --yes")
    assert said.status == 3
    assert "plug it in" in said.text


def test_before_the_setup_a_stick_is_roots_and_may_sleep(machine: Machine) -> None:
    folder, path = stick(machine, "1a6e", "089a")
    assert node(machine, path).startswith("root 664 ")
    assert int(machine(f"cat {folder}/power/autosuspend_delay_ms")) > 0
    assert checks(machine)["permissions"].startswith("bad ")


def test_the_setup_acts_on_a_stick_that_is_there_already(machine: Machine) -> None:
    machine(f"echo auto >{machine(f'{GADGET} 1a6e 089a')}/power/control")
    said = machine.run(f"{SETUP} install --yes")
    assert said.status == 0, said.text
    assert "udevadm trigger" in said.text
    folder, path = stick(machine, "1a6e", "089a")
    expect_stick(machine, folder, path)
    found = checks(machine)
    assert found["usb device"].startswith("ok 1a6e:089a at ")
    assert {found[name].split()[0] for name in ("permissions", "sleep")} == {"ok"}


def test_when_its_firmware_is_loaded_it_comes_back_with_the_same_rights(machine: Machine) -> None:
    _, before = stick(machine, "1a6e", "089a")
    folder, path = stick(machine, "18d1", "9302")
    assert path != before
    expect_stick(machine, folder, path)


def expect_stick(machine: Machine, folder: str, path: str) -> None:
    """It is the group's, and never sleeps."""
    assert re.fullmatch(r"apex 664 bd:\w+", node(machine, path))
    assert machine(f"cat {folder}/power/control") == "on"
    assert machine(f"cat {folder}/power/autosuspend_delay_ms") == "-1"


def test_another_stick_stays_as_it_was(machine: Machine) -> None:
    folder, path = stick(machine, "0525", "a4a7")
    assert node(machine, path).startswith("root 664 ")
    assert int(machine(f"cat {folder}/power/autosuspend_delay_ms")) > 0
    machine(f"{GADGET} out")


def test_set_up_for_usb_the_container_gets_the_bus(machine: Machine) -> None:
    written = machine("cat /opt/reef/compose.devices.yaml")
    assert "- /dev/bus/usb:/dev/bus/usb" in written
    group = machine("getent group apex | cut -d: -f3")
    assert f"REEF_USB_GID={group}" in machine("cat /opt/reef/.env")


# ---------------------------------------------------------------------------- PCIe


def test_a_card_is_seen_and_what_it_lacks_is_named(machine: Machine) -> None:
    machine("modprobe virtual_card")
    assert machine(f"cat {PCI}/vendor {PCI}/device").split() == ["0x1ac1", "0x089a"]
    assert machine(f"cat {PCI}/d3cold_allowed") == "1"
    found = checks(machine)
    assert found["pci device"] == f"ok 1ac1:089a at {CARD}"
    for name in ("driver present", "driver built", "driver loaded", "node"):
        assert found[name].startswith("bad ")


def test_the_driver_is_built_signed_and_loaded_and_the_rules_act(machine: Machine) -> None:
    said = machine.run(f"{SETUP} install --pcie --usb --driver-source /opt/source --yes", BUILD_S)
    assert said.status == 0, said.text
    assert "to see that it can be" in said.text
    assert re.search(r"^gasket/\S+, .*: installed", machine("dkms status"), re.MULTILINE)
    for name in ("gasket", "apex"):
        assert machine(f"modinfo --field sig_id {name}") == "PKCS#7"
        assert "/updates/dkms/" in machine(f"modinfo --filename {name}")
    expect_card(machine)
    found = checks(machine)
    bad = {name: said for name, said in found.items() if said.startswith("bad")}
    assert set(bad) <= {"docker", "usb device"}
    assert found["node"] == "ok /dev/apex_0"


def expect_card(machine: Machine) -> None:
    """Its node is the group's, and it never sleeps."""
    machine.wait_until("test -c /dev/apex_0")
    machine("udevadm settle")
    assert node(machine, "/dev/apex_0") == "apex 660 78:0"  # 0x78 is 120
    assert machine(f"cat {PCI}/power/control {PCI}/d3cold_allowed").split() == ["on", "0"]
    assert machine(f"readlink {PCI}/driver").endswith("/apex")


def test_a_user_of_the_group_may_open_the_card_and_nobody_else(machine: Machine) -> None:
    opened = "sh -c ': <>/dev/apex_0'"
    machine(
        f"setpriv --reuid 10001 --regid $(getent group apex | cut -d: -f3) --clear-groups {opened}"
    )
    said = machine.run(f"setpriv --reuid 10001 --regid 10001 --clear-groups {opened}")
    assert said.status != 0
    assert "Permission denied" in said.text


def test_who_holds_the_card_is_named(machine: Machine) -> None:
    machine("systemd-run --unit holder sh -c 'exec 5<>/dev/apex_0; exec sleep 1000'")
    machine.wait_until("grep 1 /sys/class/apex/apex_0/is_device_owned")
    assert re.match(r"warn in use: /dev/apex_0: pid \d+ \(sleep 1000\)", checks(machine)["holder"])
    machine("systemctl stop holder")
    machine.wait_until("grep 0 /sys/class/apex/apex_0/is_device_owned")


def test_removed_and_found_again_the_card_is_as_before(machine: Machine) -> None:
    machine(f"echo 1 >{PCI}/remove")
    machine.wait_until("test ! -e /dev/apex_0")
    assert checks(machine, "--pcie")["pci device"].startswith("bad no 1ac1:089a")
    machine("echo 1 >/sys/bus/pci/rescan")
    expect_card(machine)


def test_installed_once_more_nothing_is_done(machine: Machine) -> None:
    said = machine.run(f"{SETUP} install --pcie --usb --yes")
    assert said.status == 0
    assert "nothing to do" in said.text


def test_a_kernel_update_builds_the_driver_again(machine: Machine) -> None:
    """What the kernel's package runs when it is installed; the driver is missing for it."""
    version = machine("ls /var/lib/dkms/gasket | grep -v '^kernel-' | head -n 1")
    machine(f"dkms unbuild gasket/{version} -k $(uname -r)", BUILD_S)
    assert checks(machine)["driver built"].startswith(("bad", "ok it is loaded"))
    machine("DEB_MAINT_PARAMS=configure /etc/kernel/postinst.d/dkms $(uname -r)", BUILD_S)
    assert "/updates/dkms/" in machine("modinfo --filename apex")


# ---------------------------------------------------------------------------- Docker and systemd


@pytest.fixture(scope="module")
def docker(machine: Machine) -> str:
    """Docker runs, and has an image."""
    machine("systemctl enable --now docker", 300)
    return machine(IMAGE, 300)


@pytest.mark.service
@pytest.mark.usefixtures("docker")
def test_cdi_hands_every_device_to_a_container(machine: Machine) -> None:
    said = machine.run(f"{SETUP} install --pcie --usb --cdi --yes", 300)
    assert said.status == 0, said.text
    machine(f"{GADGET} 18d1 9302")
    machine.wait_until("grep -q usb- /etc/cdi/reef.json")  # udev has it written anew
    spec = json.loads(machine("cat /etc/cdi/reef.json"))
    names = [device["name"] for device in spec["devices"]]
    assert names[0] == "apex_0"
    assert names[-1] == "all"
    said = machine.run(
        "docker run --rm --network none --user 10001 --device reef.dev/edgetpu=all reef:local try",
        300,
    )
    assert "Detected /dev/apex_0" in said.text, said.text
    assert "Detected /dev/bus/usb/" in said.text, said.text
    machine(f"{GADGET} out")
    machine.wait_until("! grep -q usb- /etc/cdi/reef.json")


@pytest.mark.service
@pytest.mark.usefixtures("docker")
def test_the_service_starts_with_the_computer_on_the_card(machine: Machine) -> None:
    machine("echo virtual_card >/etc/modules-load.d/card.conf")
    said = machine.run(f"{SETUP} install --pcie --usb --service --yes", 300)
    assert said.status == 0, said.text
    machine.reboot()
    expect_card(machine)
    expect_service(machine, "Detected /dev/apex_0")
    assert "- /dev/apex_0:/dev/apex_0" in machine("cat /opt/reef/compose.devices.yaml")


def expect_service(machine: Machine, line: str) -> None:
    """It serves, as a user without rights, and the journal says on what."""
    machine.wait_until(
        "docker ps --format '{{.Image}} {{.State}}' | grep 'reef:local running'", 400
    )
    machine.wait_until(f"journalctl --unit reef --output cat | tail -n 1 | grep '^{line}'", 300)
    log = machine("journalctl --unit reef --output cat")
    assert "serving as 10001" in log


@pytest.mark.service
def test_when_the_server_ends_it_is_started_again(machine: Machine) -> None:
    before = machine("docker ps --quiet")
    machine(f"docker kill {before}")
    machine.wait_until("docker ps --format '{{.Status}}' | grep '^Up'", 300)
    machine("systemctl is-active reef")


@pytest.mark.service
def test_a_card_that_goes_leaves_the_service_on_the_cpu(machine: Machine) -> None:
    machine(f"echo 1 >{PCI}/remove")
    machine.wait_until("! grep apex_0 /opt/reef/compose.devices.yaml", 300)
    expect_service(machine, "serving as 10001")
    machine("echo 1 >/sys/bus/pci/rescan")
    expect_card(machine)
    expect_service(machine, "Detected /dev/apex_0")


@pytest.mark.service
def test_a_stop_takes_the_container_down(machine: Machine) -> None:
    machine("systemctl stop reef", 300)
    assert machine("docker ps --all --quiet") == ""
    assert "drained" in machine("journalctl --unit reef --output cat")


@pytest.mark.service
def test_a_start_without_the_card_serves_on_the_cpu(machine: Machine) -> None:
    machine("rm /etc/modules-load.d/card.conf")
    machine.reboot()
    assert machine.run("ls /dev/apex_0").status != 0
    expect_service(machine, "serving as 10001")


@pytest.mark.service
def test_uninstall_takes_everything_back(machine: Machine) -> None:
    said = machine.run(f"{SETUP} uninstall --yes", 300)
    assert said.status == 0, said.text
    for left in (
        "ls /etc/udev/rules.d/*reef* /etc/systemd/system/reef{,-devices}.service /etc/cdi",
        "ls /opt/reef/.env",
        "ls /opt/reef/compose.devices.yaml /var/lib/reef-host-setup /usr/src/gasket-*",
        "getent group apex",
        "modinfo apex",
        "systemctl is-enabled reef",
    ):
        assert machine.run(left).status != 0, left
        assert not re.search(r"^/", machine.run(left).text, re.MULTILINE), left
    _, path = stick(machine, "18d1", "9302")
    assert node(machine, path).startswith("root 664 ")
