"""Bytes → upright picture → tensor. Every limit on pictures is here, and Pillow only here.

`docs/decoding.md` has the measurements behind the choices of decoder and filter.
"""

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from app import formats
from app.errors import ImageCorrupt, ImageTooLarge, NotAnImage
from app.formats import Needed, Scan, Unreadable
from app.models import Layout

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

# A baseline JPEG is scaled while it is decoded, so its memory stays small; but its time does not.
BASELINE_JPEG_FACTOR = 4

# What Pillow raised for mutated pictures (besides its own bomb error). Its words may hold what the
# client sent, so they go nowhere.
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, IndexError, OverflowError, struct.error,
)  # fmt: skip

# Reef checks sizes itself, from the header, before any pixel is decoded; behind that Pillow's own
# limit (178 megapixels) stays on. What Pillow only warns of, a client must not write to our log.
warnings.filterwarnings("ignore", module=r"PIL\.")

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

END_OF_JPEG = b"\xff\xd9"

# Of a JPEG, in both alphabets (RFC 4648), and of a PNG, GIF and WebP.
BASE64_BEGINNINGS = (b"/9j/", b"_9j_", b"iVBORw0KGgo", b"R0lGOD", b"UklGR")

Decode = Callable[[bytes | memoryview], tuple[int, int]]
"""Takes what it can of its argument; returns how many bytes, or -1 at its end, and its error."""

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
    """How a picture, or a region of it, lies in a tensor.

    `width` and `height`: the region's, in pixels of the upright picture; `x` and `y`: its upper
    left corner there. `left`, `top`, `across` and `down`: what it covers, as fractions of the
    tensor.
    """

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    across: float = 1.0
    down: float = 1.0
    x: int = 0
    y: int = 0

    def to_picture(self, ymin: float, xmin: float, ymax: float, xmax: float) -> Box:
        """Map a box, as fractions of the tensor, to the picture.

        Returns (x1, y1, x2, y2) in pixels of the upright picture, clamped to the region.
        """

        def clamped(at: float, offset: float, covered: float, size: int) -> float:
            return min(max((at - offset) / covered, 0.0), 1.0) * size

        return (
            self.x + clamped(xmin, self.left, self.across, self.width),
            self.y + clamped(ymin, self.top, self.down, self.height),
            self.x + clamped(xmax, self.left, self.across, self.width),
            self.y + clamped(ymax, self.top, self.down, self.height),
        )


class Fitted(NamedTuple):
    """A tensor, uint8 (1, height, width, 3) RGB, and how a picture lies in it."""

    tensor: NDArray[np.uint8]
    fit: Fit


def decode(data: bytes, at_least: tuple[int, int], max_pixels: int) -> Picture:
    """Decode a picture in one of FORMATS; of several frames, the first.

    A JPEG is scaled down while it is decoded, to the smallest size not below `at_least` (width,
    height) in pixels. Transparency is dropped, its colours kept. At most `max_pixels` are decoded;
    a baseline JPEG may have BASELINE_JPEG_FACTOR times that before it is scaled.

    What the decoder doesn't need is not looked at. Raises NotAnImage, ImageTooLarge (before pixels
    are decoded) or ImageCorrupt, also where pixels are missing.
    """
    try:
        file = formats.needed(data)
    except Unreadable as error:
        raise ImageCorrupt(f"the picture can't be read: it {error}") from error
    picture = _open(file)
    width, height = picture.size
    turned = file.orientation in TURNED
    if picture.format == "JPEG":
        picture.draft("RGB", at_least[::-1] if turned else at_least)
    limit = max_pixels * (BASELINE_JPEG_FACTOR if file.row_by_row else 1)
    if width * height > limit:
        raise _too_large(width, height, limit)
    if picture.width * picture.height > max_pixels:  # too thin to be scaled while it is decoded
        raise _too_large(width, height, max_pixels)
    try:
        if picture.format == "JPEG":
            _load_jpeg(picture, file.scans)
        else:
            picture.load()
        pixels = _to_rgb(picture)
    except Image.DecompressionBombError as error:
        raise _too_large(width, height, max_pixels) from error
    except DECODER_ERRORS as error:
        raise _cut_short() from error
    if file.orientation in UPRIGHT:
        pixels = pixels.transpose(UPRIGHT[file.orientation])
    if turned:
        width, height = height, width
    return Picture(pixels, width, height)


def fit(picture: Picture, layout: Layout) -> Fitted:
    """Scale a picture to a model's input."""
    if layout.resize == "stretch":
        scaled = _scale(picture.pixels, layout.width, layout.height)
        return Fitted(scaled[np.newaxis], Fit(picture.width, picture.height))
    scale = min(layout.width / picture.width, layout.height / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(1, round(picture.height * scale))
    left, top = (layout.width - width) // 2, (layout.height - height) // 2
    tensor = np.full((1, layout.height, layout.width, 3), LETTERBOX_GREY, np.uint8)
    scaled = _scale(picture.pixels, width, height)
    tensor[0, top : top + height, left : left + width] = scaled
    covered = Fit(
        picture.width,
        picture.height,
        left / layout.width,
        top / layout.height,
        width / layout.width,
        height / layout.height,
    )
    return Fitted(tensor, covered)


def _scale(pixels: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """The picture as uint8 (height, width, 3)."""
    shrinks = pixels.width >= width and pixels.height >= height
    # The mean of the pixels covered: the fastest filter that shrinks, and the most accurate here.
    # Enlarging, it would only repeat pixels. With a reducing gap of 1, whole factors go first.
    resample = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(pixels.resize((width, height), resample, reducing_gap=1.0))


def _open(file: Needed) -> ImageFile:
    try:
        return Image.open(BytesIO(file.file), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge("the picture has too many pixels; send it smaller") from error
    except UnidentifiedImageError as error:
        if formats.begins_like_one(file.file):
            raise ImageCorrupt(
                "the picture can't be read: its header is damaged; send it whole"
            ) from error
        raise NotAnImage(_what_instead(file.file)) from error
    except DECODER_ERRORS as error:
        raise _cut_short() from error


def _load_jpeg(picture: ImageFile, scans: tuple[Scan, ...]) -> None:
    """Decode a JPEG scan by scan; raises ImageCorrupt where one is damaged or short of data.

    `ImageFile.load` does nearly the same, but does not tell where the decoder stopped, and so not
    whether a scan was short of data: libjpeg only warns of that.
    """
    name, extents, _, arguments = picture.tile[0]
    decoder = Image._getdecoder(picture.mode, name, arguments, picture.decoderconfig)
    picture.load_prepare()
    decoder.setimage(picture.im, extents)
    try:
        complete = _decode_scans(decoder.decode, scans)
    finally:
        decoder.cleanup()
    if not complete:
        raise _cut_short()
    picture.tile = []


def _decode_scans(decode: Decode, scans: tuple[Scan, ...]) -> bool:
    """Whether the decoder has made all rows of what is in these scans."""
    for scan in scans:
        left = b""
        for piece in scan:
            fed = left + piece if left else piece
            consumed, error = decode(fed)
            if consumed < 0:  # no more is wanted
                return not error
            left = bytes(fed[consumed:])
        # Behind a scan it skips whatever comes; within one it can do nothing with a single byte.
        if left or decode(b"\0") != (1, 0):
            return False
    return decode(END_OF_JPEG) == (-1, 0)


def _what_instead(data: bytes) -> str:
    """What bytes are that are no picture, in words that help."""
    text = data[:64].lstrip(b' \t\r\n"')
    if text[:5].lower() == b"data:":
        return "the picture is a data: URI; send the bytes that it stands for"
    if text.startswith(BASE64_BEGINNINGS):
        return "the picture is base64 text; send the bytes that it stands for"
    return f"not a picture in a format read here: {', '.join(FORMATS)}"


def _cut_short() -> ImageCorrupt:
    return ImageCorrupt("the picture can't be decoded: it is cut short or damaged; send it whole")


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
