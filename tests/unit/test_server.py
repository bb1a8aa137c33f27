"""What the server says of itself at its start, and the addresses that it can't have."""

import logging
import socket
import subprocess
from pathlib import Path

import pytest

from app import models, server
from app.advice import Place
from app.errors import AddressError
from tests.client import free_port
from tests.support import ROOT, make_settings

KEY = "0123456789abcdef"
CHECKOUT, IMAGE = Place(in_image=False), Place(in_image=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "camera.lan"])
def test_a_port_that_is_open_without_a_key_is_warned_of(host: str) -> None:
    level, line = server.who_may_ask(make_settings(host=host, port=5001), CHECKOUT)
    assert level == logging.WARNING
    assert "port 5001" in line
    assert "REEF_API_KEY" in line


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({"host": "127.0.0.1"}, CHECKOUT),
        ({"host": "::1"}, CHECKOUT),
        ({"host": "0.0.0.0", "api_key": KEY}, CHECKOUT),
        ({"host": "0.0.0.0"}, IMAGE),  # compose.yaml publishes it to this computer alone
        ({"host": "0.0.0.0", "api_key": KEY}, IMAGE),
    ],
)
def test_what_is_not_open_is_not_warned_of(told: dict[str, str], place: Place) -> None:
    assert server.who_may_ask(make_settings(**told), place)[0] < logging.WARNING


def test_a_container_names_no_address_for_it_knows_none() -> None:
    told = make_settings(host="0.0.0.0")
    assert server.ready_line(told, models.load(told), IMAGE) == "Ready"


def test_beside_a_checkout_a_command_is_shown_that_works_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    told = make_settings(port=5001)
    line = server.ready_line(told, models.load(told), CHECKOUT)
    command = "curl -F image=@models/selftest_person.jpg http://127.0.0.1:5001/predict"
    assert line == f"Ready. Try: {command}"


@pytest.mark.parametrize("in_a_file", [False, True])
def test_the_key_is_brought_and_not_shown(tmp_path: Path, in_a_file: bool) -> None:
    file = tmp_path / "the keys"
    file.write_text(f"{KEY}\n")
    told = make_settings(api_key=KEY, api_key_file=file if in_a_file else None)
    line = server.ready_line(told, models.load(told), CHECKOUT)
    assert KEY not in line
    command = line.partition("Try: curl ")[2]
    shown = subprocess.check_output(
        ["bash", "-c", f"printf '%s\\n' {command}"], env={"REEF_API_KEY": KEY}, text=True
    )
    assert f"X-API-Key: {KEY}" in shown.splitlines()


@pytest.mark.parametrize(
    "host", ["a..b", "a" * 70, "nul\0", "[::1]", "1:2", "256.0.0.1", "nobody.invalid", "192.0.2.1"]
)
def test_an_address_that_cannot_be_had_is_told_in_one_line(host: str) -> None:
    with pytest.raises(AddressError) as caught:
        server.listen(make_settings(host=host, port=free_port()))
    (line,) = str(caught.value).splitlines()
    assert "can't listen on" in line
    assert line.endswith("; set REEF_HOST or REEF_PORT")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=f"port {port}: Address already in use; set "):
            server.listen(make_settings(port=port))
