"""The body of a request → one picture and the form's fields, within limits, in memory alone."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

from flask import Request
from gunicorn.http.errors import NoMoreData, ParseException
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from app.errors import (
    ImageAmbiguous,
    ImageMissing,
    UnsupportedType,
    UploadBroken,
    UploadTooLarge,
    UploadTooSlow,
)
from app.http.unpack import TooLong, coding_of, unpack

FIELD = "image"
MAX_PARTS = 16
MAX_TEXT_BYTES = 64 * 1024
HOW = f"post it as the multipart field '{FIELD}', or as the body with 'Content-Type: image/jpeg'"
TEXTS = ("text/", "application/json", "application/x-www-form-urlencoded")  # how types begin

# RFC 7578, 4.2; RFC 2046, 5.1.1. Names and values as clients write them: those that have an `=` or
# other signs in a boundary often forget the quotes, and a filename may be in any charset, in which
# a quote or a backslash may be part of a letter. So a quote ends a value only where the next
# parameter or the end of the header follows: one that no backslash escapes, if there is such a one.
# Runs of a kind are taken whole (`++`): who goes back over them takes the square of their length.
ENDS = r'"(?=\s*+(?:;\s*+[^\s=;"]++\s*+=|;?+\s*+$))'
PARAMETER = re.compile(
    r';\s*+([^\s=;"]++)\s*+=\s*+'
    rf'(?:"((?:[^"\\]|\\.)*+){ENDS}|"(.*?){ENDS}|"([^"]*+)"|([^;]*+))',
    re.DOTALL,
)
ANY_CHARSET = "latin-1"  # has a character for every byte


@dataclass(frozen=True)
class Upload:
    """One picture as it came, and the texts sent with it, by name."""

    image: bytes
    fields: Mapping[str, list[str]] = field(default_factory=dict)


def read(request: Request, max_bytes: int, deadline: float) -> Upload:
    """Read a request's body.

    `deadline` is in `time.monotonic()` seconds. Raises UploadTooLarge (from the Content-Length,
    before anything is read, where there is one), UploadTooSlow, UploadBroken, UnsupportedType,
    ImageMissing or ImageAmbiguous. What is compressed is held to the same limit.
    """
    kind = request.mimetype
    raw = kind.startswith("image/") or kind == "application/octet-stream"
    if not raw and kind != "multipart/form-data":
        if not kind and not request.content_length and "Transfer-Encoding" not in request.headers:
            raise ImageMissing(f"the request has no body; {HOW}")
        bytes_alone = ", as bytes and not as base64" if kind.startswith(TEXTS) else ""
        raise UnsupportedType(
            f"can't take a picture from {kind[:80] or 'no Content-Type'!r}; {HOW}{bytes_alone}"
        )
    coding = coding_of(request.headers.get("Content-Encoding", ""))
    body = _read_body(request.environ["wsgi.input"], request.content_length, max_bytes, deadline)
    try:
        body = unpack(body, coding, max_bytes)
    except TooLong as error:
        raise _too_large(max_bytes) from error
    upload = Upload(body) if raw else _from_form(body, _boundary(request.content_type or ""))
    if not upload.image:
        raise ImageMissing(f"the picture is empty; {HOW}")
    return upload


def _read_body(stream: IO[bytes], length: int | None, max_bytes: int, deadline: float) -> bytes:
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    wanted = max_bytes + 1 if length is None else length
    try:
        body = stream.read(wanted)
    except (BlockingIOError, TimeoutError) as error:  # the socket's receive timeout
        raise UploadTooSlow("the body stopped coming; send it at once") from error
    except (ParseException, NoMoreData) as error:
        _check_in_time(deadline)
        raise UploadBroken("the body can't be read: its chunks are no HTTP") from error
    except OSError as error:
        _check_in_time(deadline)
        raise UploadBroken("the body can't be read: the connection broke") from error
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    if length is not None and len(body) < length:
        _check_in_time(deadline)
        raise UploadBroken(f"the body ended after {len(body)} of {length} bytes")
    return body


def _check_in_time(deadline: float) -> None:
    """Tell a body that broke off from one that the server stopped waiting for."""
    if time.monotonic() >= deadline:
        raise UploadTooSlow("the body took too long to come; send it faster or smaller")


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(
        f"the body has more than {max_bytes // 1024 // 1024} MiB; send a smaller picture "
        "(REEF_MAX_UPLOAD_MIB)"
    )


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header, by their names in lower case; of several the first."""
    parameters: dict[str, str] = {}
    for name, *values in PARAMETER.findall(header):
        parameters.setdefault(name.lower(), "".join(values).strip())
    return parameters


def _boundary(content_type: str) -> bytes:
    """The boundary of a form, as its body has it: of bytes of any charset."""
    boundary = _parameters(content_type).get("boundary")
    if not boundary:
        raise UploadBroken(f"the form's Content-Type names no boundary; {HOW}")
    return boundary.encode(ANY_CHARSET, "replace")


def _from_form(body: bytes, boundary: bytes) -> Upload:
    images: list[bytes] = []
    fields: dict[str, list[str]] = {}
    try:
        for part, content in _parts(body, boundary):
            disposition = _parameters(part.header("Content-Disposition", ""))
            name = disposition.get("name", "")
            if name == FIELD:
                images.append(content)
            elif not disposition.keys() & {"filename", "filename*"}:
                if len(content) > MAX_TEXT_BYTES:
                    raise UploadTooLarge(f"a form field has more than {MAX_TEXT_BYTES} bytes")
                fields.setdefault(name, []).append(content.decode(errors="replace"))
    except MultipartError as error:
        raise UploadBroken(f"the form can't be read: {_why(error, body, boundary)}") from error
    if not images:
        raise ImageMissing(f"the form has no field '{FIELD}'; {HOW}")
    if len(images) > 1:
        raise ImageAmbiguous(f"the form has {len(images)} fields '{FIELD}'; send one picture")
    return Upload(images[0], fields)


def _why(error: MultipartError, body: bytes, boundary: bytes) -> str:
    """What is wrong with a form, and what to do."""
    if not error.args[0].startswith("Unexpected end of multipart stream"):
        return f"{error.args[0]}; {HOW}"
    if b"--" + boundary not in body:
        return (
            "the boundary of its Content-Type is not in its body; leave that header to what makes "
            "the form, or copy the boundary from the body"
        )
    return "it does not end with the boundary of its Content-Type and '--'; send it whole"


def _parts(body: bytes, boundary: bytes) -> list[tuple[MultipartSegment, bytes]]:
    parts: list[tuple[MultipartSegment, bytes]] = []
    with PushMultipartParser(
        boundary, len(body), max_segment_count=MAX_PARTS, header_charset=ANY_CHARSET
    ) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                parts.append((event, b""))
            elif event:  # the whole content: the body is parsed at once
                parts[-1] = (parts[-1][0], bytes(event))
    return parts
