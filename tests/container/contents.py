"""What lies in an image, and what of it should not. Pure, but for reading an archive."""

import contextlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(?:[A-Za-z0-9+/=]{20,}\s+){5}")
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{20,}")
TEMPORARY = {"tmp", "var/tmp", "run/lock"}
"""Where everybody may write on any Debian; a read-only root takes even that away."""

TOOLS = re.compile(
    r"(?:^|/)s?bin/(?:"
    r"(?:[a-z0-9_]+-linux-gnu-)?(?:gcc|g\+\+|cpp|cc|c\+\+|ld|as|gold|tcc|clang)(?:[-.][0-9]+)?"
    r"|make|cmake|ninja|rustc|cargo|go|uvx?|pipx?[0-9.]*|curl|wget|nc|git|ssh|sudo|gdb|strace"
    r")$"
)
INSTALLERS = re.compile(r"/(?:pip|setuptools|ensurepip|wheel|_distutils_hack)/__init__\.py$")
HEADERS = re.compile(r"^usr/include/.*\.h$|/Python\.h$")


@dataclass(frozen=True)
class File:
    """One entry of an archive."""

    path: str
    mode: int
    owner: int
    kind: str
    """file, folder, link or other."""
    secret: str
    """certificate, private key, or nothing."""


def read(archive: tarfile.TarFile) -> Iterator[File]:
    """Every entry, with what its content tells."""
    for entry in archive:
        kind = "file" if entry.isfile() else "folder" if entry.isdir() else "other"
        if entry.issym() or entry.islnk():
            kind = "link"
        secret = ""
        if entry.isfile() and (content := archive.extractfile(entry)):
            data = content.read()
            secret = "certificate" if CERTIFICATE.search(data) else ""
            secret = "private key" if PRIVATE_KEY.search(data) else secret
        yield File(entry.name.removeprefix("./"), entry.mode, entry.uid, kind, secret)


def layers(image: tarfile.TarFile) -> Iterator[tarfile.TarFile]:
    """The layers of what `docker save` wrote, in whichever of its forms."""
    for entry in image:
        content = image.extractfile(entry) if entry.isfile() else None
        if content is None:
            continue
        # Packed or not; what can't be opened is a description.
        with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=content) as layer:
            yield layer


def set_id(files: Iterable[File]) -> list[str]:
    """Programs that give their owner's rights to whoever runs them."""
    return [file.path for file in files if file.kind == "file" and file.mode & 0o6000]


def writable(files: Iterable[File]) -> list[str]:
    """What everybody may write to."""
    return [
        file.path
        for file in files
        if file.kind in ("file", "folder") and file.mode & 0o002 and file.path not in TEMPORARY
    ]


def tools(files: Iterable[File]) -> list[str]:
    """Compilers, installers, and programs that fetch things."""
    patterns = (TOOLS, INSTALLERS, HEADERS)
    return [file.path for file in files if any(each.search(file.path) for each in patterns)]


def secrets(files: Iterable[File]) -> list[str]:
    """Certificates and keys."""
    return [f"{file.path}: a {file.secret}" for file in files if file.secret]
