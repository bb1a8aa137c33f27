"""What several layers of tests share: pictures, forms, and a service on real devices."""

import io
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from app import models
from app.server import build_pool
from app.service import Service
from app.settings import Settings

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PICTURES = TESTS / "pictures"
CAT = PICTURES / "chelsea.png"

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)

EXIF_ORIENTATION = 0x0112
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

MEBIBYTE = 1024 * 1024


# ---------------------------------------------------------------------------- pictures


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow makes of a picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def flat(
    colour: tuple[int, ...] = RED, size: tuple[int, int] = (64, 48), kind: str = "JPEG"
) -> bytes:
    """A picture of one colour, which the colour model reads off again."""
    return encode(Image.new("RGB", size, colour), kind)


def quadrants(
    size: tuple[int, int] = (64, 64),
    colours: tuple[tuple[int, ...], ...] = (RED, GREEN, BLUE, WHITE),
    mode: str = "RGB",
) -> Image.Image:
    """Four rectangles: upper left, upper right, lower left, lower right."""
    width, height = size
    picture = Image.new(mode, size)
    draw = ImageDraw.Draw(picture)
    for number, colour in enumerate(colours):
        x, y = width // 2 * (number % 2), height // 2 * (number // 2)
        fill: Any = colour if len(colour) > 1 else colour[0]
        draw.rectangle((x, y, x + width // 2 - 1, y + height // 2 - 1), fill)
    return picture


def noise(size: tuple[int, int] = (64, 48), seed: int = 7) -> Image.Image:
    """A picture that doesn't compress."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def exif(orientation: int) -> Image.Exif:
    """EXIF data that says nothing but how the camera was held."""
    data = Image.Exif()
    data[EXIF_ORIENTATION] = orientation
    return data


def exif_entry(kind: int, count: int, value: bytes, tag: int = EXIF_ORIENTATION) -> bytes:
    """EXIF data with one entry as raw as one likes; `value` has four bytes."""
    entry = struct.pack("<HHI4s", tag, kind, count, value)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)


def as_a_camera_stores_it(upright: Image.Image, orientation: int) -> Image.Image:
    """The pixels that, with this EXIF orientation, show `upright`."""
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return upright if stored is None else upright.transpose(stored)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its right checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(
    width: int,
    height: int,
    pixels: bytes = b"",
    *,
    before_pixels: bytes = b"",
    depth: int = 8,
    colour: int = 2,
    interlaced: bool = False,
) -> bytes:
    """A PNG that says what it is told to say; `pixels` are its compressed lines.

    `colour` is PNG's: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return (
        PNG_MAGIC
        + png_chunk(b"IHDR", header)
        + before_pixels
        + png_chunk(b"IDAT", pixels)
        + png_chunk(b"IEND", b"")
    )


def claiming(picture: bytes, width: int, height: int) -> bytes:
    """A picture whose header tells of another size than it has."""
    file = bytearray(picture)
    if picture.startswith(b"\xff\xd8"):
        start = max(picture.find(b"\xff\xc0"), picture.find(b"\xff\xc2"))
        file[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif picture.startswith(b"GIF"):
        file[6:10] = struct.pack("<HH", width, height)
    elif picture.startswith(b"BM"):
        file[18:26] = struct.pack("<ii", width, height)
    elif picture.startswith(PNG_MAGIC):
        file[16:24] = struct.pack(">II", width, height)
        file[29:33] = struct.pack(">I", zlib.crc32(bytes(file[12:29])))
    elif b"VP8L" in picture:
        start = picture.index(b"VP8L") + 9
        (bits,) = struct.unpack_from("<I", file, start)
        bits = bits >> 28 << 28 | (height - 1) << 14 | (width - 1)
        file[start : start + 4] = struct.pack("<I", bits)
    else:
        start = picture.index(b"\x9d\x01\x2a") + 3  # lossy WebP: its frame's start code
        file[start : start + 4] = struct.pack("<HH", width, height)
    return bytes(file)


# ---------------------------------------------------------------------------- memory


@contextmanager
def resident_growth() -> Iterator[Callable[[], int]]:
    """Yields a function: how many bytes more this process had in memory at most since then."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
    before = _status("VmRSS")
    yield lambda: _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


# ---------------------------------------------------------------------------- forms


def part(
    name: str | None,
    content: bytes | str,
    filename: str | None = None,
    *,
    headers: tuple[str, ...] = (),
) -> bytes:
    """One part of a form, without its boundary."""
    disposition = "Content-Disposition: form-data"
    if name is not None:
        disposition += f'; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    head = "\r\n".join((disposition, *headers)).encode()
    return head + b"\r\n\r\n" + (content.encode() if isinstance(content, str) else content)


def form(*parts: bytes, boundary: str | None = None) -> dict[str, Any]:
    """A multipart form, as keyword arguments of a test client's `post`."""
    boundary = boundary or uuid.uuid4().hex
    line = f"--{boundary}".encode()
    body = b"".join(line + b"\r\n" + each + b"\r\n" for each in parts) + line + b"--\r\n"
    return {"data": body, "content_type": f"multipart/form-data; boundary={boundary}"}


# ---------------------------------------------------------------------------- services


def wait_for(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until something holds; fails the test when it doesn't in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def make_settings(**values: Any) -> Settings:
    """Settings with these values, the others at their defaults; nothing else is read."""
    return Settings.model_validate(values)


def build_service(told: Settings) -> Service:
    """A service, as the server builds it, whose devices are not started yet."""
    catalogue = models.load(told)
    return Service(told, catalogue, build_pool(told, catalogue))


@contextmanager
def running(told: Settings) -> Iterator[Service]:
    """A service with its device processes, which end with the block."""
    service = build_service(told)
    service.pool.start()
    try:
        wait_for(lambda: all(each.state == "ready" for each in service.pool.status()))
        yield service
    finally:
        service.pool.close()
