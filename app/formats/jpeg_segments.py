"""The walk over a JPEG's segments (ITU-T T.81, annex B)."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.formats.needed import Unreadable

# Markers, the 0xFF before each left out (table B.1).
DHT, DAC, SOI, EOI, SOS, DQT, DRI = 0xC4, 0xCC, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
TABLES = {DHT, DAC, DQT, DRI}
HUFFMAN_SEQUENTIAL, PROGRESSIVE, ARITHMETIC = {0xC0, 0xC1}, {0xC2, 0xCA}, {0xC9, 0xCA}
READ = HUFFMAN_SEQUENTIAL | PROGRESSIVE | ARITHMETIC
NOT_READ = {
    **dict.fromkeys((0xC3, 0xCB), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical"),
}
"""Headers of frames of kinds that are not read here."""
FRAMES = READ | set(NOT_READ)
NEEDED = TABLES | FRAMES | {SOS}

# Those behind which no segment follows are passed over: TEM, RST0 to RST7, SOI.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
MOST_FILL = 256
AT_MARKER = re.compile(rb"\xff{1,%d}+[^\x00\xff]" % MOST_FILL)  # 0xFF may be repeated before it
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
LANDMARK = re.compile(rb"\xff[\xc0-\xc2\xc4\xc9\xca\xcc\xd8-\xdb\xdd\xe0-\xef\xfe]")

FILL, FILL_BYTES = b"\xff", 4096  # how many are looked at at a time

MOST_SEGMENTS = 4096
MOST_WRONG_LENGTHS = 8
MOST_STEPS = 16_384
"""How many markers are looked at, of segments, within damaged ones and alone: what bounds the time,
as all else is searches that read a file once."""


class Budget:
    """The steps that a walk may still take."""

    def __init__(self, steps: int = MOST_STEPS) -> None:
        self.left = steps

    def spend(self) -> None:
        """Take one. Raises Unreadable where none is left."""
        if not self.left:
            raise Unreadable(f"has more than {MOST_STEPS} markers", "save it anew")
        self.left -= 1


class Segment(NamedTuple):
    """A marker with what follows it."""

    marker: int
    content: bytes
    scan: memoryview = memoryview(b"")
    """Of a scan's header, the entropy-coded data behind it."""

    def file(self) -> bytes:
        """As it stands in a file, without the data of a scan."""
        length = (len(self.content) + 2).to_bytes(2, "big")
        return b"\xff" + bytes((self.marker,)) + length + self.content


def segments(data: bytes) -> Iterator[Segment]:
    """The segments up to the end of the picture; what stands between two is skipped.

    Raises Unreadable where one that matters is cut short, or none can be found any more. Limits on
    what a file may have belong here.
    """
    at, count, scans, wrong, budget = 2, 0, 0, 0, Budget()
    while begins := MARKER.search(data, at):
        budget.spend()
        marker, at = data[begins.end() - 1], begins.end()
        if marker == EOI and not scans:
            continue
        if marker == EOI:
            return
        count += 1
        if count > MOST_SEGMENTS:
            raise Unreadable(f"has more than {MOST_SEGMENTS} segments", "leave metadata out")
        length = int.from_bytes(data[at : at + 2], "big")
        end = at + length
        if marker in NEEDED:
            if length < 2 or end > len(data):
                raise Unreadable("ends within its header")
        elif length < 2 or not AT_MARKER.match(data, end):
            wrong += 1
            if wrong > MOST_WRONG_LENGTHS:
                raise Unreadable("has segments of wrong lengths")
            end = _next_segment(data, at, budget)
        if marker == SOS:
            scans += 1
            finish = END_OF_SCAN.search(data, end)
            stop = finish.start() if finish else len(data)
            yield Segment(marker, data[at + 2 : end], _scan(data, end, stop))
            end = stop
        else:
            yield Segment(marker, data[at + 2 : end])
        at = end


def _scan(data: bytes, start: int, stop: int) -> memoryview:
    """The data of a scan, without what would make a marker of that which is put behind them."""
    while stop > start and data[stop - 1] == FILL[0]:
        tail = data[max(start, stop - FILL_BYTES) : stop]
        stop -= len(tail) - len(tail.rstrip(FILL))
    return memoryview(data)[start:stop]


def _next_segment(data: bytes, at: int, budget: Budget) -> int:
    """Where the next segment begins, after one at `at` whose length is wrong.

    What looks like one within a thumbnail is none: that begins with SOI and ends with EOI. But one
    that was cut off has none, and what comes behind its scan is of the picture itself.
    """
    depth, scanned = 0, False
    for begins in LANDMARK.finditer(data, at):
        budget.spend()
        marker, here = data[begins.end() - 1], begins.start()
        if marker == SOI:
            depth, scanned = depth + 1, False
        elif marker == EOI:
            depth = max(depth - 1, 0)
        elif _is_segment(data, here):
            if not depth or scanned:
                return here
            scanned = marker == SOS
    raise Unreadable("has a segment of a wrong length, behind which nothing can be found")


def _is_segment(data: bytes, at: int) -> bool:
    """Whether behind a marker there is a length, at whose end there is another marker or a scan."""
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    end = at + 2 + length
    return (
        length > 2 and end < len(data) and (data[at + 1] == SOS or bool(AT_MARKER.match(data, end)))
    )
