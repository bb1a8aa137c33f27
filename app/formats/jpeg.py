"""What of a JPEG its decoder needs: a walk over its segments (ITU-T T.81, annex B).

Tables, frame and scans are kept. Of the application segments only JFIF's and Adobe's are, which
decide the colours, and only where they are as long as libjpeg wants them; EXIF's tells how the
camera was held. All else, sound or damaged, is dropped.

A scan's data are kept without the marker that ends them. At a marker, libjpeg makes up what is
missing of a scan, with a warning that Pillow does not pass on; at the end of its input it waits for
more, and whoever feeds it notices.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.formats import exif
from app.formats.needed import Needed, Scan, Unreadable

SIGNATURE = b"\xff\xd8"

# Markers, the 0xFF before each left out (table B.1).
DHT, DAC, SOI, EOI, SOS, DQT, DRI, APP0, APP1, APP14 = (
    0xC4, 0xCC, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE,
)  # fmt: skip
TABLES = {DHT, DAC, DQT, DRI}
HUFFMAN_SEQUENTIAL, PROGRESSIVE, ARITHMETIC = {0xC0, 0xC1}, {0xC2, 0xCA}, {0xC9, 0xCA}
READ = HUFFMAN_SEQUENTIAL | PROGRESSIVE | ARITHMETIC
NOT_READ = {
    **dict.fromkeys((0xC3, 0xCB), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical"),
}
ALONE = {0x01, *range(0xD0, 0xD8), SOI}  # TEM, RST0 to RST7: no segment follows
NEEDED = TABLES | READ | set(NOT_READ) | {SOS}

MARKER = re.compile(rb"\xff[^\x00\xff]")
AT_MARKER = re.compile(rb"\xff++[^\x00\xff]")  # 0xFF may be repeated before a marker
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
LANDMARK = re.compile(rb"\xff[\xc0-\xc2\xc4\xc9\xca\xcc\xd8-\xdb\xdd\xe0-\xef\xfe]")

# As long as libjpeg wants them at least (its jdmarker.c), and no longer than it looks at them.
JFIF, JFIF_BYTES = b"JFIF\0", 14
ADOBE, ADOBE_BYTES = b"Adobe", 12

COEFFICIENTS = 64  # of a block
BITS = 8

# The decoder reads ahead, by less than its 64 bits of buffer; a coder of Huffman's kind needs so
# much behind its data. An arithmetic one leaves out zeros at the end of its data (D.1.8).
READ_AHEAD = bytes(7)
ARITHMETIC_READ_AHEAD = bytes(64)

MOST_SEGMENTS = 4096
MOST_WRONG_LENGTHS = 8


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


class Frame:
    """A picture's header, and which of its coefficients the scans have brought so far."""

    def __init__(self, segment: Segment) -> None:
        """Raises Unreadable where it is of a kind that is not read here."""
        content = segment.content
        if kind := NOT_READ.get(segment.marker):
            raise Unreadable(f"is a {kind} JPEG", "send a baseline or a progressive one")
        if len(content) < 6 or len(content) < 6 + 3 * content[5]:
            raise Unreadable("has a frame header that is cut short")
        bits, height, width, components = (
            content[0],
            int.from_bytes(content[1:3], "big"),
            int.from_bytes(content[3:5], "big"),
            content[5],
        )
        if bits != BITS:
            raise Unreadable(f"has {bits} bits per sample", f"send a JPEG of {BITS} bits")
        if not height or not width:
            raise Unreadable(f"is {width}x{height} pixels in size by its header")
        if components not in (1, 3, 4):
            raise Unreadable(f"has {components} colour components", "send one that has 1, 3 or 4")
        self.components = content[6 : 6 + 3 * components : 3]
        self.header = Segment(segment.marker, content[: 6 + 3 * components])
        self.arithmetic = segment.marker in ARITHMETIC
        self.progressive = segment.marker in PROGRESSIVE
        # How many low bits of each coefficient are still to come.
        self._to_come = {each: [BITS] * COEFFICIENTS for each in self.components}

    def add(self, header: bytes) -> int:
        """Note what the scan with this header brings; returns how many components it has."""
        count = header[0] if header else 0
        if len(header) < 4 + 2 * count:
            raise Unreadable("has a scan header that is cut short")
        first, last, approximation = header[1 + 2 * count : 4 + 2 * count]
        low = approximation & 0x0F
        if not self.progressive:
            first, last, low = 0, COEFFICIENTS - 1, 0
        for component in header[1 : 1 + 2 * count : 2]:
            if component in self._to_come and first <= last < COEFFICIENTS:
                self._to_come[component][first : last + 1] = [low] * (last + 1 - first)
        return count

    @property
    def complete(self) -> bool:
        """Every coefficient has come, in full precision."""
        return not any(any(bits) for bits in self._to_come.values())


def needed(data: bytes) -> Needed:
    """What the decoder needs of the JPEG in `data`.

    Raises Unreadable with the reason: cut short before its first scan or between two, without its
    last ones, or of a kind that is not read here.
    """
    scans: list[Scan] = []
    kept = [SIGNATURE]
    frame: Frame | None = None
    orientation = exif.UPRIGHT
    for segment in _segments(data):
        marker, content = segment.marker, segment.content
        if marker in READ or marker in NOT_READ:
            frame = Frame(segment)
        elif marker == SOS:
            if frame is None:
                raise Unreadable("has a scan without a frame header before it")
            if not scans:
                kept.append(frame.header.file())
            components = frame.add(content)
            header = b"".join((*kept, segment.file()))
            if frame.arithmetic:  # libjpeg can't interrupt such a one
                scans.append((b"".join((header, segment.scan, ARITHMETIC_READ_AHEAD)),))
            else:
                scans.append((header, segment.scan, READ_AHEAD))
            kept = []
            # libjpeg's `has_multiple_scans`, in its jdinput.c
            if components == len(frame.components) and not frame.progressive:
                return Needed(bytes(scans[0][0]), tuple(scans), orientation, row_by_row=True)
        elif marker in TABLES:
            kept.append(segment.file())
        elif marker == APP0 and content.startswith(JFIF) and len(content) >= JFIF_BYTES:
            kept.append(Segment(marker, content[:JFIF_BYTES]).file())
        elif marker == APP14 and content.startswith(ADOBE) and len(content) >= ADOBE_BYTES:
            kept.append(Segment(marker, content[:ADOBE_BYTES]).file())
        elif marker == APP1 and content.startswith(exif.IDENTIFIER):
            orientation = exif.orientation(content)
    if frame is None or not scans:
        raise Unreadable("ends within its header")
    if not frame.complete:
        raise Unreadable("has not all of its scans")
    return Needed(bytes(scans[0][0]), tuple(scans), orientation)


def _segments(data: bytes) -> Iterator[Segment]:
    """The segments up to the end of the picture; what stands between two is skipped.

    Limits on what a file may have belong here.
    """
    at, count, scans, wrong = len(SIGNATURE), 0, 0, 0
    while begins := MARKER.search(data, at):
        marker, at = data[begins.end() - 1], begins.end()
        if marker in ALONE or (marker == EOI and not scans):
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
            end = _next_segment(data, at)
        if marker == SOS:
            scans += 1
            finish = END_OF_SCAN.search(data, end)
            stop = finish.start() if finish else len(data)
            yield Segment(marker, data[at + 2 : end], memoryview(data)[end:stop])
            end = stop
        else:
            yield Segment(marker, data[at + 2 : end])
        at = end


def _next_segment(data: bytes, at: int) -> int:
    """Where the next segment begins, after one at `at` whose length is wrong.

    What looks like one within a thumbnail is none: that begins with SOI and ends with EOI. But one
    that was cut off has none, and what comes behind its scan is of the picture itself.
    """
    depth, scanned = 0, False
    for begins in LANDMARK.finditer(data, at):
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
