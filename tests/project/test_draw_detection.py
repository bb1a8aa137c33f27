"""docs/draw_detection.py, the sample client: what it draws, and what it says when it can't."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.client import ENVIRON, free_port
from tests.server.conftest import Server
from tests.support import ROOT, as_a_camera_stores_it, exif

PERSON = ROOT / "models" / "selftest_person.jpg"
KEY = "correct-horse-battery-staple"
SIDEWAYS = 6
"""EXIF orientation of a camera that was held on its side."""


def draw(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it as its docstring says."""
    return subprocess.run(
        [sys.executable, "docs/draw_detection.py", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRON | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_picture_of_a_camera_held_sideways_is_drawn_upright(
    server: Server, tmp_path: Path
) -> None:
    with Image.open(PERSON) as upright:
        portrait = upright.crop((0, 0, 400, 512))
    stored, plain = tmp_path / "stored.png", tmp_path / "plain.png"
    as_a_camera_stores_it(portrait, SIDEWAYS).save(stored, exif=exif(SIDEWAYS))
    portrait.save(plain)
    drawn = []
    for picture in (stored, plain):
        output = tmp_path / f"drawn_{picture.name}"
        url = f"http://127.0.0.1:{server.port}/"
        done = draw(picture, "--url", url, "--output", output)
        assert (done.returncode, done.stderr) == (0, "")
        with Image.open(output) as sheet:
            drawn.append(np.asarray(sheet))
    assert drawn[0].shape == drawn[1].shape
    assert np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("where", ["option", "environment"])
def test_it_brings_the_key(tmp_path: Path, where: str) -> None:
    server = Server(tmp_path, REEF_DRAIN_S="0", REEF_API_KEY=KEY)
    try:
        server.wait_until(server.is_ready)
        target = (
            PERSON,
            "--url",
            f"http://127.0.0.1:{server.port}",
            "--output",
            tmp_path / "x.png",
        )
        without = draw(*target)
        assert without.returncode == 1
        assert "401: this server wants its API key" in without.stderr
        done = draw(*target, "--key", KEY) if where == "option" else draw(*target, REEF_API_KEY=KEY)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        assert server.stop() == 0


def test_an_address_needs_no_scheme(server: Server, tmp_path: Path) -> None:
    done = draw(PERSON, "--url", f"127.0.0.1:{server.port}", "--output", tmp_path / "x.png")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("key", ["clé", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_said(key: str) -> None:
    done = draw(PERSON, "--key", key)
    assert done.returncode == 2
    assert done.stderr.endswith("a key has ASCII characters only, and no line end\n")


@pytest.mark.parametrize(
    ("picture", "output", "told"),
    [
        ("no such picture.jpg", "x.png", "No such file"),
        ("README.md", "x.png", "README.md: 415: "),
        (str(PERSON), "x.odd", "unknown file extension"),
        (str(PERSON), "no such folder/x.png", "No such file"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    server: Server, tmp_path: Path, picture: str, output: str, told: str
) -> None:
    url = f"http://127.0.0.1:{server.port}"
    done = draw(picture, "--url", url, "--output", tmp_path / output)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"http://127.0.0.1:{free_port()}", "no Reef answers at http://127.0.0.1:"),
        ("no such host", "no Reef answers at http://no such host: "),
        (f"127.0.0.1:{free_port()}", "no Reef answers at http://127.0.0.1:"),
        ("ftp://reef.home", "no Reef answers at ftp://reef.home: "),
        ("http://[::1", "Invalid IPv6 URL"),
    ],
)
def test_where_nobody_answers_it_says_so(url: str, told: str) -> None:
    done = draw(PERSON, "--url", url)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(told)
