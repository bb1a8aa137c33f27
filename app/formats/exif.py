"""How the camera was held, from EXIF data: nothing else in it matters here.

EXIF is a TIFF header and directories (Exif 3.0, 4.5 and 4.6.2). The orientation is an entry of the
first directory, so no offset is followed but the first, and nothing can go in circles.
"""

import struct

IDENTIFIER = b"Exif\0\0"
ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION = 0x0112
SHORT, LONG = 3, 4  # types of an entry
ENTRY_BYTES = 12
UPRIGHT = 1


def orientation(data: bytes) -> int:
    """The orientation, 1 to 8, in EXIF data with or without its identifier.

    UPRIGHT where there is none, or where the data are damaged: that is no reason to refuse a
    picture.
    """
    tiff = data.removeprefix(IDENTIFIER)
    order = ORDERS.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return UPRIGHT
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    if directory + 2 > len(tiff):
        return UPRIGHT
    (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
    first = directory + 2
    last = min(first + ENTRY_BYTES * entries, len(tiff) - ENTRY_BYTES + 1)
    for at in range(first, last, ENTRY_BYTES):
        tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, at)
        if tag == ORIENTATION:
            if kind not in (SHORT, LONG) or count != 1:
                return UPRIGHT
            (value,) = struct.unpack_from(order + ("H" if kind == SHORT else "I"), tiff, at + 8)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
