"""The pictures that were posted, small: so that whoever reads a report sees what was asked."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from bench.benchmarking.corpus import Picture

SIZE = (144, 108)  # pixels, at most; a report shows them at half of that
QUALITY = 60
MOST = 24
"""Of a run: more make a report too large for a mail."""


def described(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Name, size in pixels, copies and thumbnail of each picture, for the summary.

    The thumbnail is a data URI of 2 to 6 kB; None of a file that can't be read, and beyond MOST.
    """
    return [
        {
            "image": picture.name,
            "copies": list(picture.copies),
            **_shown(picture.content, drawn=number < MOST),
        }
        for number, picture in enumerate(pictures)
    ]


def _shown(content: bytes, *, drawn: bool) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            uri = _uri(opened) if drawn else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {"width": None, "height": None, "thumbnail": None}  # a broken file may be the test
    return {"width": width, "height": height, "thumbnail": uri}


def _uri(picture: Image.Image) -> str:
    picture.draft("RGB", SIZE)
    small = picture.convert("RGB")
    small.thumbnail(SIZE)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
