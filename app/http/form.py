"""Multipart forms → their parts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from app.errors import UploadBroken, UploadTooLarge

MAX_PARTS = 16
MAX_TEXT_BYTES = 64 * 1024

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
class Part:
    """One part of a form."""

    name: str
    content: bytes
    is_file: bool
    """It came with a filename."""


def parse(body: bytes, content_type: str, advice: str) -> list[Part]:
    """The parts of a form, in their order.

    Raises UploadBroken for what is no form; the message ends with `advice` where that may help.
    """
    boundary = _boundary(content_type, advice)
    try:
        return [_part(segment, content) for segment, content in _segments(body, boundary)]
    except MultipartError as error:
        reason = _reason(error, body, boundary, advice)
        raise UploadBroken(f"the form can't be read: {reason}") from error


def texts(parts: Iterable[Part]) -> dict[str, list[str]]:
    """The values of the parts that are no files, by name. Raises UploadTooLarge."""
    values: dict[str, list[str]] = {}
    for part in parts:
        if part.is_file:
            continue
        if len(part.content) > MAX_TEXT_BYTES:
            raise UploadTooLarge(f"a form field has more than {MAX_TEXT_BYTES} bytes")
        values.setdefault(part.name, []).append(part.content.decode(errors="replace"))
    return values


def _part(segment: MultipartSegment, content: bytes) -> Part:
    disposition = _parameters(segment.header("Content-Disposition", ""))
    is_file = not disposition.keys().isdisjoint(("filename", "filename*"))
    return Part(disposition.get("name", ""), content, is_file)


def _parameters(header: str) -> dict[str, str]:
    """The parameters of a header, by their names in lower case; of several the first."""
    parameters: dict[str, str] = {}
    for name, *values in PARAMETER.findall(header):
        parameters.setdefault(name.lower(), "".join(values).strip())
    return parameters


def _boundary(content_type: str, advice: str) -> bytes:
    """The boundary of a form, as its body has it: of bytes of any charset."""
    boundary = _parameters(content_type).get("boundary")
    if not boundary:
        raise UploadBroken(f"the form's Content-Type names no boundary; {advice}")
    return boundary.encode(ANY_CHARSET, "replace")


def _reason(error: MultipartError, body: bytes, boundary: bytes, advice: str) -> str:
    """What is wrong with a form, and what to do."""
    if not error.args[0].startswith("Unexpected end of multipart stream"):
        return f"{error.args[0]}; {advice}"
    if b"--" + boundary not in body:
        return (
            "the boundary of its Content-Type is not in its body; leave that header to what makes "
            "the form, or copy the boundary from the body"
        )
    return "it does not end with the boundary of its Content-Type and '--'; send it whole"


def _segments(body: bytes, boundary: bytes) -> list[tuple[MultipartSegment, bytes]]:
    segments: list[tuple[MultipartSegment, bytes]] = []
    with PushMultipartParser(
        boundary, len(body), max_segment_count=MAX_PARTS, header_charset=ANY_CHARSET
    ) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                segments.append((event, b""))
            elif event:  # the whole content: the body is parsed at once
                segments[-1] = (segments[-1][0], bytes(event))
    return segments
