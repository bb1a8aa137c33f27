"""Bytes → upright picture → tensor. Every limit on pictures is here, and Pillow only here.

`docs/decoding.md` has the measurements behind the choices of decoder and filter.
"""

import struct
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from app.errors import ImageCorrupt, ImageTooLarge, NotAnImage
from app.models import Layout

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
JPEGS = ("JPEG", "MPO")  # MPO: a JPEG with further pictures behind it, as many phones send

# A baseline JPEG is scaled while it is decoded, so its memory stays small; but its time does not.
BASELINE_JPEG_FACTOR = 4

# What Pillow raised for mutated pictures and metadata (besides its own bomb error).
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, IndexError, OverflowError, struct.error,
)  # fmt: skip

# Reef checks sizes itself, from the header, before any pixel is decoded; behind that Pillow's own
# limit (178 megapixels) stays on. What Pillow only warns of, a client must not write to our log.
warnings.filterwarnings("ignore", module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = {5, 6, 7, 8}  # width and height change places

LETTERBOX_GREY = 128

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An upright RGB picture, perhaps scaled down by its decoder.

    `width` and `height` are those of the picture as sent, upright, in pixels.
    """

    pixels: Image.Image
    width: int
    height: int


@dataclass(frozen=True)
class Fit:
    """How a picture lies in a tensor.

    `width` and `height`: the upright picture's, in pixels. `left`, `top`, `across` and `down`: what
    it covers, as fractions of the tensor.
    """

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    across: float = 1.0
    down: float = 1.0

    def to_picture(self, ymin: float, xmin: float, ymax: float, xmax: float) -> Box:
        """Map a box, as fractions of the tensor, to the picture.

        Returns (x1, y1, x2, y2) in pixels of the upright picture, clamped to it.
        """

        def clamped(at: float, offset: float, covered: float, size: int) -> float:
            return min(max((at - offset) / covered, 0.0), 1.0) * size

        return (
            clamped(xmin, self.left, self.across, self.width),
            clamped(ymin, self.top, self.down, self.height),
            clamped(xmax, self.left, self.across, self.width),
            clamped(ymax, self.top, self.down, self.height),
        )


def decode(data: bytes, at_least: tuple[int, int], max_pixels: int) -> Picture:
    """Decode a picture in one of FORMATS; of several frames, the first.

    A JPEG is scaled down while it is decoded, to the smallest size not below `at_least` (width,
    height) in pixels. Transparency is dropped, its colours kept. At most `max_pixels` are decoded;
    a baseline JPEG may have BASELINE_JPEG_FACTOR times that before it is scaled.

    Raises NotAnImage, ImageTooLarge (before pixels are decoded) or ImageCorrupt.
    """
    picture = _open(data)
    width, height = picture.size
    orientation = _orientation(picture)
    if orientation in TURNED:
        at_least = at_least[::-1]
    if picture.format in JPEGS:
        picture.draft("RGB", at_least)
        picture.decodermaxblock = len(data)  # in one piece and not in 64 KiB: a tenth less time
    limit = max_pixels * (BASELINE_JPEG_FACTOR if _has_one_scan(data) else 1)
    if width * height > limit:
        raise _too_large(width, height, limit)
    if picture.width * picture.height > max_pixels:  # too thin to be scaled while it is decoded
        raise _too_large(width, height, max_pixels)
    try:
        picture.load()
        pixels = _to_rgb(picture)
    except Image.DecompressionBombError as error:
        raise _too_large(width, height, max_pixels) from error
    except DECODER_ERRORS as error:
        raise ImageCorrupt(f"the picture can't be decoded ({error}); send it whole") from error
    if orientation in UPRIGHT:
        pixels = pixels.transpose(UPRIGHT[orientation])
    if orientation in TURNED:
        width, height = height, width
    return Picture(pixels, width, height)


def fit(picture: Picture, layout: Layout) -> tuple[NDArray[np.uint8], Fit]:
    """Scale a picture to a model's input.

    Returns the tensor, uint8 (1, height, width, 3) RGB, and how the picture lies in it.
    """
    if layout.resize == "stretch":
        scaled = _scale(picture.pixels, layout.width, layout.height)
        return scaled[np.newaxis], Fit(picture.width, picture.height)
    scale = min(layout.width / picture.width, layout.height / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(1, round(picture.height * scale))
    left, top = (layout.width - width) // 2, (layout.height - height) // 2
    tensor = np.full((1, layout.height, layout.width, 3), LETTERBOX_GREY, np.uint8)
    scaled = _scale(picture.pixels, width, height)
    tensor[0, top : top + height, left : left + width] = scaled
    return tensor, Fit(
        picture.width,
        picture.height,
        left / layout.width,
        top / layout.height,
        width / layout.width,
        height / layout.height,
    )


def _scale(pixels: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """The picture as uint8 (height, width, 3)."""
    shrinks = pixels.width >= width and pixels.height >= height
    # The mean of the pixels covered: the fastest filter that shrinks, and the most accurate here.
    # Enlarging, it would only repeat pixels. With a reducing gap of 1, whole factors go first.
    resample = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(pixels.resize((width, height), resample, reducing_gap=1.0))


def _open(data: bytes) -> ImageFile:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(
            f"the picture has too many pixels ({error}); send it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise NotAnImage(f"not a picture in a format read here: {', '.join(FORMATS)}") from error
    except DECODER_ERRORS as error:
        raise ImageCorrupt(f"the picture can't be decoded ({error}); send it whole") from error


def _orientation(picture: Image.Image) -> int:
    if "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except DECODER_ERRORS:
        return 1  # broken metadata is no reason to refuse the picture


def _has_one_scan(data: bytes) -> bool:
    """Whether this is a baseline JPEG whose first scan has all components.

    Such a one is decoded row by row. Any other, progressive or not, libjpeg holds whole, as
    coefficients (`has_multiple_scans` in its jdinput.c). Markers: ITU-T T.81, B.1.1.3.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    at, components = 2, 0
    while data[at : at + 1] == b"\xff" and at + 9 < len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (0xC0, 0xC1):  # the frame header of a sequential JPEG
            components = data[at + 9]
        elif marker == 0xDA:  # the header of the first scan
            return 0 < components == data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _too_large(width: int, height: int, limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the picture has {width}x{height} pixels, more than {limit / 1e6:g} megapixels; "
        "send it smaller (REEF_MAX_MEGAPIXELS)"
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        # 16 bits of grey: keep the upper 8. Pillow's own conversion would clip instead.
        values = np.asarray(picture)
        upper = values >> 8 if values.dtype == np.uint16 else values / 257
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
