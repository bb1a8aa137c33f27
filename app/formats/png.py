"""What of a PNG its decoder needs: a walk over its chunks (PNG, third edition, 5 and 11).

Header, palette and pixels are kept, their checksums looked at. Transparency is dropped here
already, as the decoded picture would lose it; eXIf tells how the camera was held.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from app.formats import exif
from app.formats.needed import Needed, Unreadable

SIGNATURE = b"\x89PNG\r\n\x1a\n"

IHDR, PLTE, IDAT, IEND, EXIF, APPLES = b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf", b"CgBI"
CRITICAL = {IHDR, PLTE, IDAT, IEND}
LANDMARK = re.compile(b"PLTE|IDAT|IEND")
ANCILLARY = 0x20  # a bit of a chunk's first letter: it is in lower case

HEADER = struct.Struct(">IIBBBBB")
PALETTE = 3
DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, PALETTE: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
"""Bits per sample for each type of colour."""

AROUND = 12  # bytes of a chunk beside its content: length, kind and checksum
MOST_CHUNKS = 65_536
MOST_WRONG_LENGTHS = 8  # a checksum is taken over so many bytes, however little is skipped
SAVE_ANEW = "save it anew, as a PNG or JPEG"


class Chunk(NamedTuple):
    """One chunk: where it lies in the file, and whether its checksum is right."""

    kind: bytes
    start: int
    end: int
    sound: bool

    @property
    def content(self) -> slice:
        """Where its content lies."""
        return slice(self.start + 8, self.end - 4)


def needed(data: bytes) -> Needed:
    """What the decoder needs of the PNG in `data`.

    Raises Unreadable with the reason: a critical chunk that is damaged, cut short, missing or
    unknown, or a header that PNG does not allow.
    """
    if not data.startswith(SIGNATURE):
        raise Unreadable("has a damaged signature", "transfer it as binary data, not as text")
    view = memoryview(data)
    kept: dict[bytes, list[memoryview]] = {IHDR: [], PLTE: [], IDAT: []}
    colour, orientation = 0, exif.UPRIGHT
    for chunk in _chunks(data):
        if chunk.kind == EXIF:
            if chunk.sound:
                orientation = exif.orientation(data[chunk.content])
            continue
        if chunk.kind[0] & ANCILLARY:
            continue
        _check(chunk)
        if (chunk.kind == IHDR) == bool(kept[IHDR]):
            raise Unreadable("has not one header, at its beginning")
        if chunk.kind == IHDR:
            colour = _colour(data[chunk.content])
        if chunk.end - chunk.start > AROUND and not (chunk.kind == PLTE and kept[PLTE]):
            kept[chunk.kind].append(view[chunk.start : chunk.end])
    if not kept[IDAT]:
        raise Unreadable("ends before its pixels")
    if colour == PALETTE and not kept[PLTE]:
        raise Unreadable("has no palette")
    *before, last = kept[IDAT]
    # Without its last byte, which is of a checksum, the data never end for Pillow. Else it would
    # take their end for that of the picture, however many lines are missing.
    chunks = [*kept[IHDR], *kept[PLTE], *before, memoryview(_chunk(IDAT, last[8:-5]))]
    return Needed(b"".join((SIGNATURE, *chunks, END)), orientation=orientation)


def _chunk(kind: bytes, content: bytes | memoryview) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I4s", len(content), kind), content, struct.pack(">I", checksum)))


END = _chunk(IEND, b"")


def _check(chunk: Chunk) -> None:
    if chunk.kind == APPLES:
        raise Unreadable("is in Apple's own form of PNG (CgBI)", SAVE_ANEW)
    if chunk.kind not in CRITICAL:
        raise Unreadable("has a critical chunk that PNG does not know", SAVE_ANEW)
    if not chunk.sound:
        raise Unreadable(f"has a damaged chunk {chunk.kind.decode()} (its checksum is wrong)")


def _colour(header: bytes) -> int:
    """The type of colour, of a header that is right."""
    if len(header) != HEADER.size:
        raise Unreadable("has a header of a wrong length")
    width, height, depth, colour, compression, filtering, interlace = HEADER.unpack(header)
    if not width or not height:
        raise Unreadable(f"is {width}x{height} pixels in size by its header")
    if depth not in DEPTHS.get(colour, ()):
        raise Unreadable(f"has {depth} bits of colour type {colour}, which PNG does not know")
    if compression or filtering or interlace > 1:
        raise Unreadable("is compressed, filtered or interlaced in a way that PNG does not know")
    return int(colour)


def _chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks before IEND; after one whose length is wrong, the next that matters.

    Limits on what a file may have belong here.
    """
    view = memoryview(data)
    at, count, wrong = len(SIGNATURE), 0, 0
    while at + 8 <= len(data):
        count += 1
        if count > MOST_CHUNKS:
            raise Unreadable(f"has more than {MOST_CHUNKS} chunks", "leave metadata out")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + AROUND + length
        if kind == IEND:
            return
        if end > len(data):
            if kind in CRITICAL:
                raise Unreadable(f"ends within its chunk {kind.decode()}")
            at = _next_chunk(data, at + 8)
            continue
        sound = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")
        if not sound and kind not in CRITICAL and not data[end + 4 : end + 8].isalpha():
            wrong += 1
            if wrong > MOST_WRONG_LENGTHS:
                raise Unreadable("has chunks of wrong lengths")
            at = _next_chunk(data, at + 8)
            continue
        yield Chunk(kind, at, end, sound)
        at = end


def _next_chunk(data: bytes, at: int) -> int:
    """Where the next chunk begins whose kind stands at `at` or behind; the end where none does."""
    kind = LANDMARK.search(data, at)
    return kind.start() - 4 if kind else len(data)
