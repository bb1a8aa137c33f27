"""Ways from a JPEG's bytes to the model's tensor, which bench.decoders compares.

Each stretches the picture to the square. A decoder's own scaling, where it has one, stops at the
smallest size that is not below the model's input in width or height. "Reef" is the server's way.
"""

import io
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from app import imaging
from app.models import Layout
from app.selftest import MAX_PIXELS

SIDE = 320

Pixels = NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]  # JPEG -> contiguous (320, 320, 3), RGB
Resize = Callable[[Pixels], Pixels]


def pillow(
    shrinking: Resampling,
    *,
    enlarging: Resampling | None = None,
    draft: bool = True,
    gap: float | None = None,
) -> Decoder:
    """Pillow alone, with a filter of its own for enlarging in any direction, if given one.

    `draft` is the JPEG decoder's own scaling, `gap` is Pillow's `reducing_gap`.
    """

    def decode(data: bytes) -> Pixels:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=["JPEG"])
        if draft:
            picture.draft("RGB", (SIDE, SIDE))
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        resampling = shrinking if min(picture.size) >= SIDE else enlarging or shrinking
        return np.asarray(picture.resize((SIDE, SIDE), resampling, reducing_gap=gap))

    return decode


def reef(data: bytes) -> Pixels:
    """The server's own way."""
    picture = imaging.decode(data, (SIDE, SIDE), MAX_PIXELS)
    tensor, _ = imaging.fit(picture, Layout(SIDE, SIDE, "stretch"))
    return np.asarray(tensor[0])


def turbo(resize: Resize, *, fast: bool = False) -> Decoder:
    """simplejpeg, which is libjpeg-turbo's own interface and scales by eighths."""

    def decode(data: bytes) -> Pixels:
        return resize(
            simplejpeg.decode_jpeg(
                data, "RGB", min_height=SIDE, min_width=SIDE, fastdct=fast, fastupsample=fast
            )
        )

    return decode


def opencv(resize: Resize) -> Decoder:
    """OpenCV; it has to be told how far to scale, so Pillow reads the header."""
    reduced = {
        8: cv2.IMREAD_REDUCED_COLOR_8,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        1: cv2.IMREAD_COLOR,
    }

    def decode(data: bytes) -> Pixels:
        scale = min(Image.open(io.BytesIO(data), formats=["JPEG"]).size) // SIDE
        flag = next(flag for divisor, flag in reduced.items() if divisor <= max(scale, 1))
        flag |= cv2.IMREAD_IGNORE_ORIENTATION
        picture = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flag), np.uint8)
        # Colours last: there are fewer pixels then.
        return np.asarray(cv2.cvtColor(resize(picture), cv2.COLOR_BGR2RGB), np.uint8)

    return decode


def by_pillow(resampling: Resampling, *, gap: float | None = None) -> Resize:
    """Pillow's resize of an array."""
    return lambda pixels: np.asarray(
        Image.fromarray(pixels).resize((SIDE, SIDE), resampling, reducing_gap=gap)
    )


def by_opencv(interpolation: int) -> Resize:
    """OpenCV's resize of an array."""
    return lambda pixels: np.asarray(
        cv2.resize(pixels, (SIDE, SIDE), interpolation=interpolation), np.uint8
    )


REFERENCE = "Pillow whole, bilinear"
DECODERS: dict[str, Decoder] = {
    REFERENCE: pillow(Resampling.BILINEAR, draft=False),
    "Pillow whole, bilinear, gap 1": pillow(Resampling.BILINEAR, draft=False, gap=1.0),
    "Pillow draft, bilinear": pillow(Resampling.BILINEAR),
    "Pillow draft, box": pillow(Resampling.BOX),
    "Pillow draft, Hamming": pillow(Resampling.HAMMING),
    "Pillow draft, bicubic": pillow(Resampling.BICUBIC),
    "Pillow draft, bilinear, gap 2": pillow(Resampling.BILINEAR, gap=2.0),
    "Pillow draft, bilinear, gap 1": pillow(Resampling.BILINEAR, gap=1.0),
    "Pillow draft, box, gap 1": pillow(Resampling.BOX, gap=1.0),
    "Pillow draft, Hamming, gap 1": pillow(Resampling.HAMMING, gap=1.0),
    "Pillow draft, bicubic, gap 1": pillow(Resampling.BICUBIC, gap=1.0),
    "Pillow draft, box or bilinear, gap 1": pillow(
        Resampling.BOX, enlarging=Resampling.BILINEAR, gap=1.0
    ),
    "Reef": reef,
    "simplejpeg, Pillow bilinear, gap 1": turbo(by_pillow(Resampling.BILINEAR, gap=1.0)),
    "simplejpeg, OpenCV linear": turbo(by_opencv(cv2.INTER_LINEAR)),
    "simplejpeg, OpenCV area": turbo(by_opencv(cv2.INTER_AREA)),
    "simplejpeg fast, OpenCV area": turbo(by_opencv(cv2.INTER_AREA), fast=True),
    "OpenCV reduced, linear": opencv(by_opencv(cv2.INTER_LINEAR)),
    "OpenCV reduced, area": opencv(by_opencv(cv2.INTER_AREA)),
}
