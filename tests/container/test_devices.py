"""Devices in containers: they can be opened with the overlay, and can't without any part of it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client import ENVIRON
from tests.container.engine import IMAGE, INSIDE, LABEL, Container, told
from tests.container.nodes import APEX_GID, MAY_OPEN, USB, USB_GID, Dev
from tests.container.test_compose import COMPOSES, Compose, missing
from tests.support import ROOT

CARD, STICK = "/dev/apex_0", "/dev/bus/usb/002/005"


def write_overlay(dev: Dev, checkout: Path) -> str:
    """Run devices.sh in a folder with what it needs; what it wrote."""
    if not checkout.exists():
        shutil.copytree(ROOT / "scripts", checkout / "scripts")
        shutil.copy(ROOT / "compose.yaml", checkout)
    subprocess.run(
        [checkout / "scripts" / "devices.sh", "compose"],
        env=ENVIRON | {"HOST_ROOT": str(dev.root)},
        check=True,
        timeout=60,
    )
    return (checkout / "compose.devices.yaml").read_text()


@pytest.fixture(scope="module")
def dev(image: str, tmp_path_factory: pytest.TempPathFactory) -> Dev:
    """Two cards, a stick, and another stick that is none of the group's."""
    dev = Dev(tmp_path_factory.mktemp("host") / "root")
    dev.card(0)
    dev.card(1)
    dev.stick(5)
    dev.add("/dev/bus/usb/002/009", USB, 136, 0o664, 0)
    return dev


@pytest.fixture(scope="module", params=COMPOSES)
def service(
    request: pytest.FixtureRequest, dev: Dev, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """The service, as Compose starts it with what devices.sh wrote."""
    command = COMPOSES[request.param]
    if why := missing(command):
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("compose")
    checkout = folder / "checkout"
    write_overlay(dev, checkout)
    compose = Compose(command, folder)
    compose.read(checkout / "compose.yaml", checkout / "compose.devices.yaml")
    try:
        compose("up", "--detach", "--no-build")
        yield Container(compose("ps", "--quiet", "reef").strip())
    finally:
        compose("down", "--volumes", "--timeout", "5")


def test_every_card_may_be_opened_by_a_user_without_rights(service: Container) -> None:
    assert service.inside("whoami") == [10001, 10001]
    for path in ("/dev/apex_0", "/dev/apex_1"):
        assert service.inside("opened", path) in MAY_OPEN
    host = service.inspect()["HostConfig"]
    assert not host["Privileged"]
    assert not host["CapAdd"]


def test_another_stick_than_the_groups_may_not_be_opened(service: Container) -> None:
    assert service.inside("opened", "/dev/bus/usb/002/009") == "EACCES"


def test_a_stick_is_followed_when_its_firmware_gives_it_another_number(
    service: Container, dev: Dev
) -> None:
    assert service.inside("opened", STICK) in MAY_OPEN
    dev.remove(STICK)
    dev.stick(6)
    assert service.inside("opened", STICK) == "ENOENT"
    assert service.inside("opened", "/dev/bus/usb/002/006") in MAY_OPEN
    dev.remove("/dev/bus/usb/002/006")
    dev.stick(5)


def opened(path: str, *options: str) -> str:
    """What comes of opening a node in a container with these options."""
    command = ("--entrypoint", "python3", IMAGE, "-c", INSIDE, "opened", json.dumps([path]))
    said = told("run", "--rm", "--label", LABEL, "--network", "none", *options, *command)
    return str(json.loads(said))


def test_a_card_needs_the_device_and_the_group(dev: Dev) -> None:
    device = ("--device", f"{dev.root}{CARD}:{CARD}")
    group = ("--group-add", str(APEX_GID))
    assert opened(CARD) == "ENOENT"
    assert opened(CARD, *group) == "ENOENT"
    assert opened(CARD, *device) == "EACCES"
    assert opened(CARD, *device, *group) in MAY_OPEN


def test_a_stick_needs_the_bus_the_rule_and_the_group(dev: Dev) -> None:
    bus = ("--volume", f"{dev.root}/dev/bus/usb:/dev/bus/usb")
    rule = ("--device-cgroup-rule", "c 189:* rmw")
    group = ("--group-add", str(USB_GID))
    assert opened(STICK, *rule, *group) == "ENOENT"
    assert opened(STICK, *bus, *group) == "EPERM"
    assert opened(STICK, *bus, *rule) == "EACCES"
    assert opened(STICK, *bus, *rule, *group) in MAY_OPEN
