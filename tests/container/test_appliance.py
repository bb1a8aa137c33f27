"""`make up` and its kin, from this checkout; project and image have names of their own."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client import free_port
from tests.container.checkout import BUILD_S, Checkout, curl_line, detects
from tests.container.engine import Container, docker, told
from tests.container.nodes import MAY_OPEN, Dev
from tests.container.test_compose import COMPOSES, missing
from tests.support import ROOT

LACKS = "this image lacks libedgetpu"
KEY = "correct-horse-battery-staple"

pytestmark = pytest.mark.timeout(BUILD_S, func_only=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout.make_own(tmp_path / "host")


@pytest.fixture
def builder(image: str, checkout: Checkout) -> Iterator[Checkout]:
    """The checkout, which builds: from the builder's cache where the image was built before.
    Afterwards, nothing that it made is left."""
    if "REEF_IMAGE" in os.environ:
        pytest.skip("it builds images, but REEF_IMAGE names the one to test")
    yield checkout
    checkout.remove()


@pytest.fixture
def copy(builder: Checkout, tmp_path: Path) -> Checkout:
    """The builder in a folder of its own, whose name has a space, without the Edge TPU's files."""
    copied = builder.copied_to(tmp_path / "my reef")
    copied.environ["EDGETPU"] = "none"
    return copied


@contextmanager
def listening() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody has."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_up_ends_with_a_curl_line_that_works_and_down_removes_it(builder: Checkout) -> None:
    up = builder.make("up")
    assert up.status == 0, up.err
    address = f"http://127.0.0.1:{builder.environ['REEF_PORT']}"
    assert f"Reef is ready: {address}\n" in up.out
    assert re.search(r"^device cpu \(.+\): ready; efficientdet_lite0$", up.out, re.MULTILINE)
    assert detects(curl_line(up.out), builder)
    status = builder.make("status")
    assert status.status == 0
    assert address in status.out
    doctor = builder.make("doctor")
    assert re.search(r"^OK      Docker .+ and Compose .+$", doctor.out, re.MULTILINE)
    assert "no Reef answers" not in doctor.out
    down = builder.make("down")
    assert down.status == 0
    for what in ("status", "logs"):
        without = builder.make(what)
        assert without.status != 0
        assert "there is no container; 'make up' makes and starts it" in without.err


@pytest.mark.parametrize("where", ["shell", "file"])
def test_with_a_key_the_curl_line_that_is_printed_brings_it(
    image: str, checkout: Checkout, tmp_path: Path, where: str
) -> None:
    """`make up` and `make status` print the same. The key comes from the shell, or from a file of
    Reef's, which only the user can know."""
    (tmp_path / "reef.yaml").write_text(f"api_key: {KEY}\n")
    (tmp_path / "reef.yaml").chmod(0o644)
    tmp_path.chmod(0o755)
    from_file = {"REEF_MODELS": str(tmp_path), "REEF_CONFIG": "/models/reef.yaml"}
    environ = checkout.environ | {"REEF_IMAGE": image}
    environ |= {"REEF_API_KEY": KEY} if where == "shell" else from_file
    newer = docker("compose", "version").status == 0
    compose = ["docker", "compose"] if newer else ["docker-compose"]
    try:
        subprocess.run(
            [*compose, "up", "--detach", "--no-build"],
            cwd=ROOT, env=environ, check=True, capture_output=True,
        )  # fmt: skip
        for _ in range(20):
            status = Checkout(environ, image).make("status")
            if status.status == 0:
                break
            time.sleep(0.5)
        assert status.status == 0, status.err
        assert KEY not in status.out + status.err
        line = curl_line(status.out)
        line = line.replace("YOUR_KEY", KEY) if where == "file" else line
        assert detects(line, Checkout(environ, image))
    finally:
        subprocess.run(
            [*compose, "down", "--volumes"], cwd=ROOT, env=environ, check=True, capture_output=True
        )


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("in_file", "port", "said"),
    [
        (f"REEF_APIKEY={KEY}\n", "5056", "REEF_APIKEY in .env: no such setting"),
        ("REEF_HOST=0.0.0.0\n", "5056", "REEF_BIND names the address"),
        ("REEF_PORT 5056\n", "5056", ".env, line 1: takes the form NAME=value"),
        ("", "five", "REEF_PORT: takes a whole number from 1 to 65535, not 'five'"),
    ],
    ids=["misspelt", "fixed in the container", "no assignment", "no port"],
)
def test_up_refuses_a_wrong_setting_before_it_builds(
    in_file: str, port: str, said: str, checkout: Checkout, tmp_path: Path
) -> None:
    copied = checkout.copied_to(tmp_path / "copy")
    copied.env_file.write_text(in_file)
    up = copied.make("up", REEF_PORT=port)
    assert up.status != 0
    assert said in up.err
    assert "building" not in up.err


def test_up_says_why_it_failed_with_the_last_lines_of_the_log(copy: Checkout) -> None:
    """What only shows once it serves: an Edge TPU was asked for, and none is there."""
    (copy.folder / "scripts/appliance.sh").write_text(
        (ROOT / "scripts/appliance.sh").read_text().replace("READY_S=120", "READY_S=3")
    )
    up = copy.make("up", f"PORT={free_port()}", REEF_DEVICES="usb", REEF_CPU_FALLBACK="off")
    assert up.status != 0
    assert "not ready after 3 s: " in up.err
    assert "the last lines of its log" in up.err
    assert "Listening on 0.0.0.0 port 5000" in up.err
    assert "Traceback" not in up.err
    assert "Reef is ready" not in up.out


def test_what_stands_on_makes_command_line_stays_until_it_is_changed(copy: Checkout) -> None:
    first, second = free_port(), free_port()
    up = copy.make("up", f"PORT={first}")
    assert "REEF_PORT is kept in .env" in up.err
    assert copy.env_file.read_text() == f"REEF_PORT={first}\n"
    assert copy.env_file.stat().st_mode & 0o077 == 0
    again = copy.make("up", REEF_MAX_RESULTS="7")
    assert f"Reef is ready: http://127.0.0.1:{first}\n" in again.out
    assert "of the shell, for this time only: REEF_IMAGE REEF_MAX_RESULTS" in again.err
    changed = copy.make("up", f"PORT={second}", f"REEF_API_KEY={KEY}", "REEF_BIND=0.0.0.0")
    assert f"Reef is ready: http://127.0.0.1:{second}\n" in changed.out
    lines = sorted(copy.env_file.read_text().splitlines())
    assert lines == [f"REEF_API_KEY={KEY}", "REEF_BIND=0.0.0.0", f"REEF_PORT={second}"]
    assert KEY not in changed.out + changed.err
    assert detects(curl_line(changed.out), copy)
    assert "has no key" not in changed.err
    assert "other computers reach it, and it has no key" in copy.make("up", "REEF_API_KEY=").err


def test_an_env_that_windows_wrote_names_the_image_that_is_built(copy: Checkout) -> None:
    del copy.environ["REEF_IMAGE"], copy.environ["EDGETPU"]
    port = free_port()
    text = f'\ufeffREEF_IMAGE="{copy.image}"\r\nexport EDGETPU = none\r\nREEF_PORT={port}\r\n'
    text += f"REEF_API_KEY={KEY}\r\n"
    copy.env_file.write_bytes(text.encode())
    up = copy.make("up")
    assert up.status == 0, up.err
    assert f"Reef is ready: http://127.0.0.1:{port}\n" in up.out
    (container,) = copy.containers()
    assert Container(container).inspect()["Config"]["Image"] == copy.image
    assert KEY not in up.out
    assert detects(curl_line(up.out), copy)


def test_a_wrong_setting_or_a_taken_port_leaves_what_serves_alone(copy: Checkout) -> None:
    assert copy.make("up", f"PORT={free_port()}").status == 0
    kept, serving = copy.env_file.read_text(), copy.containers()
    with listening() as taken:
        refused = copy.make("up", f"PORT={taken}")
    assert refused.status != 0
    assert f"port {taken} of 127.0.0.1 can't be opened" in refused.err
    for chosen, says in (
        ("PORT=99999", "REEF_PORT: takes a whole number from 1 to 65535, not '99999'"),
        ("PORT=abc", "REEF_PORT: takes a whole number from 1 to 65535, not 'abc'"),
        ("REEF_MEMORY=lots", "REEF_MEMORY: takes a number of megabytes or gigabytes"),
        ("REEF_STOP_GRACE=long", "REEF_STOP_GRACE: takes a time, as 30s or 1m30s, not 'long'"),
        ("REEF_BIND=localhost", "REEF_BIND: takes an address of this computer"),
        ("REEF_BIND=203.0.113.7", "this computer has no address 203.0.113.7; correct REEF_BIND"),
    ):
        never = copy.make("up", chosen)
        assert never.status != 0
        assert says in never.err
    wrong = copy.make("up", "REEF_MIN_SCORE=2", "REEF_QUEUE=none")
    assert wrong.status != 0
    assert "REEF_MIN_SCORE" in wrong.err
    assert "REEF_QUEUE" in wrong.err
    assert "what served before still does" in wrong.err
    unreadable = copy.make("up", "REEF_MODEL=/models/none.tflite")
    assert unreadable.status != 0
    assert "/models/none.tflite" in unreadable.err
    assert copy.containers() == serving
    assert Container(serving[0]).is_ready()
    assert copy.env_file.read_text() == kept


def test_a_folder_that_is_missing_is_refused_and_not_made(copy: Checkout) -> None:
    missing_folder = copy.folder / "no such folder"
    up = copy.make("up", f"REEF_MODELS={missing_folder}")
    assert up.status != 0
    assert f"REEF_MODELS: there is no folder {missing_folder}; create it" in up.err
    assert not missing_folder.exists()


def test_models_come_from_a_volume_that_is_named(copy: Checkout, volume: str) -> None:
    none = copy.make("up", "REEF_MODELS=no-such-volume")
    assert none.status != 0
    assert "there is no volume no-such-volume; 'docker volume create" in none.err
    up = copy.make("up", f"REEF_MODELS={volume}", f"PORT={free_port()}")
    assert up.status == 0, up.err
    (container,) = copy.containers()
    mounts = Container(container).inspect()["Mounts"]
    assert {each["Destination"]: each.get("Name") for each in mounts}["/models"] == volume
    assert copy.make("down").status == 0
    assert docker("volume", "inspect", volume).status == 0


@pytest.mark.parametrize("version", COMPOSES)
def test_a_fresh_clone_with_a_kept_env_can_be_taken_down(
    version: str, copy: Checkout, tmp_path: Path
) -> None:
    if why := missing(COMPOSES[version]):
        pytest.skip(why)
    if version == "1.29":
        copy.environ["DOCKER_CONFIG"] = str(tmp_path)  # where no plugin is
    copy.env_file.write_text("COMPOSE_FILE=compose.yaml:compose.devices.yaml\n")
    down = copy.make("down")
    assert down.status == 0, down.err


def test_a_checkout_that_only_its_owner_can_read_becomes_an_image_that_works(
    copy: Checkout,
) -> None:
    """umask 077. The build's last step serves a picture as nobody in particular."""
    for path in copy.folder.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    built = copy.make("image")
    assert built.status == 0, built.err
    modes = told(
        *("run", "--rm", "--entrypoint", "find", copy.image),
        *("/opt/reef", "-not", "-type", "l", "-not", "-perm", "-o+r"),
    )
    assert modes == ""


def test_an_image_that_can_not_be_pulled_is_told_as_that(copy: Checkout) -> None:
    up = copy.make(
        *("up", f"PORT={free_port()}", "COMPOSE_FILE=compose.yaml:compose.tls.yaml"),
        *("REEF_TLS_NAME=reef.test", f"REEF_TLS_PORT={free_port()}", "REEF_CADDY=127.0.0.1:9/none"),
    )
    assert up.status != 0
    assert "127.0.0.1:9/none could not be pulled" in up.err
    assert "REEF_CADDY" in up.err
    assert "PORT=" not in up.err
    assert copy.containers() == []


def test_without_an_edge_tpu_it_goes_on_without_its_files_and_says_so(
    builder: Checkout,
) -> None:
    built = builder.make("image", EDGETPU_MIRROR=builder.mirror)
    assert built.status == 0, built.err
    assert LACKS in built.err
    assert "127.0.0.1:9 could not be reached at the build" in built.err
    label = '{{index .Config.Labels "reef.edgetpu"}}'
    assert LACKS in told("image", "inspect", "--format", label, builder.image)


@pytest.mark.parametrize("bus", ["PCIe", "USB"])
def test_with_an_edge_tpu_it_stops_and_says_why(
    builder: Checkout, tmp_path: Path, bus: str
) -> None:
    if bus == "PCIe":
        write(tmp_path / "sys/bus/pci/devices/0000:03:00.0", vendor="0x1ac1", device="0x089a")
    else:
        write(tmp_path / "sys/bus/usb/devices/2-1", idVendor="18d1", idProduct="9302")
    before = told(*LEFT).split()
    built = builder.make("image", EDGETPU_MIRROR=builder.mirror, HOST_ROOT=str(tmp_path))
    assert built.status != 0
    assert f"this computer has an Edge TPU ({bus} " in built.err
    assert "is required: 127.0.0.1:9 could not be reached" in built.out + built.err
    assert "EDGETPU=none builds for the CPU alone" in built.err
    assert docker("image", "inspect", builder.image).status != 0
    assert told(*LEFT).split() == before


LEFT = ("container", "ls", "--all", "--quiet", "--filter", "status=exited")


def write(folder: Path, **files: str) -> None:
    """A device, as the kernel shows it."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_a_card_that_went_does_not_stop_make_up(builder: Checkout, tmp_path: Path) -> None:
    """The overlay of before names a node that is gone: a container with it would not start."""
    dev = Dev(tmp_path / "host")
    dev.card(0)
    builder = builder.copied_to(tmp_path / "checkout")
    folder = builder.folder
    builder.environ["HOST_ROOT"] = str(dev.root)
    builder.environ["REEF_PORT"] = str(free_port())
    first = builder.make("up", EDGETPU="none")
    assert first.status == 0, first.err
    (found,) = told("ps", "--quiet", "--filter", f"ancestor={builder.image}").split()
    assert Container(found).inside("opened", "/dev/apex_0") in MAY_OPEN
    assert "COMPOSE_FILE=compose.yaml:compose.devices.yaml" in (folder / ".env").read_text()
    assert builder.make("down").status == 0
    dev.remove("/dev/apex_0")
    again = builder.make("up", EDGETPU="none")
    assert again.status == 0, again.err
    assert "Reef is ready: " in again.out
    assert "apex_0" not in (folder / "compose.devices.yaml").read_text()


def test_where_no_engine_answers_it_points_to_make_run(checkout: Checkout) -> None:
    up = checkout.make("up", DOCKER_HOST="tcp://127.0.0.1:9")
    assert up.status != 0
    assert re.search(r"no Docker engine answers \(.+\); without one: make run\n", up.err)


def test_where_there_is_no_docker_it_points_to_make_run(checkout: Checkout, tmp_path: Path) -> None:
    for folder in reversed(os.environ["PATH"].split(":")):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            link = tmp_path / program.name
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    for program in tmp_path.glob("docker*"):
        program.unlink()
    up = checkout.make("up", PATH=str(tmp_path))
    assert up.status != 0
    assert "there is no Docker here; install it, or serve without it: make run" in up.err
