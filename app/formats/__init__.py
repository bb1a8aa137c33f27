"""What of a picture's file its decoder needs: the rest never reaches it, and so can't break it.

The walks look at no pixels. They are pure functions, and take time in proportion to the file.
"""

import re

from app.formats import gif, jpeg, png, webp
from app.formats.needed import Needed, Scan, Unreadable

__all__ = ["Needed", "Scan", "Unreadable", "begins_like_one", "needed"]

READERS = (
    (re.compile(rb"\xff\xd8"), jpeg.needed),
    (re.compile(rb"\x89PNG"), png.needed),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), webp.needed),
    (re.compile(rb"GIF8[79]a"), gif.needed),
)
"""How a file begins, and what reads it. A PNG's signature is longer, but is easily damaged."""


def begins_like_one(data: bytes) -> bool:
    """Whether a file begins as those do that READERS read."""
    return any(beginning.match(data) for beginning, _ in READERS)


def needed(data: bytes) -> Needed:
    """What the decoder needs of this file; all of it where its format isn't one of READERS.

    Raises Unreadable for a file that begins like one of them and can't be read.
    """
    for beginning, read in READERS:
        if beginning.match(data):
            return read(data)
    return Needed(data)
