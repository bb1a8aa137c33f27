"""The pictures that are posted, each a request whose bytes are made beforehand."""

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

from bench.benchmarking.client import Target
from bench.benchmarking.errors import WrongUsage
from bench.pictures import FORMATS, SOURCES, Size, camera_pictures

MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"BM": "bmp",
    b"GIF8": "gif",
    b"RIFF": "webp",
}
MOST_PICTURES = 1000
SALT_BYTES = 16
JPEG_COMMENT = b"\xff\xfe" + struct.pack(">H", 2 + SALT_BYTES)
PNG_HEAD = 8 + 25  # its magic and its first chunk, IHDR
PNG_KEY = b"tEXtComment\0"


@dataclass(frozen=True)
class Picture:
    """A file to post."""

    name: str
    kind: str
    """jpeg, png, webp, bmp or gif"""
    content: bytes
    copies: tuple[str, ...] = ()
    """Files that have the same bytes: they would only be the same picture under another name."""


@dataclass(frozen=True)
class Prepared:
    """A picture as a request: `before` and `after` are sent with a salt between, or without."""

    name: str
    kind: str
    before: bytes
    after: bytes

    def request(self, salt: bytes = b"") -> bytes:
        """The bytes to send. `salt` is what `salts` gives, and only for what was made for one."""
        if not salt:
            return self.before
        if self.kind == "png":
            chunk = PNG_KEY + salt
            salt = chunk + struct.pack(">I", zlib.crc32(chunk))
        return self.before + salt + self.after


def built_in(size: Size, kinds: Sequence[str]) -> list[Picture]:
    """Pictures as cameras send them, of one size, each in every format.

    None is the mirror of another: two that differ in nothing that counts are one.
    """
    return [
        Picture(f"{name}.{kind}", kind, content)
        for kind in kinds
        for name, content in zip(SOURCES, camera_pictures(size, FORMATS[kind]), strict=False)
    ]


def from_files(paths: Sequence[Path]) -> list[Picture]:
    """The files named, and all pictures of the folders named; equal files are one picture.

    Raises WrongUsage when one can't be read, is no picture, or a folder has none.
    """
    found: list[Picture] = []
    for path in paths:
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            read = [_picture(file) for file in files if file.is_file() or file == path]
        except OSError as error:
            raise WrongUsage(f"--image: {error}") from error
        pictures = [each for each in read if each]
        if not pictures:
            has = "has" if path.is_dir() else "is"
            raise WrongUsage(f"--image: {path} {has} no JPEG, PNG, WebP, BMP or GIF")
        found += pictures
    if len(found) > MOST_PICTURES:
        raise WrongUsage(f"--image: {len(found)} files; at most {MOST_PICTURES}")
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise WrongUsage("--image: two files have the same name; results are told by name")
    return _once(found)


def prepare(
    target: Target, pictures: Sequence[Picture], query: dict[str, str], *, salted: bool
) -> list[Prepared]:
    """The requests. `query` has the parameters of `/predict`.

    Raises WrongUsage for a picture that can't be salted.
    """
    route = "/predict" + (f"?{urlencode(query)}" if query else "")
    found = []
    for picture in pictures:
        before, after = _split(picture) if salted else (picture.content, b"")
        length = len(before) + len(after)
        if salted:
            length += SALT_BYTES + (len(PNG_KEY) + 4 if picture.kind == "png" else 0)
        head = target.head(
            "POST",
            route,
            {"Content-Type": f"image/{picture.kind}", "Content-Length": str(length)},
        )
        found.append(Prepared(picture.name, picture.kind, head + before, after))
    return found


def salts(seed: int) -> Iterator[bytes]:
    """Endless salts, none twice in a run; another seed gives others."""
    for number in itertools.count():
        yield b"%06x%010x" % (seed & 0xFFFFFF, number)


def _once(pictures: Sequence[Picture]) -> list[Picture]:
    """Each content under its first name."""
    groups: dict[bytes, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.content, []).append(picture)
    return [
        replace(first, copies=tuple(copy.name for copy in copies))
        for first, *copies in groups.values()
    ]


def _picture(file: Path) -> Picture | None:
    content = file.read_bytes()
    kinds = [kind for magic, kind in MAGIC.items() if content.startswith(magic)]
    return Picture(file.name, kinds[0], content) if kinds else None


def _split(picture: Picture) -> tuple[bytes, bytes]:
    """What stands before and after the salt, which a decoder passes over."""
    content = picture.content
    if picture.kind == "jpeg":
        return content[:2] + JPEG_COMMENT, content[2:]
    if picture.kind == "png":
        length = struct.pack(">I", len(PNG_KEY) - 4 + SALT_BYTES)
        return content[:PNG_HEAD] + length, content[PNG_HEAD:]
    raise WrongUsage(f"--unique: only a JPEG or a PNG can carry a salt, not {picture.name}")
