"""What of a JPEG its decoder needs (ITU-T T.81).

Tables, frame and scans are kept. Of the application segments only JFIF's and Adobe's are, which
decide the colours, and only where they are as long as libjpeg wants them; EXIF's tells how the
camera was held. All else, sound or damaged, is dropped.

A scan's data are kept without the marker that ends them. At a marker, libjpeg makes up what is
missing of a scan, with a warning that Pillow does not pass on; at the end of its input it waits for
more, and whoever feeds it notices.
"""

from app.formats import exif
from app.formats.jpeg_segments import (
    ARITHMETIC,
    DRI,
    FRAMES,
    NOT_READ,
    PROGRESSIVE,
    SOS,
    TABLES,
    Segment,
    segments,
)
from app.formats.needed import Needed, Scan, Unreadable

BEGINNING = b"\xff\xd8"
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
RESTART = b"\xff\xd0"
SAME_RESTART = bytes(0xD0 if 0xD0 <= byte <= 0xD7 else byte for byte in range(256))
"""Translates RST0 to RST7 to one, so that they are counted without a list of them."""

# As long as libjpeg wants them at least (its jdmarker.c), and no longer than it looks at them.
JFIF, JFIF_BYTES = b"JFIF\0", 14
ADOBE, ADOBE_BYTES = b"Adobe", 12

BITS = 8
BLOCK, COEFFICIENTS = 8, 64  # samples a side, and in all
NOTHING_CAME = bytes((BITS,)) * COEFFICIENTS

# The decoder reads ahead, by less than its 64 bits of buffer; so much must stand behind a scan.
# Where data are missing it takes this for them, but hardly ever for the end of a block: in the
# usual tables that is 00 or 1010. An arithmetic coder leaves out zeros at the end of its data
# (D.1.8).
READ_AHEAD = b"\x6d\xb6\xdb\x6d\xb6\xdb\x6d"
ARITHMETIC_READ_AHEAD = bytes(64)


class Frame:
    """A picture's header, and which of its coefficients the scans have brought so far."""

    def __init__(self, segment: Segment) -> None:
        """Raises Unreadable where it is damaged or of a kind that is not read here."""
        content = segment.content
        if kind := NOT_READ.get(segment.marker):
            raise Unreadable(f"is a {kind} JPEG", "send a baseline or a progressive one")
        if len(content) < 6 or len(content) < 6 + 3 * content[5]:
            raise Unreadable("has a frame header that is cut short")
        bits, count = content[0], content[5]
        self.height = int.from_bytes(content[1:3], "big")
        self.width = int.from_bytes(content[3:5], "big")
        if bits != BITS:
            raise Unreadable(f"has {bits} bits per sample", f"send a JPEG of {BITS} bits")
        if not self.height or not self.width:
            raise Unreadable(f"is {self.width}x{self.height} pixels in size by its header")
        if count not in (1, 3, 4):
            raise Unreadable(f"has {count} colour components", "send one that has 1, 3 or 4")
        self.header = Segment(segment.marker, content[: 6 + 3 * count])
        self.arithmetic = segment.marker in ARITHMETIC
        self.progressive = segment.marker in PROGRESSIVE
        self.components = content[6 : 6 + 3 * count : 3]
        self._factors = dict(zip(self.components, content[7 : 6 + 3 * count : 3], strict=True))
        # How many low bits of each coefficient are still to come.
        self._to_come = {component: bytearray(NOTHING_CAME) for component in self.components}

    def add(self, scan: Segment, interval: int) -> bool:
        """Note what a scan brings; whether all of the picture was in it.

        `interval` is that of its restarts, 0 for none. Raises Unreadable where some are missing.
        """
        header = scan.content
        count = header[0] if header else 0
        if len(header) < 4 + 2 * count:
            raise Unreadable("has a scan header that is cut short")
        components = header[1 : 1 + 2 * count : 2]
        first, last, approximation = header[1 + 2 * count : 4 + 2 * count]
        low = approximation & 0x0F
        if not self.progressive:
            first, last, low = 0, COEFFICIENTS - 1, 0
        for component in components:
            if component in self._to_come and first <= last < COEFFICIENTS:
                self._to_come[component][first : last + 1] = bytes((low,)) * (last + 1 - first)
        if interval and _restarts(scan.scan) < (self._units(components) - 1) // interval:
            raise Unreadable("has a scan without all of its restarts")
        # libjpeg's `has_multiple_scans`, in its jdinput.c
        return count == len(self.components) and not self.progressive

    def _units(self, components: bytes) -> int:
        """How many minimum coded units a scan of these has (A.2)."""
        factors = self._factors.values()
        across = BLOCK * max(1, *(factor >> 4 for factor in factors))
        down = BLOCK * max(1, *(factor & 0x0F for factor in factors))
        if len(components) != 1:
            return _divide_up(self.width, across) * _divide_up(self.height, down)
        only = self._factors.get(components[0], 0)
        width, height = self.width * (only >> 4), self.height * (only & 0x0F)
        return _divide_up(width, across) * _divide_up(height, down)

    @property
    def complete(self) -> bool:
        """Every coefficient has come, in full precision."""
        return not any(map(any, self._to_come.values()))


def _restarts(data: memoryview) -> int:
    return bytes(data).translate(SAME_RESTART).count(RESTART)


def _divide_up(number: int, by: int) -> int:
    return -(-number // by)


def needed(data: bytes) -> Needed:
    """What the decoder needs of the JPEG in `data`.

    Raises Unreadable with the reason: cut short before its first scan or between two, without its
    last ones, or of a kind that is not read here.
    """
    scans: list[Scan] = []
    kept = [BEGINNING]
    frame: Frame | None = None
    orientation, interval = exif.UPRIGHT, 0
    for segment in segments(data):
        marker, content = segment.marker, segment.content
        if marker in FRAMES:
            frame = Frame(segment)
        elif marker == SOS:
            if frame is None:
                raise Unreadable("has a scan without a frame header before it")
            if not scans:
                kept.append(frame.header.file())
            scans.append(_scan(b"".join((*kept, segment.file())), segment.scan, frame))
            kept = []
            if frame.add(segment, interval):
                return Needed(bytes(scans[0][0]), tuple(scans), orientation, row_by_row=True)
        elif marker in TABLES:
            kept.append(segment.file())
            if marker == DRI:
                interval = int.from_bytes(content[:2], "big")
        elif marker == APP0 and content.startswith(JFIF) and len(content) >= JFIF_BYTES:
            kept.append(Segment(marker, content[:JFIF_BYTES]).file())
        elif marker == APP14 and content.startswith(ADOBE) and len(content) >= ADOBE_BYTES:
            kept.append(Segment(marker, content[:ADOBE_BYTES]).file())
        elif marker == APP1 and content.startswith(exif.IDENTIFIER):
            orientation = exif.orientation(content) if orientation == exif.UPRIGHT else orientation
    if frame is None or not scans:
        raise Unreadable("ends within its header")
    if not frame.complete:
        raise Unreadable("has not all of its scans")
    return Needed(bytes(scans[0][0]), tuple(scans), orientation)


def _scan(header: bytes, data: memoryview, frame: Frame) -> Scan:
    if frame.arithmetic:  # libjpeg can't interrupt such a one
        return (b"".join((header, data, ARITHMETIC_READ_AHEAD)),)
    return header, data, READ_AHEAD
