"""What asks the server on this host: past any proxy, with its key, and for `make status`."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app import local
from app.local import Answer, NoServer
from tests.client import ENVIRON, free_port
from tests.site import LocalSite, QuietHandler
from tests.support import ROOT, make_settings

KEY = "0123456789abcdef"


class Reef(LocalSite):
    """Answers what a test puts here, by path: a status and a body."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.keys: list[str | None] = []
        site = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                site.keys.append(self.headers["X-API-Key"])
                status, body = site.answers[self.path]
                said = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        super().__init__(Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])


@pytest.fixture
def reef() -> Iterator[Reef]:
    """A server that answers at once."""
    site = Reef()
    yield site
    site.close()


def test_every_status_is_an_answer_and_the_key_is_brought(reef: Reef) -> None:
    reef.answers["/ready"] = (503, {"ready": False})
    told = make_settings(port=reef.port, api_key=KEY)
    assert local.ask(told, "/ready") == Answer(503, {"ready": False})
    assert reef.keys == [KEY]


def test_no_proxy_is_asked(reef: Reef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    reef.answers["/ready"] = (200, {})
    assert local.ask(make_settings(port=reef.port), "/ready").status == 200


def test_another_program_is_no_server(reef: Reef) -> None:
    reef.answers["/ready"] = (200, ["I am", "something else"])
    with pytest.raises(NoServer, match="is not Reef"):
        local.ask(make_settings(port=reef.port), "/ready")


def test_nobody_is_no_server() -> None:
    with pytest.raises(NoServer, match="Connection refused"):
        local.ask(make_settings(port=free_port()), "/ready")


def status(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """scripts/status.py, as scripts/appliance.sh runs it in the container."""
    return subprocess.run(
        [sys.executable, "-", *arguments],
        input=(ROOT / "scripts/status.py").read_text(),
        env={**ENVIRON, "PYTHONPATH": str(ROOT), "REEF_PORT": str(port)},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )


def test_status_tells_devices_and_notes(reef: Reef) -> None:
    device = {"id": "cpu", "about": "a CPU", "state": "ready", "reason": "", "models": ["m"]}
    reef.answers["/devices"] = (200, {"devices": [device]})
    reef.answers["/ready"] = (200, {"ready": True, "reason": "it is slow", "notes": ["no spoon"]})
    assert status(reef.port).stdout.splitlines() == [
        "device cpu (a CPU): ready; m",
        "reason: it is slow",
        "note: no spoon",
    ]


def test_status_tells_only_why_it_is_not_ready(reef: Reef) -> None:
    reason = 'cpu failed: found "nothing" in the test picture'
    reef.answers["/ready"] = (503, {"ready": False, "degraded": False, "reason": reason})
    assert status(reef.port, "reason").stdout == f"{reason}\n"
    assert status(free_port(), "reason").returncode == 1
