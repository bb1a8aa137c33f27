"""devices.sh: what it writes from what a host has, and what it leaves alone."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.host.hosts import CARD, Host, make_host

APEX = 120
GROUP = 321
OWN = "COMPOSE_FILE=compose.yaml:compose.devices.yaml"
ANNOUNCED = "# Written by scripts/devices.sh; a line that you change is yours and stays."


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return make_host(tmp_path)


def node(host: Host, name: str, group: int = GROUP) -> None:
    """A card's node."""
    if os.getuid():
        pytest.skip("only root can make a device node")
    path = host.root / "dev" / name
    path.parent.mkdir(exist_ok=True)
    os.mknod(path, 0o020660, os.makedev(APEX, int(name[-1])))
    os.chown(path, 0, group)


def write(host: Host) -> str:
    """Run it; what it said."""
    said = host.run("compose", script="scripts/devices.sh")
    assert said.status == 0, said.text
    assert host.run("told", script="scripts/devices.sh").status == 0
    return said.text


def service(host: Host) -> dict[str, object]:
    """What it has written for the container."""
    text = (host.checkout / "compose.devices.yaml").read_text()
    return dict(yaml.safe_load(text)["services"]["reef"])


def env(host: Host) -> str:
    return (host.checkout / ".env").read_text()


def test_where_there_never_was_an_edge_tpu_nothing_is_written(host: Host) -> None:
    before = host.files()
    assert write(host) == ""
    assert host.files() == before
    assert host.run("list", script="scripts/devices.sh").text == ""


def test_every_device_is_listed(host: Host) -> None:
    host.card()
    host.stick()
    host.card("0000:04:00.0", vendor="0x8086")
    assert host.run("list", script="scripts/devices.sh").text == f"PCIe {CARD}\nUSB 2-1\n"


def test_every_card_is_handed_on_with_its_group(host: Host) -> None:
    node(host, "apex_0")
    node(host, "apex_1")
    write(host)
    assert service(host) == {
        "devices": [f"{host.root}/dev/{name}:/dev/{name}" for name in ("apex_0", "apex_1")],
        "group_add": [f"${{REEF_APEX_GID:-{GROUP}}}"],
    }
    assert env(host) == f"{ANNOUNCED}\n{OWN}\nREEF_APEX_GID={GROUP}\n"


def test_for_a_stick_the_bus_is_handed_on(host: Host) -> None:
    host.stick()
    os.chown(host.root / "dev/bus/usb/002/005", -1, os.getgid() or GROUP)
    write(host)
    assert service(host) == {
        "volumes": [f"{host.root}/dev/bus/usb:/dev/bus/usb"],
        "device_cgroup_rules": ["c 189:* rmw"],
        "group_add": [f"${{REEF_USB_GID:-{os.getgid() or GROUP}}}"],
    }


def test_set_up_for_usb_the_bus_is_handed_on_before_there_is_a_stick(host: Host) -> None:
    host.write("/etc/udev/rules.d/99-reef-usb.rules")
    host.write("/etc/group", "apex:x:77:\n")
    (host.root / "dev/bus/usb").mkdir(parents=True)
    write(host)
    assert service(host)["group_add"] == ["${REEF_USB_GID:-77}"]


def test_a_device_that_is_roots_alone_is_said_to_be(host: Host) -> None:
    node(host, "apex_0", group=0)
    assert "root's alone" in write(host)
    assert "group_add" not in service(host)


def test_run_again_it_writes_nothing(host: Host) -> None:
    node(host, "apex_0")
    write(host)
    assert write(host) == ""


def test_a_card_that_is_gone_is_left_out(host: Host) -> None:
    node(host, "apex_0")
    write(host)
    before = env(host)
    (host.root / "dev/apex_0").unlink()
    write(host)
    assert service(host) == {}
    assert env(host) == before
    node(host, "apex_0", group=400)
    write(host)
    assert env(host) == before.replace(f"={GROUP}", "=400")


def test_what_a_user_wrote_into_env_stays(host: Host) -> None:
    own = "# my settings\nREEF_PORT=8080\nREEF_APEX_GID=999\n"
    (host.checkout / ".env").write_text(own)
    node(host, "apex_0")
    assert "your REEF_APEX_GID stays: 999" in write(host)
    assert env(host) == f"{own}\n{ANNOUNCED}\n{OWN}\n"


def test_what_a_user_changed_in_env_stays(host: Host) -> None:
    node(host, "apex_0")
    write(host)
    changed = env(host).replace(OWN, "COMPOSE_FILE=compose.yaml:mine.yaml")
    (host.checkout / ".env").write_text(changed)
    assert "with :compose.devices.yaml behind it, it follows the devices" in write(host)
    assert env(host) == changed


def test_a_kept_env_that_names_the_overlay_gets_one_without_any_device(host: Host) -> None:
    """A fresh clone with the .env of before: Compose can't do anything without that file."""
    kept = "COMPOSE_FILE=compose.yaml:compose.devices.yaml\n"
    (host.checkout / ".env").write_text(kept)
    write(host)
    assert service(host) == {}
    assert env(host) == kept


def test_an_env_that_windows_wrote_is_followed(host: Host) -> None:
    node(host, "apex_0")
    write(host)
    before = env(host)
    windows = f"\ufeff{before}".replace("\n", "\r\n").encode()
    (host.checkout / ".env").write_bytes(windows)
    assert write(host) == ""
    (host.root / "dev/apex_0").unlink()
    node(host, "apex_0", group=400)
    write(host)
    assert env(host) == before.replace(f"={GROUP}", "=400")
    assert host.run("remove", script="scripts/devices.sh").status == 0
    assert not (host.checkout / ".env").exists()


def test_an_override_file_is_not_lost(host: Host) -> None:
    (host.checkout / "compose.override.yaml").write_text("services: {}\n")
    node(host, "apex_0")
    write(host)
    files = "compose.yaml:compose.override.yaml:compose.devices.yaml"
    assert f"\nCOMPOSE_FILE={files}\n" in env(host)


def test_an_overlay_of_the_users_own_stays(host: Host) -> None:
    node(host, "apex_0")
    own = host.checkout / "compose.devices.yaml"
    own.write_text("services: {reef: {devices: [/dev/apex_7]}}\n")
    assert "is yours" in write(host)
    assert own.read_text().startswith("services")
    assert not (host.checkout / ".env").exists()


def test_removed_the_users_lines_stay(host: Host) -> None:
    node(host, "apex_0")
    (host.checkout / ".env").write_text("REEF_PORT=8080\n")
    write(host)
    assert host.run("remove", script="scripts/devices.sh").status == 0
    assert env(host).strip() == "REEF_PORT=8080"
    assert not (host.checkout / "compose.devices.yaml").exists()


def cdi(host: Host) -> dict[str, dict[str, object]]:
    """The devices of the CDI specification, by name."""
    said = host.run("cdi", script="scripts/devices.sh")
    assert said.status == 0, said.text
    spec = json.loads((host.root / "etc/cdi/reef.json").read_text())
    assert (spec["cdiVersion"], spec["kind"]) == ("0.5.0", "reef.dev/edgetpu")
    return {device["name"]: device["containerEdits"] for device in spec["devices"]}


def test_cdi_has_every_device_and_all(host: Host) -> None:
    node(host, "apex_0")
    host.stick()
    card, stick = {"path": "/dev/apex_0"}, {"path": "/dev/bus/usb/002/005"}
    assert cdi(host) == {
        "apex_0": {"deviceNodes": [card]},
        "usb-2-1": {"deviceNodes": [stick]},
        "all": {"deviceNodes": [card, stick], "env": ["EDGETPU_DEVICES=apex_0,usb-2-1"]},
    }


def test_with_no_device_cdi_still_has_all(host: Host) -> None:
    assert cdi(host) == {"all": {"deviceNodes": [], "env": ["EDGETPU_DEVICES=none"]}}
