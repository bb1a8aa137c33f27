"""Bodies that were compressed on their way: `Content-Encoding` (RFC 9110, 8.4)."""

import zlib

from app.errors import UnsupportedType, UploadBroken

GZIP = 16 + zlib.MAX_WBITS  # as zlib is told to expect it
MOST_MEMBERS = 8  # of a gzip file; nearly all have one


class TooLong(Exception):
    """There is more in it than is taken."""


def coding_of(header: str) -> str:
    """The coding that a `Content-Encoding` names: `gzip`, `deflate` or, where it's none, empty.

    Raises UnsupportedType, naming the coding, for any other and for several.
    """
    codings = [coding.strip().lower() for coding in header.split(",")]
    match [name.removeprefix("x-") for name in codings if name not in ("", "identity")]:
        case []:
            return ""
        case ["gzip" | "deflate" as coding]:
            return coding
    raise UnsupportedType(
        f"can't take a body with Content-Encoding {header[:40]!r}; send it as gzip, as deflate or "
        "not compressed at all"
    )


def unpack(body: bytes, coding: str, most: int) -> bytes:
    """The body behind a coding; raises UploadBroken for damage and TooLong above `most` bytes."""
    if not body or not coding:
        return body
    try:
        return _inflate(body, _window(body, coding), most)
    except zlib.error as error:
        raise UploadBroken(f"the body is no {coding}, as its Content-Encoding says") from error


def _window(body: bytes, coding: str) -> int:
    """What zlib must expect. Deflate is wrapped by zlib's header; many clients leave that out."""
    if coding == "gzip":
        return GZIP
    wrapped = body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


def _inflate(body: bytes, window: int, most: int) -> bytes:
    unpacked = b""
    for _ in range(MOST_MEMBERS):
        inflater = zlib.decompressobj(window)
        unpacked += inflater.decompress(body, most + 1 - len(unpacked))
        if len(unpacked) > most:
            raise TooLong
        if not inflater.eof:
            raise UploadBroken("the body ends before what is compressed in it; send it whole")
        body = inflater.unused_data
        if window != GZIP or not body:
            break
    return unpacked
