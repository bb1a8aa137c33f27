"""What the walks over files have in common."""

from dataclasses import dataclass


class Unreadable(Exception):
    """A file begins like a picture and can't be read; says why, as a sentence about "it"."""

    def __init__(self, why: str, remedy: str = "send it whole") -> None:
        super().__init__(f"{why}; {remedy}")


@dataclass(frozen=True)
class Needed:
    """The part of a file that its decoder needs."""

    pieces: tuple[bytes, ...]
    """Handed to the decoder one after the other; the first has the header. Only a JPEG has more
    than one: they end behind the data of each scan."""
    orientation: int = 1
    """As EXIF has it: 1 to 8."""
    row_by_row: bool = False
    """The decoder never holds the whole picture."""
