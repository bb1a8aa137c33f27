"""What `docker run IMAGE …` does beside serving, and what it says when it can't."""

import re

import pytest

from app import __version__
from tests.container.engine import once

pytestmark = pytest.mark.usefixtures("image")


def test_version() -> None:
    said = once("--version")
    assert (said.status, said.out, said.err) == (0, f"reef {__version__}\n", "")


def test_help_names_the_commands() -> None:
    said = once("--help")
    assert said.status == 0
    assert {"serve", "healthcheck"} <= set(re.findall(r"^    (\w+)", said.out, re.MULTILINE))


def test_healthcheck_without_a_server_fails_with_one_line() -> None:
    said = once("healthcheck")
    assert said.status == 1
    (line,) = said.lines
    assert "refused" in line


def test_an_unknown_command_is_wrong_usage() -> None:
    said = once("no-such-command")
    assert said.status == 2
    assert "invalid choice: 'no-such-command'" in said.err


@pytest.mark.parametrize(
    ("setting", "status", "line"),
    [
        ("REEF_PORT=abc", 2, r"reef: REEF_PORT: takes a whole number from 1 to 65535, not 'abc'"),
        ("REEF_PROT=1", 2, r"reef: REEF_PROT: no such setting; did you mean REEF_PORT\?"),
        ("REEF_MODELS_DIR=/no", 2, r"reef: REEF_MODELS_DIR: no such folder '/no'; mount it"),
        ("REEF_MODEL=/models/no.tflite", 3, r"reef: REEF_MODEL: /models/no.tflite: no such file.*"),
        ("REEF_MODEL=/models/broken.tflite", 3, r"reef: REEF_MODEL: /models/broken.tflite: .+"),
        ("REEF_LABELS=/no/such.txt", 3, r"reef: REEF_LABELS: /no/such\.txt: No such file.*"),
        ("REEF_HOST=192.0.2.1", 4, r"reef: can't listen on 192\.0\.2\.1 port 5000: .*"),
    ],
)
def test_what_is_wrong_stops_the_start_with_one_line(
    colour: tuple[str, ...], setting: str, status: int, line: str
) -> None:
    said = once(options=(*colour, "--env", setting))
    assert said.status == status
    (only,) = said.lines
    assert re.fullmatch(line, only)
