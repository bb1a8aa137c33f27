"""What of a WebP its decoder needs: a walk over its chunks (RFC 9649, 2).

The picture is kept, of an animation its first frame; profile and other metadata are not. EXIF,
which may stand behind the picture, tells how the camera was held.
"""

import re
import struct
from collections.abc import Iterator

from app.formats import exif
from app.formats.needed import Needed, Unreadable

EXTENDED, ANIMATION, EXIF = b"VP8X", b"ANIM", b"EXIF"
PICTURES = (b"VP8 ", b"VP8L", b"ANMF")
BEFORE_PICTURE = (EXTENDED, ANIMATION, b"ALPH")
LANDMARK = re.compile(b"VP8[ LX]|ANIM|ANMF|ALPH|ICCP|EXIF|XMP ")

HEADER_BYTES, CHUNK_HEADER_BYTES = 12, 8
METADATA_FLAGS = 0x20 | 0x08 | 0x04  # of VP8X: profile, EXIF, XMP
MOST_CHUNKS = 65_536


def needed(data: bytes) -> Needed:
    """What the decoder needs of the WebP in `data`. Raises Unreadable where it is cut short."""
    kept: list[bytes] = []
    whole = False
    orientation = exif.UPRIGHT
    for kind, content in _chunks(data):
        if kind == EXIF:
            orientation = exif.orientation(content)
        elif whole:
            continue
        elif kind == EXTENDED and content:
            content = bytes((content[0] & ~METADATA_FLAGS,)) + content[1:]
            kept.append(_chunk(kind, content))
        elif kind in PICTURES or kind in BEFORE_PICTURE:
            kept.append(_chunk(kind, content))
            whole = kind in PICTURES
    if not whole:
        raise Unreadable("ends within its pixels")
    chunks = b"WEBP" + b"".join(kept)
    return Needed(b"RIFF" + struct.pack("<I", len(chunks)) + chunks, orientation=orientation)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk up to the first part of a picture that is cut short; after
    one whose length is wrong, the next that matters.

    Limits on what a file may have belong here.
    """
    at, count = HEADER_BYTES, 0
    while at + CHUNK_HEADER_BYTES <= len(data):
        count += 1
        if count > MOST_CHUNKS:
            raise Unreadable(f"has more than {MOST_CHUNKS} chunks", "leave metadata out")
        kind, length = struct.unpack_from("<4sI", data, at)
        start = at + CHUNK_HEADER_BYTES
        end = start + length
        behind = end + (length & 1)
        if kind in PICTURES or kind in BEFORE_PICTURE:
            if end > len(data):
                return
        elif end > len(data) or not _is_end(data, behind):
            landmark = LANDMARK.search(data, start)
            at = landmark.start() if landmark else len(data)
            continue
        yield kind, data[start:end]
        at = behind


def _is_end(data: bytes, at: int) -> bool:
    """Whether the file ends here, or another chunk begins."""
    return at >= len(data) or LANDMARK.match(data, at) is not None
