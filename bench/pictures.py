"""JPEGs as cameras send them, made from the pictures in this repository: always the same bytes."""

import io
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).parent.parent
SOURCES = {
    "cat": ROOT / "tests" / "pictures" / "chelsea.png",
    "coffee": ROOT / "tests" / "pictures" / "coffee.png",
    "person": ROOT / "models" / "selftest_person.jpg",
}
TILE = (640, 480)
QUALITY = 85

FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
"""What Pillow calls them."""

Size = tuple[int, int]  # width, height in pixels


def camera_pictures(size: Size, kind: str = "JPEG") -> list[bytes]:
    """Different pictures of one size, with detail down to the pixel: sources side by side.

    First those that begin with a source, in the order of SOURCES, then with a mirrored one.
    """
    tiles = [_tile(path, size) for path in SOURCES.values()]
    tiles += [ImageOps.mirror(tile) for tile in tiles]
    return [
        _file(_side_by_side(tiles[first:] + tiles[:first], size), kind)
        for first in range(len(tiles))
    ]


def _tile(path: Path, size: Size) -> Image.Image:
    tile = (min(TILE[0], size[0]), min(TILE[1], size[1]))
    with Image.open(path) as picture:
        return ImageOps.fit(picture.convert("RGB"), tile, Image.Resampling.LANCZOS)


def _side_by_side(tiles: list[Image.Image], size: Size) -> Image.Image:
    width, height = tiles[0].size
    picture = Image.new("RGB", size)
    spots = [(x, y) for y in range(0, size[1], height) for x in range(0, size[0], width)]
    for number, spot in enumerate(spots):
        picture.paste(tiles[number % len(tiles)], spot)
    return picture


def _file(picture: Image.Image, kind: str) -> bytes:
    """A JPEG has its colours at half resolution (4:2:0), as cameras have them."""
    file = io.BytesIO()
    options = {"quality": QUALITY, "subsampling": "4:2:0"} if kind == "JPEG" else {}
    picture.save(file, kind, **options)
    return file.getvalue()
