"""What of a GIF its decoder needs: a walk over its blocks (GIF89a, 17 to 26).

The screen and all from the first frame on are kept, and that frame's graphic control where it is
whole: it says what shows where the frame does not reach. Comments and the like are not.
"""

import re

from app.formats.needed import Needed, Unreadable

SCREEN_BYTES = 13
HAS_COLOURS, COLOURS = 0x80, 0x07  # of the screen's flags: colours follow, 2 to the power of n + 1

BLOCK = re.compile(rb"[!,;]")  # an extension, a frame, the end
EXTENSION, FRAME = b"!", b","
MOST_BLOCKS = 131_072  # and sub-blocks, before the first frame
GRAPHIC_CONTROL = re.compile(rb"!\xf9\x04.{4}\0", re.DOTALL)


def needed(data: bytes) -> Needed:
    """What the decoder needs of the GIF in `data`. Raises Unreadable where it has no frame."""
    if len(data) < SCREEN_BYTES:
        raise Unreadable("ends within its header")
    flags = data[10]
    at = SCREEN_BYTES + (3 * 2 ** ((flags & COLOURS) + 1) if flags & HAS_COLOURS else 0)
    screen, control = data[:at], b""
    left = MOST_BLOCKS
    while block := BLOCK.search(data, at):
        if block[0] == FRAME:
            return Needed(screen + control + data[block.start() :])
        if block[0] != EXTENSION:
            break
        if graphic := GRAPHIC_CONTROL.match(data, block.start()):
            control = graphic[0]
        at, left = _behind(data, block.start() + 2, left)
        if not left:
            raise Unreadable(
                f"has more than {MOST_BLOCKS} blocks before its pixels", "leave metadata out"
            )
    raise Unreadable("ends before its pixels")


def _behind(data: bytes, at: int, left: int) -> tuple[int, int]:
    """Where the blocks end of which the first, its length before it, is at `at`, and how many of
    the `left` that may be looked at are then left."""
    while left > 1 and at < len(data) and data[at]:
        at += 1 + data[at]
        left -= 1
    return at + 1, left - 1
