"""What the walks over files have in common."""

from dataclasses import dataclass


class Unreadable(Exception):
    """A file begins like a picture and can't be read; says why, as a sentence about "it"."""

    def __init__(self, why: str, remedy: str = "send it whole") -> None:
        super().__init__(f"{why}; {remedy}")


Scan = tuple[bytes | memoryview, ...]
"""A JPEG's scan, with all that stands between it and the one before. The decoder is handed one
piece after the other, and with the last has all that it needs."""


@dataclass(frozen=True)
class Needed:
    """The part of a file that its decoder needs."""

    file: bytes
    """Of a JPEG, all before the data of its first scan."""
    scans: tuple[Scan, ...] = ()
    """Of a JPEG alone."""
    orientation: int = 1
    """As EXIF has it: 1 to 8."""
    row_by_row: bool = False
    """The decoder never holds the whole picture."""
