"""What the image says of itself: its build wrote it, the server reads it once at its start."""

import json
from pathlib import Path

from app import image


def test_a_checkout_has_nothing_to_say() -> None:
    assert image.notes() == ()


def test_an_image_says_what_it_lacks(tmp_path: Path) -> None:
    record = tmp_path / "image.json"
    record.write_text(json.dumps({"edgetpu": [], "notes": ["this image lacks a spoon"]}))
    assert image.notes(record) == ("this image lacks a spoon",)
