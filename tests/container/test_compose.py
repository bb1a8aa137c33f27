"""compose.yaml, through each Compose that this host has: 1.29 and 2."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from PIL import Image

from app.service import UPLOADING
from tests import support
from tests.client import ENVIRON, free_port, picture
from tests.container.conftest import Start
from tests.container.engine import HARDENED, IMAGE, Container, Said, docker
from tests.corpus import make
from tests.support import ROOT

COMPOSES = {"1.29": ("docker-compose",), "2": ("docker", "compose")}
MEBIBYTE = 1024 * 1024
UP_S = 60
BUSY = {200, 408, 503, 504}
"""What a server may answer that is asked too much at once."""


def missing(command: tuple[str, ...]) -> str | None:
    """Why a Compose can't be used here, or None."""
    if not shutil.which(command[0]) or (
        command[1:] and docker(*command[1:], "version").status != 0
    ):
        return f"there is no `{' '.join(command)}` here"
    return None


class Compose:
    """A Compose, with a project of its own and nobody else's settings."""

    def __init__(self, command: tuple[str, ...], folder: Path) -> None:
        self.project = f"reef-test-{uuid4().hex[:8]}"
        self.port = free_port()
        empty = folder / "empty.env"  # not the .env that a developer may have
        empty.touch()
        self._command = [*command, "--project-name", self.project, "--env-file", str(empty)]
        self._files: list[str] = []
        self.read(ROOT / "compose.yaml")
        self.environ = ENVIRON | {"REEF_IMAGE": IMAGE, "REEF_PORT": str(self.port)}

    def read(self, *paths: Path) -> None:
        """These are the compose files."""
        self._files = [each for path in paths for each in ("--file", str(path))]

    def __call__(self, *arguments: str, **settings: str) -> str:
        """Run a command of it; what it printed. Fails the test when it fails."""
        said = self.run(*arguments, within_s=UP_S + 60, **settings)
        assert said.status == 0, said.err
        return said.out

    def run(self, *arguments: str, within_s: float = UP_S + 60, **settings: str) -> Said:
        """Run a command of it, whatever comes of it."""
        done = subprocess.run(
            [*self._command, *self._files, *arguments],
            env=self.environ | settings,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def serving(self) -> Iterator[Container]:
        """The server's container, up and ready; taken down with its volumes at the end."""
        try:
            self("up", "--detach", "--no-build")
            container = Container(self("ps", "--quiet", "reef").strip())
            container.wait_until(container.is_ready)
            yield container
        finally:
            self("down", "--volumes", "--timeout", "20")

    def config(self, **settings: str) -> dict[str, Any]:
        """The service as Compose understands it."""
        service = yaml.safe_load(self("config", **settings))["services"]["reef"]
        return dict(service)


@pytest.fixture(scope="module", params=COMPOSES)
def compose(
    image: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Compose:
    command = COMPOSES[request.param]
    if why := missing(command):
        pytest.skip(why)
    return Compose(command, tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def service(compose: Compose) -> Iterator[Container]:
    """The service, up and ready."""
    with compose.serving() as container:
        yield container


def test_there_is_a_compose_here(image: str) -> None:
    assert None in [missing(command) for command in COMPOSES.values()]


def published(port: Any) -> tuple[str, str]:
    """Address and port of the host, from either form."""
    if isinstance(port, dict):
        return str(port.get("host_ip", "0.0.0.0")), str(port["published"])
    address, _, host_port = str(port).rpartition(":")[0].rpartition(":")
    return address, host_port


def test_it_is_published_where_reef_bind_says(compose: Compose) -> None:
    (port,) = compose.config()["ports"]
    assert published(port) == ("127.0.0.1", str(compose.port))
    (port,) = compose.config(REEF_BIND="192.0.2.7", REEF_PORT="81")["ports"]
    assert published(port) == ("192.0.2.7", "81")


def test_settings_come_from_the_shell_and_only_those_that_are_set(compose: Compose) -> None:
    said = compose.config(REEF_MIN_SCORE="0.7", LOG_LEVEL="debug")["environment"]
    given = {name: value for name, value in said.items() if value is not None}
    assert {name: str(value) for name, value in given.items()} == {
        "REEF_MIN_SCORE": "0.7",
        "LOG_LEVEL": "debug",
    }


def test_it_is_hardened_as_config_shows(compose: Compose) -> None:
    said = compose.config()
    assert said["user"] == "10001:10001"
    assert said["read_only"] is True
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]
    assert said["init"] is True
    assert said["restart"] == "unless-stopped"
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(said)


def test_it_is_hardened_as_the_engine_sees_it(service: Container) -> None:
    found = service.inspect()
    host = found["HostConfig"]
    assert found["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert not host["Privileged"]
    assert not host["CapAdd"]
    assert [each.removeprefix("CAP_") for each in host["CapDrop"]] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert 512 * MEBIBYTE < host["Memory"] < 4096 * MEBIBYTE
    assert 0 < host["PidsLimit"] <= 1024
    assert host["NanoCpus"] or host["CpuQuota"] > 0
    assert found["Config"]["StopTimeout"] >= 20
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]
    assert "noexec" in host["Tmpfs"]["/tmp"]  # noqa: S108 - the container's own
    (binding,) = host["PortBindings"]["5000/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    assert host["LogConfig"]["Config"]["max-size"]
    writable = {each["Destination"] for each in found["Mounts"] if each["RW"]}
    assert writable == {"/var/log/reef"}


def test_it_serves_and_becomes_healthy(service: Container) -> None:
    status, answer = service.predict((ROOT / "models" / "selftest_person.jpg").read_bytes(), "")
    assert (status, answer["predictions"][0]["class"]) == (200, "person")
    service.wait_until(lambda: service.health == "healthy")


def test_a_flood_of_the_largest_pictures_stays_within_the_memory_limit(service: Container) -> None:
    """As many clients as are let in and a few more, each with what costs most: a body of the full
    size, in a form, that holds a WebP of the full size."""
    worker, device = service.worker, service.device
    large = support.encode(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True)
    padded = large.ljust(16 * MEBIBYTE - 1000, b"\0")
    form = support.form(support.part("image", padded, "large.webp"))
    with service.neighbour("load", 48, 120, form["content_type"], data=form["data"]) as flood:
        found = json.loads(flood.communicate(timeout=100)[0])
    assert 200 in {int(status) for status in found["statuses"]}
    assert {int(status) for status in found["statuses"]} <= BUSY
    assert service.inside("oom_kills") == 0
    assert (service.worker, service.device) == (worker, device)
    service.wait_until(service.is_ready)
    assert service.predict(picture(1))[0] == 200


BOMBS = ("png_100_mb_of_lines", "png_text_bomb", "png_international_bomb", "png_profile_bomb",
         "jpeg_81_mp", "jpeg_81_mp_progressive", "png_25_mp", "png_30000", "gif_10000_frames",
         "webp_lossless_9000", "webp_10_mp")  # fmt: skip
BOMB_SETTINGS = {"REEF_QUEUE": "4", "REEF_MAX_UPLOAD_MIB": "4", "REEF_MAX_MEGAPIXELS": "10"}


def test_a_flood_of_bombs_stays_within_the_formula(start: Start, colour: tuple[str, ...]) -> None:
    """What compose.yaml's formula gives for one core and small limits is enough for them."""
    cores = 1
    bodies = (4 + cores + UPLOADING) * 2 * 4
    pictures = cores * 16 * 10_000_000 // MEBIBYTE
    limit = f"{bodies + pictures + 300}m"
    container = start(
        *(*HARDENED, *colour, "--memory", limit, "--memory-swap", limit, "--cpus", str(cores)),
        settings=BOMB_SETTINGS,
    )
    worker = container.worker
    for name in BOMBS:
        bomb = make.BY_NAME[name].make()
        with container.neighbour("load", 24, 96, data=bomb) as flood:
            found = json.loads(flood.communicate(timeout=100)[0])
        assert found["lost"] == []
        assert {int(status) for status in found["statuses"]} <= BUSY | {413, 422}
    assert container.inside("oom_kills") == 0
    assert not container.inspect()["State"]["OOMKilled"]
    assert container.worker == worker
    assert container.predict(picture(9))[0] == 200


def test_when_all_of_it_was_killed_it_is_started_again(service: Container) -> None:
    master = service.inside("parent", service.worker)
    service.kill(master, 9)
    service.wait_until(lambda: service.inspect()["RestartCount"] == 1)
    service.wait_until(service.is_ready)
    assert service.predict(picture(1))[0] == 200


def test_a_stop_is_clean(compose: Compose, service: Container) -> None:
    """The last one, as the others need the service."""
    compose("stop")
    state = service.inspect()["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)
