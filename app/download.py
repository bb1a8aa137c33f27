"""The one downloader: checked before use, continued where it broke off, put in place at once.

`reef models pull` uses it, and the image's build (scripts/fetch.py); the server never does. It
needs nothing but the standard library, because the build has no more of Reef than this file.
"""

import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

TIMEOUT_S = 20
CHUNK_BYTES = 256 * 1024
MAX_BYTES = 64 * 1024 * 1024
RANGE_NOT_SATISFIABLE = 416

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here, and how many there are in all, if that is known."""


class Unreachable(Exception):
    """The site gave no file."""


class Damaged(Exception):
    """The site gave something, but not the right file: never to be used, never to be ignored."""


class Refused(Exception):
    """Nothing was asked for: the address, or the place to write to, can't be used."""


class CutShort(Damaged):
    """The site broke off; what came is kept, and the next try goes on from there."""


@dataclass(frozen=True)
class Checksum:
    """What tells the right bytes: a SHA-256, else the id that git gives a file of these bytes."""

    sha256: str | None = None
    git_blob: str | None = None

    def objection(self, data: bytes) -> str:
        """What is wrong with a file of these bytes, in words; empty if they are the right ones."""
        if self.sha256:
            kind, wanted, actual = "sha256", self.sha256, hashlib.sha256(data).hexdigest()
        else:
            kind, wanted = "git blob id", self.git_blob or ""
            blob = b"blob %d\0" % len(data) + data  # as `git hash-object` does
            actual = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
        return "" if actual == wanted else f"has {kind} {actual}, not {wanted}"


def download(
    url: str, into: Path, checksum: Checksum, progress: Progress = lambda _have, _all: None
) -> None:
    """Have the file at `url` as `into`, whole and verified; until then it is `into` with `.part`.

    Raises Refused, Unreachable, Damaged, CutShort, or OSError if it can't be written.
    """
    if not url.startswith(("http://", "https://")):
        raise Refused("is no address of a web site")
    part = into.with_name(f"{into.name}.part")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused("is being downloaded by another process; wait for that") from error
        try:
            continued = _fetch(url, file, progress)
            if continued and checksum.objection(part.read_bytes()):  # the rest of another file
                file.truncate(0)
                _fetch(url, file, progress)
            if objection := checksum.objection(part.read_bytes()):
                raise Damaged(f"{objection}; don't use it, find out why")
        except (Unreachable, Damaged) as error:
            continues = isinstance(error, CutShort | Unreachable) and file.tell()
            if not continues:
                part.unlink()
            raise
        os.fsync(file.fileno())
        part.replace(into)


def _fetch(url: str, file: BinaryIO, progress: Progress) -> bool:
    """Append what is missing of a file; returns whether something was there before."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url)  # noqa: S310 - `download` checks it
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - checked too
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == RANGE_NOT_SATISFIABLE:  # it is all here, or more than all
            return True
        raise Unreachable(f"answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(getattr(error, "reason", error))) from error
    with answer:
        if have and answer.status != http.client.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        continued, promised = have > 0, answer.headers.get("Content-Length", "")
        whole = have + int(promised) if promised.isdigit() else None
        while chunk := _read(answer):
            have += file.write(chunk)
            progress(have, whole)
            if have > MAX_BYTES:
                raise Damaged(f"has more than {MAX_BYTES} bytes; don't use it, find out why")
        file.flush()
    if whole is not None and have < whole:
        raise CutShort(f"was cut short: {have} of {whole} bytes came")
    return continued


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise CutShort(f"was cut short ({error})") from error
