"""compose.tls.yaml: Caddy before Reef, with a self-signed certificate."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.client import ENVIRON, Client, free_port, picture
from tests.container.checkout import BUILD_S, Checkout, curl_line, detects
from tests.container.engine import IMAGE, LABEL, docker, told
from tests.support import ROOT

CADDY = "reef-test-caddy"
KEY = "correct-horse-battery-staple"
NAME = "reef.test"
UP_S = 120


class Caller(Client):
    """A client that comes over TLS, and trusts that certificate alone."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self._tls = ssl.create_default_context(cafile=str(certificate))

    def is_ready(self) -> bool:
        """Whether Reef is; until then Caddy answers 502, with nothing."""
        try:
            return super().is_ready()
        except ValueError:
            return False

    def log(self) -> str:
        """Nothing: the containers' logs are shown by the fixture."""
        return ""

    def connect(self, timeout_s: float = 30) -> http.client.HTTPConnection:
        """A connection to 127.0.0.1 that calls it by its name."""
        connection = http.client.HTTPSConnection(
            NAME, self.port, timeout=timeout_s, context=self._tls
        )
        raw = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        connection.sock = self._tls.wrap_socket(raw, server_hostname=NAME)
        return connection


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate, and its key beside it."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl here")
    folder = tmp_path_factory.mktemp("certificates")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    made += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run(made, check=True, capture_output=True)
    folder.chmod(0o755)
    (folder / "key.pem").chmod(0o644)
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def caddy(image: str) -> str:
    """An image of Caddy: of Debian's package, on what Reef's image is built on."""
    label = "org.opencontainers.image.base.name"
    base = told("image", "inspect", "--format", f'{{{{index .Config.Labels "{label}"}}}}', IMAGE)
    recipe = (ROOT / "tests" / "container" / "caddy.Dockerfile").read_bytes()
    said = docker(
        *("build", "--tag", CADDY, "--build-arg", f"BASE={base}", "--label", LABEL, "-"),
        data=recipe,
        within_s=300,
    )
    assert said.status == 0, said.err
    return CADDY


@pytest.fixture(scope="module")
def caller(
    caddy: str, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Caller]:
    """Reef behind Caddy, up and ready."""
    port = free_port()
    empty = tmp_path_factory.mktemp("compose") / "empty.env"
    empty.touch()
    environ = ENVIRON | {
        "REEF_IMAGE": IMAGE,
        "REEF_PORT": str(free_port()),
        "REEF_API_KEY": KEY,
        "REEF_CLIENT_RATE": "0.05",
        "REEF_CADDY": caddy,
        "REEF_TLS_NAME": NAME,
        "REEF_TLS": "/certificates/certificate.pem /certificates/key.pem",
        "REEF_TLS_FILES": str(certificate.parent),
        "REEF_TLS_BIND": "127.0.0.1",
        "REEF_TLS_PORT": str(port),
    }
    command = (
        ["docker", "compose"] if docker("compose", "version").status == 0 else ["docker-compose"]
    )
    command += ["--project-name", f"reef-test-{uuid4().hex[:8]}", "--env-file", str(empty)]
    command += ["--file", str(ROOT / "compose.yaml"), "--file", str(ROOT / "compose.tls.yaml")]

    def compose(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], env=environ, capture_output=True, text=True, timeout=UP_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        compose("up", "--detach", "--no-build")
        caller = Caller(port, certificate)
        try:
            caller.wait_until(caller.is_ready)
        except AssertionError:
            pytest.fail(compose("logs", "--no-color"))
        yield caller
    finally:
        compose("down", "--volumes", "--timeout", "10")


def post(caller: Caller, **headers: str) -> tuple[int, Any]:
    """Post a picture."""
    kind = {"Content-Type": "image/bmp"}
    return caller.request("POST", "/predict", picture(1), kind | headers)


def test_it_serves_over_tls_to_who_has_the_key(caller: Caller) -> None:
    assert caller.get("/health") == (200, {"status": "ok"})
    assert post(caller)[0] == 401
    assert post(caller, **{"X-API-Key": "x" * 20})[0] == 401
    status, answer = post(caller, **{"X-API-Key": KEY})
    assert (status, answer["device"]) == (200, "cpu")


def test_who_is_limited_can_not_pretend_to_be_another(caller: Caller) -> None:
    """Caddy says whom it asks for, and overwrites what the client says."""
    statuses = [
        post(caller, **{"X-API-Key": KEY, "X-Forwarded-For": f"192.0.2.{number}"})[0]
        for number in range(3)
    ]
    assert statuses[1:] == [429, 429]


def test_a_connection_without_tls_gets_no_answer_of_reef(caller: Caller) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", caller.port, timeout=10)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert answer.status == 400
    assert b'"ok"' not in answer.read()
    connection.close()
    assert json.dumps(caller.get("/ready")[1]["ready"]) == "true"


@pytest.mark.timeout(BUILD_S, func_only=True)
def test_make_up_tells_how_to_reach_it_over_tls(caddy: str, tmp_path: Path) -> None:
    """With an authority of Caddy's own, from a checkout that only its owner can read."""
    if "REEF_IMAGE" in os.environ:
        pytest.skip("it builds an image, but REEF_IMAGE names the one to test")
    checkout = Checkout.make_own(tmp_path / "host").copied_to(tmp_path / "reef")
    caddyfile = checkout.folder / "deploy" / "Caddyfile"
    caddyfile.chmod(0o600)
    if os.getuid() == 0:
        os.chown(caddyfile, 65534, 65534)
    port = free_port()
    settings = {
        "COMPOSE_FILE": "compose.yaml:compose.tls.yaml",
        "EDGETPU": "none",
        "PORT": str(free_port()),
        "REEF_API_KEY": KEY,
        "REEF_CADDY": caddy,
        "REEF_TLS_NAME": NAME,
        "REEF_TLS_PORT": str(port),
    }
    try:
        up = checkout.make("up", *(f"{name}={value}" for name, value in settings.items()))
        assert up.status == 0, up.err
        assert f"Reef is ready: https://{NAME}:{port}\n" in up.out
        assert "--cacert build/tls-root.crt" in curl_line(up.out)
        assert "has no key" not in up.err
        assert detects(curl_line(up.out), checkout)
        status = checkout.make("status")
        assert status.status == 0, status.err
        assert curl_line(status.out) == curl_line(up.out)
    finally:
        checkout.make("down")
        checkout.remove()
