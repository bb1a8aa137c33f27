"""The commands of README and the guides do what they say, and their messages are Reef's own."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import colour_model
from tests.project.documents import (
    FENCED,
    GUIDES,
    README,
    TROUBLESHOOTING,
    blocks,
    messages,
    shell_messages,
)
from tests.server.conftest import Server
from tests.support import CAT, ROOT

ANSWER = next(content for _, content in blocks(README.read_text(), "json"))
COMMANDS = [content for path in GUIDES for _, content in blocks(path.read_text(), "sh")]
CURLS = [block for block in COMMANDS if block.startswith("curl")]
ADDRESS = "http://127.0.0.1:5000"
KEY_LINE = re.compile(r"^REEF_API_KEY=(\w+)$", re.MULTILINE)
SHOWN_KEYS = {key for path in GUIDES for key in KEY_LINE.findall(path.read_text())}

TROUBLE = re.findall(r"^\* `(.+)`$", TROUBLESHOOTING.read_text(), re.MULTILINE)

SHARE = 0.4
"""A text that makes up so much of a message may be a part of it."""

MAX_PICTURE_BYTES = 80_000


def run(block: str, server: Server) -> dict[str, Any]:
    """The answer to a command line of a guide's."""
    assert ADDRESS in block
    command = block.replace(ADDRESS, f"http://127.0.0.1:{server.port}")
    done = subprocess.run(
        ["bash", "-c", f"set -e; {command}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("block", [block for block in CURLS if "REEF_API_KEY" not in block])
def test_curl_gets_an_answer(server: Server, block: str) -> None:
    assert run(block, server)["predictions"]


def test_curl_with_a_key_gets_an_answer(tmp_path: Path) -> None:
    with_key = [block for block in CURLS if "REEF_API_KEY" in block]
    assert with_key
    (key,) = SHOWN_KEYS
    server = Server(tmp_path, REEF_DRAIN_S="0", REEF_API_KEY=key)
    try:
        server.wait_until(server.is_ready)
        for line in "".join(with_key).splitlines():
            assert run(f"REEF_API_KEY={key}; {line}", server)["predictions"]
    finally:
        assert server.stop() == 0


def test_the_answer_shown_is_the_real_one(server: Server) -> None:
    shown = json.loads(ANSWER)
    got = run(CURLS[0], server)
    assert list(got) == list(shown)
    assert list(got["timings"]) == list(shown["timings"])
    for changing in ("inference_time", "timings", "request_id"):
        del got[changing], shown[changing]
    for found in shown["predictions"]:
        # Another processor's arithmetic may differ in the last digits.
        found["bbox"] = pytest.approx(found["bbox"], abs=2)
        found["score"] = pytest.approx(found["score"], abs=0.02)
    assert got == shown


def test_the_answer_shown_is_made_of_real_times() -> None:
    shown = json.loads(ANSWER)
    timings = shown["timings"]
    assert shown["inference_time"] == timings["inference"]
    assert sum(timings.values()) - timings["total"] <= timings["total"]


def test_your_own_model(tmp_path: Path) -> None:
    (block,) = (block for block in COMMANDS if block.startswith("REEF_MODEL="))
    *pairs, make, target = shlex.split(block)
    assert (make, target) == ("make", "run")
    told = dict(pair.replace("/path/to", str(tmp_path)).split("=") for pair in pairs)
    colour_model.write(Path(told["REEF_MODEL"]), labels=None)
    Path(told["REEF_LABELS"]).write_text("tomato\nlettuce\nsky\n")
    server = Server(tmp_path, REEF_DRAIN_S="0", **told)
    try:
        server.wait_until(server.is_ready)
        status, answer = server.predict(CAT.read_bytes())
        assert status == 200
        assert {found["class"] for found in answer["predictions"]} >= {"tomato", "lettuce"}
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("message", TROUBLE)
def test_troubles_are_told_in_these_words(message: str) -> None:
    if message in (ROOT / "Makefile").read_text():
        return
    assert any(text.fullmatch(message) for text in shell_messages()) or any(
        text.fullmatch(message) or (literal > SHARE * len(message) and text.search(message))
        for text, literal in messages()
    )


def test_there_are_troubles() -> None:
    assert len(TROUBLE) > 8


def test_the_picture_can_be_drawn_again(server: Server, tmp_path: Path) -> None:
    shown = ROOT / "docs" / "detection.jpg"
    assert shown.stat().st_size <= MAX_PICTURE_BYTES
    script = ROOT / "docs" / "draw_detection.py"
    (command,) = re.findall(r"python (docs/draw_detection\.py .*?)\n\"", script.read_text(), re.S)
    drawn = tmp_path / "detection.jpg"
    arguments = shlex.split(command.replace("\\\\\n", " ").replace(str(shown.name), "X"))
    arguments[arguments.index("--output") + 1] = str(drawn)
    arguments += ["--url", f"http://127.0.0.1:{server.port}"]
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, timeout=60)
    with Image.open(drawn) as new, Image.open(shown) as old:
        assert new.size == old.size


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_code_is_fenced_with_a_language(path: Path) -> None:
    assert all(fenced[1] for fenced in FENCED.finditer(path.read_text()))
