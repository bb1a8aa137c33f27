"""`make up` and its kin, from this checkout; project and image have names of their own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.client import ENVIRON, free_port
from tests.container.engine import Container, Said, docker, told
from tests.container.nodes import MAY_OPEN, Dev
from tests.support import ROOT

BUILD_S = 900  # where nothing of the image is in the builder's cache
LACKS = "this image lacks libedgetpu"
NOBODY = "127.0.0.1:9"  # of the build's own network, where nothing listens

pytestmark = pytest.mark.timeout(BUILD_S, func_only=True)


@dataclass
class Checkout:
    """This checkout, with variables that tell it apart from what a developer runs from it."""

    environ: dict[str, str]
    image: str
    folder: Path = ROOT

    @property
    def project(self) -> str:
        """What Compose calls it."""
        return self.environ["COMPOSE_PROJECT_NAME"]

    @property
    def mirror(self) -> str:
        """A site for the Edge TPU's files that can't be reached, and that nobody else asks."""
        return f"http://{NOBODY}/{self.project}"

    def make(self, target: str, **variables: str) -> Said:
        """`make target`, to its end."""
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=self.folder,
            env=self.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    project = f"reef-test-{uuid4().hex[:8]}"
    image = f"reef:{project}"
    own = {"COMPOSE_PROJECT_NAME": project, "REEF_IMAGE": image, "REEF_PORT": str(free_port())}
    own |= {"HOST_ROOT": str(tmp_path)}  # a computer without an Edge TPU, whatever this one has
    return Checkout(ENVIRON | own, image)


@pytest.fixture
def builder(image: str, checkout: Checkout) -> Iterator[Checkout]:
    """The checkout, which builds: from the builder's cache where the image was built before.
    Afterwards, nothing that it made is left."""
    if "REEF_IMAGE" in os.environ:
        pytest.skip("it builds images, but REEF_IMAGE names the one to test")
    yield checkout
    label = ("--quiet", "--filter", f"label=com.docker.compose.project={checkout.project}")
    for kind, every in (("container", ("--all",)), ("network", ()), ("volume", ())):
        for found in told(kind, "ls", *every, *label).split():
            docker(kind, "rm", *(("--force",) if kind != "network" else ()), found)
    for found in told("container", "ls", "--all", "--quiet").split():  # the classic builder's
        if checkout.mirror in docker("inspect", "--format", "{{json .Config.Cmd}}", found).out:
            docker("rm", found)
    docker("image", "rm", checkout.image)


def test_up_ends_with_a_curl_line_that_works_and_down_removes_it(builder: Checkout) -> None:
    up = builder.make("up")
    assert up.status == 0, up.err
    address = f"http://127.0.0.1:{builder.environ['REEF_PORT']}"
    assert f"Reef is ready: {address}\n" in up.out
    assert re.search(r"^device cpu \(.+\): ready; efficientdet_lite0$", up.out, re.MULTILINE)
    (line,) = (line for line in up.out.splitlines() if line.startswith("  curl "))
    answer = subprocess.run(
        [*shlex.split(line), "--silent"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    assert json.loads(answer)["predictions"][0]["class"] == "person"
    status = builder.make("status")
    assert status.status == 0
    assert address in status.out
    down = builder.make("down")
    assert down.status == 0
    assert builder.make("status").status != 0


KEY = "correct-horse-battery-staple"


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
        (line,) = (line for line in status.out.splitlines() if line.startswith("  curl "))
        assert KEY not in status.out + status.err
        line = line.replace("YOUR_KEY", KEY) if where == "file" else line
        answer = subprocess.run(
            ["bash", "-c", f"{line} --silent"],
            cwd=ROOT, env=environ, capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert json.loads(answer)["predictions"][0]["class"] == "person"
    finally:
        subprocess.run(
            [*compose, "down", "--volumes"], cwd=ROOT, env=environ, check=True, capture_output=True
        )


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("in_file", "port", "said"),
    [
        (f"REEF_APIKEY={KEY}\n", "5056", "REEF_APIKEY in .env: no such setting"),
        ("", "five", "a setting in .env or the environment is wrong"),
    ],
    ids=["a misspelt one, which Compose would drop", "one that Compose can't take"],
)
def test_up_refuses_a_wrong_setting_before_it_builds(
    in_file: str, port: str, said: str, checkout: Checkout, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("Makefile", "compose.yaml", ".env.example"):
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".env").write_text(in_file)
    checkout.folder = tmp_path
    up = checkout.make("up", REEF_PORT=port)
    assert up.status != 0
    assert said in up.err
    assert "building" not in up.err


def test_up_says_why_it_failed_with_the_last_lines_of_the_log(builder: Checkout) -> None:
    up = builder.make("up", REEF_MIN_SCORE="2")
    assert up.status != 0
    assert "Traceback" not in up.err
    assert "the last lines of its log" in up.err
    assert "reef: REEF_MIN_SCORE: takes a number from 0 to 1, not '2'" in up.err
    assert "Reef is ready" not in up.out


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
    built = builder.make("image", EDGETPU_MIRROR=builder.mirror)
    assert built.status != 0
    assert f"this computer has an Edge TPU ({bus} " in built.err
    assert "is required: 127.0.0.1:9 could not be reached" in built.out + built.err
    assert "EDGETPU=none builds for the CPU alone" in built.err
    assert docker("image", "inspect", builder.image).status != 0


def write(folder: Path, **files: str) -> None:
    """A device, as the kernel shows it."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_a_card_that_went_does_not_stop_make_up(builder: Checkout, tmp_path: Path) -> None:
    """The overlay of before names a node that is gone: a container with it would not start."""
    dev = Dev(tmp_path / "host")
    dev.card(0)
    folder = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    builder.folder = folder
    builder.environ["HOST_ROOT"] = str(dev.root)
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
