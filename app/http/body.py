"""The body of a request, whole and in memory alone, within its limits."""

import time
from dataclasses import dataclass
from typing import IO

from flask import Request
from gunicorn.http.errors import NoMoreData, ParseException

from app.errors import UploadBroken, UploadTooLarge, UploadTooSlow
from app.http.unpack import TooLong, coding_of, unpack


@dataclass(frozen=True)
class Limits:
    """What a body may take; `deadline` is in `time.monotonic()` seconds."""

    max_bytes: int
    deadline: float


def read_body(request: Request, limits: Limits) -> bytes:
    """A request's body, unpacked where it was compressed, which is held to the same limit.

    Raises UploadTooLarge (from the Content-Length, before anything is read, where there is one),
    UploadTooSlow, UploadBroken or UnsupportedType.
    """
    coding = coding_of(request.headers.get("Content-Encoding", ""))
    body = _receive(request.environ["wsgi.input"], request.content_length, limits)
    try:
        return unpack(body, coding, limits.max_bytes)
    except TooLong as error:
        raise _too_large(limits) from error


def _receive(stream: IO[bytes], length: int | None, limits: Limits) -> bytes:
    if length is not None and length > limits.max_bytes:
        raise _too_large(limits)
    wanted = limits.max_bytes + 1 if length is None else length
    try:
        body = stream.read(wanted)
    except (BlockingIOError, TimeoutError) as error:  # the socket's receive timeout
        raise UploadTooSlow("the body stopped coming; send it at once") from error
    except (ParseException, NoMoreData) as error:
        _check_in_time(limits)
        raise UploadBroken("the body can't be read: its chunks are no HTTP") from error
    except OSError as error:
        _check_in_time(limits)
        raise UploadBroken("the body can't be read: the connection broke") from error
    if len(body) > limits.max_bytes:
        raise _too_large(limits)
    if length is not None and len(body) < length:
        _check_in_time(limits)
        raise UploadBroken(f"the body ended after {len(body)} of {length} bytes")
    return body


def _check_in_time(limits: Limits) -> None:
    """Tell a body that broke off from one that the server stopped waiting for."""
    if time.monotonic() >= limits.deadline:
        raise UploadTooSlow("the body took too long to come; send it faster or smaller")


def _too_large(limits: Limits) -> UploadTooLarge:
    return UploadTooLarge(
        f"the body has more than {limits.max_bytes // 1024 // 1024} MiB; send a smaller picture "
        "(REEF_MAX_UPLOAD_MIB)"
    )
