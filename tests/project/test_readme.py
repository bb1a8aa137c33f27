"""README's commands do what it says, and its messages are those that Reef gives."""

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
from tests.project.documents import FENCED, README, blocks, messages, section
from tests.server.conftest import Server
from tests.support import CAT, ROOT

TEXT = README.read_text()
EXAMPLES = blocks(TEXT, "sh", "json")
CURLS = [block for language, block in EXAMPLES if language == "sh" and "curl" in block]
README_ADDRESS = "http://127.0.0.1:5000"

TROUBLE = re.findall(r"^\* `(.+)`$", section(TEXT, "## Troubleshooting"), re.MULTILINE)

SHARE = 0.4
"""A text that makes up so much of a message may be a part of it."""

MAX_PICTURE_BYTES = 80_000


def run(block: str, server: Server) -> dict[str, Any]:
    """The answer to a command line of README's."""
    assert README_ADDRESS in block
    command = block.replace(README_ADDRESS, f"http://127.0.0.1:{server.port}")
    said = subprocess.run(
        ["bash", "-c", f"set -e; {command}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer


@pytest.mark.parametrize("block", [each for each in CURLS if "REEF_API_KEY" not in each])
def test_curl_gets_an_answer(server: Server, block: str) -> None:
    assert run(block, server)["predictions"]


def test_curl_with_a_key_gets_an_answer(tmp_path: Path) -> None:
    (block,) = (each for each in CURLS if "REEF_API_KEY" in each)
    (shown,) = re.findall(r"^REEF_API_KEY=(\w+)$", TEXT, re.MULTILINE)
    server = Server(tmp_path, REEF_DRAIN_S="0", REEF_API_KEY=shown)
    try:
        server.wait_until(server.is_ready)
        for line in block.splitlines():
            assert run(f"REEF_API_KEY={shown}; {line}", server)["predictions"]
    finally:
        assert server.stop() == 0


def test_the_answer_shown_is_the_real_one(server: Server) -> None:
    (shown,) = (json.loads(block) for language, block in EXAMPLES if language == "json")
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
    (shown,) = (json.loads(block) for language, block in EXAMPLES if language == "json")
    timings = shown["timings"]
    assert shown["inference_time"] == timings["inference"]
    assert sum(timings.values()) - timings["total"] <= timings["total"]


def test_your_own_model(tmp_path: Path) -> None:
    (block,) = (
        block for language, block in EXAMPLES if language == "sh" and "REEF_MODEL=" in block
    )
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
    recipes = [ROOT / "Makefile", *ROOT.glob("scripts/*.sh")]
    assert any(message in recipe.read_text() for recipe in recipes) or any(
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


def test_code_is_fenced_with_a_language() -> None:
    assert all(fenced[1] for fenced in FENCED.finditer(TEXT))
