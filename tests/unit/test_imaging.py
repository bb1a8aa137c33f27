"""Bytes → upright picture → tensor: right colours, right way up, within limits, whatever comes."""

import base64
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.errors import ImageCorrupt, ImageTooLarge, NotAnImage
from app.imaging import FORMATS, LETTERBOX_GREY, Fit, Picture, decode, fit
from app.models import Layout
from tests.corpus import make
from tests.corpus.mutate import mutations
from tests.support import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MEBIBYTE,
    RED,
    ROOT,
    WHITE,
    as_a_camera_stores_it,
    claiming,
    encode,
    exif,
    flat,
    noise,
    png,
    quadrants,
    resident_growth,
)

LAYOUT = Layout(32, 32, "stretch")
INPUT = (32, 32)
LIMIT = 25_000_000
"""The default of REEF_MAX_MEGAPIXELS, in pixels."""

Corpus = dict[str, Path]
Colours = tuple[tuple[int, int, int], ...]
Pixels = NDArray[np.uint8]


def seen(data: bytes, at_least: tuple[int, int] = INPUT, max_pixels: int = LIMIT) -> Picture:
    """The picture in `data`."""
    return decode(data, at_least, max_pixels)


def colours(pixels: Pixels | Image.Image) -> Pixels:
    """The colours in the middle of the four quadrants; (4, 3)."""
    values = np.asarray(pixels)
    height, width = values.shape[:2]
    rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    return np.array([values[row, column] for row in rows for column in columns])


def assert_close(found: Pixels, wanted: Colours, tolerance: int = 2) -> None:
    """Every channel within a tolerance."""
    difference = np.abs(found.astype(int) - np.array(wanted))
    assert difference.max() <= tolerance, f"{found.tolist()} is not {wanted}"


# ---------------------------------------------------------------------------- colours

PRIMARIES: Colours = (RED, GREEN, BLUE, WHITE)
MILD: Colours = ((200, 60, 40), (60, 160, 80), (70, 80, 180), (220, 210, 200))
GREYS: Colours = (BLACK, GREY, (200, 200, 200), WHITE)
BITS: Colours = (BLACK, WHITE, WHITE, BLACK)

QUADRANTS = quadrants()
MILD_QUADRANTS = quadrants(colours=MILD)
GREY_QUADRANTS = quadrants(colours=((0,), (128,), (200,), (255,)), mode="L")
BIT_QUADRANTS = quadrants(colours=((0,), (1,), (1,), (0,)), mode="1")


def with_alpha(picture: Image.Image) -> Image.Image:
    """The picture, nearly transparent."""
    seen_through = picture.copy()
    seen_through.putalpha(40)
    return seen_through


def raw_png(values: NDArray[np.generic], depth: int, colour: int) -> bytes:
    """A PNG of big-endian values (height, width, channels)."""
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    return png(values.shape[1], values.shape[0], zlib.compress(lines), depth=depth, colour=colour)


def deep(picture: Image.Image) -> NDArray[np.generic]:
    """16 bits a channel."""
    return (np.asarray(picture).astype(np.uint16) * 257).astype(">u2")


def interlaced_png(picture: Image.Image) -> bytes:
    """Adam7."""
    values = np.asarray(picture)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    lines = b"".join(
        b"\0" + line.tobytes() for x, y, dx, dy in passes for line in values[y::dy, x::dx]
    )
    height, width = values.shape[:2]
    return png(width, height, zlib.compress(lines), interlaced=True)


def ycck(inks: Colours) -> bytes:
    """A JPEG in YCCK, as Photoshop writes it: inverted, its Adobe marker saying so.

    Pillow writes CMYK, storing 255 - value; so this hands it what YCCK would have stored.
    """
    as_rgb = quadrants(colours=inks).convert("YCbCr")
    luma, blue, red = (255 - np.asarray(band).astype(int) for band in as_rgb.split())
    stored = np.stack([luma, blue, red, np.zeros_like(luma)], axis=-1).astype(np.uint8)
    file = bytearray(encode(Image.fromarray(stored, "CMYK"), "JPEG", quality=95))
    marker = file.index(b"Adobe")
    assert file[marker + 11] == 0  # the colour transform: none
    file[marker + 11] = 2
    return bytes(file)


def in_three_scans(picture: Image.Image) -> bytes:
    """A baseline JPEG with a scan for each component, made of three grey ones."""
    planes = [encode(plane, "JPEG", quality=100) for plane in picture.convert("YCbCr").split()]
    frame, scan = planes[0].index(b"\xff\xc0"), planes[0].index(b"\xff\xda")
    tables = planes[0][frame + 13 : scan]
    size = planes[0][frame + 5 : frame + 9]
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = make.segment(0xC0, b"\x08" + size + b"\x03" + components)
    scans = (
        make.segment(0xDA, bytes((1, number, 0, 0, 63, 0))) + plane[scan + 10 : -2]
        for number, plane in enumerate(planes, start=1)
    )
    return planes[0][:frame] + header + tables + b"".join(scans) + b"\xff\xd9"


INKS: Colours = tuple((255 - r, 255 - g, 255 - b) for r, g, b in MILD)
CMYK = quadrants(colours=tuple((*ink, 0) for ink in INKS), mode="CMYK")
BLACK_INK = quadrants(colours=((0, 0, 0, 255), (0, 0, 0, 127), (0, 0, 0, 55), (0, 0, 0, 0)),
                      mode="CMYK")  # fmt: skip
PALETTE = QUADRANTS.quantize(4)

GOLDEN: dict[str, tuple[bytes, Colours]] = {
    "JPEG": (encode(MILD_QUADRANTS, "JPEG", quality=95), MILD),
    "JPEG without subsampling": (encode(QUADRANTS, "JPEG", quality=95, subsampling=0), PRIMARIES),
    "JPEG progressive": (encode(MILD_QUADRANTS, "JPEG", quality=95, progressive=True), MILD),
    "JPEG stored as RGB": (encode(QUADRANTS, "JPEG", quality=95, keep_rgb=True), PRIMARIES),
    "JPEG in three scans": (in_three_scans(QUADRANTS), PRIMARIES),
    "JPEG with restarts": (
        encode(MILD_QUADRANTS, "JPEG", quality=95, restart_marker_blocks=3),
        MILD,
    ),
    "JPEG L": (encode(GREY_QUADRANTS, "JPEG", quality=95), GREYS),
    "JPEG CMYK, inverted by Adobe": (encode(CMYK, "JPEG", quality=95), MILD),
    "JPEG CMYK of black ink": (encode(BLACK_INK, "JPEG", quality=95), GREYS),
    "JPEG YCCK": (ycck(INKS), MILD),
    "JPEG with a second picture": (
        encode(MILD_QUADRANTS, "MPO", quality=95, save_all=True, append_images=[noise()]),
        MILD,
    ),
    "PNG RGB": (encode(QUADRANTS, "PNG"), PRIMARIES),
    "PNG RGB, 16 bits": (raw_png(deep(QUADRANTS), 16, 2), PRIMARIES),
    "PNG RGB, one colour transparent": (encode(QUADRANTS, "PNG", transparency=RED), PRIMARIES),
    "PNG RGB, interlaced": (interlaced_png(QUADRANTS), PRIMARIES),
    "PNG RGBA": (encode(with_alpha(QUADRANTS), "PNG"), PRIMARIES),
    "PNG RGBA, 16 bits": (raw_png(deep(with_alpha(QUADRANTS)), 16, 6), PRIMARIES),
    "PNG P": (encode(PALETTE, "PNG"), PRIMARIES),
    "PNG P, one colour transparent": (encode(PALETTE, "PNG", transparency=0), PRIMARIES),
    "PNG P, all colours transparent": (encode(PALETTE, "PNG", transparency=bytes(4)), PRIMARIES),
    "PNG L": (encode(GREY_QUADRANTS, "PNG"), GREYS),
    "PNG L, one grey transparent": (encode(GREY_QUADRANTS, "PNG", transparency=128), GREYS),
    "PNG LA": (encode(with_alpha(GREY_QUADRANTS), "PNG"), GREYS),
    "PNG LA, 16 bits": (raw_png(deep(with_alpha(GREY_QUADRANTS)), 16, 4), GREYS),
    "PNG I;16": (raw_png(deep(GREY_QUADRANTS), 16, 0), GREYS),
    "PNG 1 bit": (encode(BIT_QUADRANTS, "PNG"), BITS),
    "WebP": (encode(MILD_QUADRANTS, "WEBP", quality=100), MILD),
    "WebP lossless": (encode(QUADRANTS, "WEBP", lossless=True), PRIMARIES),
    "WebP RGBA": (encode(with_alpha(QUADRANTS), "WEBP", lossless=True, exact=True), PRIMARIES),
    "WebP animated": (
        encode(QUADRANTS, "WEBP", lossless=True, save_all=True, append_images=[noise((64, 64))]),
        PRIMARIES,
    ),
    "BMP RGB": (encode(QUADRANTS, "BMP"), PRIMARIES),
    "BMP RGBA": (encode(with_alpha(QUADRANTS), "BMP"), PRIMARIES),
    "BMP P": (encode(PALETTE, "BMP"), PRIMARIES),
    "BMP L": (encode(GREY_QUADRANTS, "BMP"), GREYS),
    "BMP 1 bit": (encode(BIT_QUADRANTS, "BMP"), BITS),
    "GIF": (encode(PALETTE, "GIF"), PRIMARIES),
    "GIF, one colour transparent": (encode(PALETTE, "GIF", transparency=0), PRIMARIES),
    "GIF L": (encode(GREY_QUADRANTS, "GIF"), GREYS),
    "GIF animated": (
        encode(PALETTE, "GIF", save_all=True, append_images=[noise((64, 64)).quantize(4)]),
        PRIMARIES,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_format_and_colour_mode_has_its_colours(name: str) -> None:
    data, wanted = GOLDEN[name]
    picture = seen(data)
    assert (picture.width, picture.height) == (64, 64)
    assert_close(colours(picture.pixels), wanted)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("name", GOLDEN)
def test_every_format_and_colour_mode_has_its_colours_in_the_tensor(name: str, resize: str) -> None:
    data, wanted = GOLDEN[name]
    layout = Layout(32, 32, "stretch" if resize == "stretch" else "letterbox")
    tensor, _ = fit(seen(data), layout)
    assert tensor.shape == (1, 32, 32, 3)
    assert tensor.dtype == np.uint8
    assert_close(colours(tensor[0]), wanted)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("JPEG")])
def test_a_jpeg_scaled_down_while_it_is_decoded_keeps_its_colours(name: str) -> None:
    data, wanted = GOLDEN[name]
    picture = seen(data, at_least=(8, 8))
    assert picture.pixels.size == (8, 8)
    assert (picture.width, picture.height) == (64, 64)
    assert_close(colours(picture.pixels), wanted)


def test_every_format_read_here_is_among_the_golden_pictures() -> None:
    assert {name.split()[0].rstrip(",").upper() for name in GOLDEN} == set(FORMATS)


# ---------------------------------------------------------------------------- orientation

CAMERA_KINDS = [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})]


def stored(orientation: int, kind: str, size: tuple[int, int], **options: object) -> bytes:
    """Four mild colours, of this size when upright, as a camera held so stores them."""
    turned = as_a_camera_stores_it(quadrants(size, MILD), orientation)
    return encode(turned, kind, exif=exif(orientation), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), CAMERA_KINDS)
def test_a_picture_comes_out_upright(
    kind: str, options: dict[str, object], orientation: int
) -> None:
    picture = seen(stored(orientation, kind, (128, 64), **options))
    assert (picture.width, picture.height) == (128, 64)
    assert picture.pixels.width == 2 * picture.pixels.height
    assert_close(colours(picture.pixels), MILD, 4)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_mapped_to_the_upright_picture(orientation: int, resize: str) -> None:
    picture = seen(stored(orientation, "JPEG", (640, 320), quality=95))
    layout = Layout(64, 48, "stretch" if resize == "stretch" else "letterbox")
    tensor, lies = fit(picture, layout)
    reddish = np.abs(tensor[0].astype(int) - MILD[0]).max(axis=-1) < 30
    box = lies.to_picture(*bounding_box(reddish))
    assert np.abs(np.array(box) - [0, 0, 320, 160]).max() <= 640 / 64


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_turned_jpeg_is_scaled_to_fit_the_input_after_it_is_turned(orientation: int) -> None:
    picture = seen(stored(orientation, "JPEG", (1024, 256)), at_least=(128, 32))
    assert picture.pixels.size == (128, 32)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """ymin, xmin, ymax, xmax of what is true, as fractions."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    ymin, xmin = rows[0] / height, columns[0] / width
    return ymin, xmin, (rows[-1] + 1) / height, (columns[-1] + 1) / width


# ---------------------------------------------------------------------------- the corpus

PICTURES = [sample for sample in make.CORPUS if sample.expect != make.EMPTY]
BOMBS = ("_bomb", "_30000", "_12000", "_largest", "_above", "_65500", "_16383", "_9000", "_65535")


def outcome(data: bytes) -> str:
    """How a picture is answered: `200`, or `422 image_corrupt`; raises any error but the three."""
    try:
        fit(seen(data, (320, 320)), Layout(320, 320, "letterbox"))
    except (NotAnImage, ImageTooLarge, ImageCorrupt) as error:
        return f"{error.status} {error.code}"
    return "200"


@pytest.mark.parametrize("sample", PICTURES, ids=lambda sample: sample.name)
def test_the_corpus_is_seen_or_refused_as_its_table_says(
    sample: make.Sample, corpus: Corpus
) -> None:
    assert outcome(corpus[sample.name].read_bytes()) in sample.outcomes


@pytest.mark.parametrize("sample", PICTURES, ids=lambda sample: sample.name)
def test_no_picture_of_the_corpus_takes_more_memory_than_its_limit(
    sample: make.Sample, corpus: Corpus
) -> None:
    data = corpus[sample.name].read_bytes()
    if sample.expect == make.TOO_LARGE or sample.name.endswith(BOMBS):
        most = 8 * MEBIBYTE
    elif sample.name == "png_25_mp":
        most = 4 * LIMIT + 16 * MEBIBYTE  # Pillow keeps four bytes a pixel
    elif sample.name == "webp_10_mp":
        most = 16 * 10_000_000 + 16 * MEBIBYTE  # libwebp's two canvases, its output, Pillow's copy
    else:
        most = 32 * MEBIBYTE
    with resident_growth() as growth:
        outcome(data)
    assert growth() < most


@pytest.mark.parametrize(
    "sample",
    [sample for sample in PICTURES if sample.expect == make.TOO_LARGE],
    ids=lambda sample: sample.name,
)
def test_a_picture_that_is_too_large_is_refused_from_its_header(
    sample: make.Sample, corpus: Corpus
) -> None:
    data = corpus[sample.name].read_bytes()
    began = time.process_time()
    with pytest.raises(ImageTooLarge, match=r"send it smaller"):
        seen(data)
    assert time.process_time() - began < 0.5


def test_a_gif_of_ten_thousand_frames_costs_what_its_first_frame_costs(corpus: Corpus) -> None:
    data = corpus["gif_10000_frames"].read_bytes()
    began = time.process_time()
    assert outcome(data) == "200"
    assert time.process_time() - began < 1


@pytest.mark.parametrize("name", ["gif_animated", "webp_animated"])
def test_of_several_frames_the_first_is_seen(name: str, corpus: Corpus) -> None:
    assert_close(colours(seen(corpus[name].read_bytes()).pixels), (RED,) * 4, 4)


@pytest.mark.parametrize("cut", ["JPEG", "JPEG progressive", "PNG", "WEBP", "BMP", "GIF"])
def test_a_picture_cut_anywhere_is_refused_or_whole(cut: str) -> None:
    kind, *options = cut.split()
    data = encode(noise((16, 12)), kind, **dict.fromkeys(options, True))
    whole = seen(data).pixels.tobytes()
    for length in range(1, len(data)):
        try:
            picture = seen(data[:length])
        except (NotAnImage, ImageCorrupt):
            continue
        assert picture.pixels.tobytes() == whole or passes(kind, data, length), f"cut at {length}"


def passes(kind: str, data: bytes, length: int) -> bool:
    """Whether no more is cut off a JPEG than a part of its last blocks."""
    return kind == "JPEG" and length >= len(data) - len(END) - LAST


# ---------------------------------------------------------------------------- limits

SHAPES = [
    ("PNG", {}, 1),
    ("GIF", {}, 1),
    ("BMP", {}, 1),
    ("WEBP", {}, 1),
    ("JPEG", {"progressive": True}, 1),
    ("JPEG", {}, 4),
    ("MPO", {"save_all": True}, 4),
]


@pytest.mark.parametrize(("kind", "options", "factor"), SHAPES)
def test_a_picture_may_have_as_many_pixels_as_the_limit_says_and_not_one_line_more(
    kind: str, options: dict[str, object], factor: int
) -> None:
    limit = 64 * 48
    assert seen(encode(noise((64, 48 * factor)), kind, **options), (8, 8), limit).width == 64
    with pytest.raises(ImageTooLarge, match=f"64x{48 * factor + 1} pixels"):
        seen(encode(noise((64, 48 * factor + 1)), kind, **options), (8, 8), limit)


def test_a_baseline_jpeg_that_cannot_be_scaled_down_is_held_to_the_limit() -> None:
    with pytest.raises(ImageTooLarge):
        seen(flat(size=(64, 192)), (64, 192), 64 * 48)


def test_by_default_a_baseline_jpeg_of_99_megapixels_is_seen() -> None:
    picture = seen(grey_jpeg(9_900, 10_000), (320, 320))
    assert (picture.width, picture.height) == (9_900, 10_000)
    assert picture.pixels.width * picture.pixels.height < LIMIT


@given(
    width=st.integers(1, 1500),
    height=st.integers(1, 1500),
    at_least=st.tuples(st.integers(1, 640), st.integers(1, 640)),
    orientation=st.integers(1, 8),
)
def test_a_jpeg_is_never_scaled_below_the_input(
    width: int, height: int, at_least: tuple[int, int], orientation: int
) -> None:
    turned = as_a_camera_stores_it(Image.new("L", (width, height)), orientation)
    picture = seen(encode(turned, "JPEG", exif=exif(orientation)), at_least)
    assert (picture.width, picture.height) == (width, height)
    assert picture.pixels.width >= min(width, at_least[0])
    assert picture.pixels.height >= min(height, at_least[1])


def test_pillow_has_nothing_to_say_on_stderr_about_a_clients_picture(
    tmp_path: Path, corpus: Corpus
) -> None:
    for name, file in corpus.items():
        if name.startswith("exif_"):
            (tmp_path / name).write_bytes(file.read_bytes())
    (tmp_path / "palette").write_bytes(GOLDEN["PNG P, all colours transparent"][0])
    (tmp_path / "large").write_bytes(grey_jpeg(9_900, 10_000))
    script = (
        "import sys, pathlib; from app.imaging import decode\n"
        "for file in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    decode(file.read_bytes(), (32, 32), 25_000_000)\n"
    )
    command = [sys.executable, "-W", "default", "-c", script, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stderr == ""


# ---------------------------------------------------------------------------- fuzz


def test_thousands_of_damaged_pictures_are_seen_or_refused_and_leave_no_memory() -> None:
    pictures = [data for data, _ in GOLDEN.values()]
    pictures += [make.BY_NAME[name].make() for name in make.BY_NAME if name.startswith("exif_")]
    pictures += [encode(noise((24, 16)), kind) for kind in FORMATS]
    tally = dict.fromkeys(("200", make.TOO_LARGE, make.NOT_AN_IMAGE, make.CORRUPT), 0)
    for damaged in mutations(pictures, 300, seed=1):  # warms up what is cached
        outcome(damaged)
    with resident_growth() as growth:
        for damaged in mutations(pictures, 4000, seed=2):
            tally[outcome(damaged)] += 1
        assert growth() < 200 * MEBIBYTE  # at most one large picture at a time
    assert min(tally.values()) > 20, f"the damage is too much or too little: {tally}"


@given(st.binary(max_size=64), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM",
                                                b"GIF89a", b"RIFF\x20\0\0\0WEBPVP8 "]))  # fmt: skip
def test_bytes_that_are_no_picture_are_refused(noise: bytes, magic: bytes) -> None:
    assert outcome(magic + noise) in (make.NOT_AN_IMAGE, make.CORRUPT, make.TOO_LARGE)


# ---------------------------------------------------------------------------- fit

sizes = st.integers(1, 4000)
inputs = st.integers(8, 640)


def rounding(lies: Fit) -> float:
    """How far off a corner may be, in pixels: a float32 fraction of the tensor is only so exact."""
    return 2e-7 * max(lies.width / lies.across, lies.height / lies.down)


def white(width: int, height: int) -> Picture:
    """A white picture of any size; its decoder has scaled it to a few pixels."""
    return Picture(Image.new("RGB", (min(width, 40), min(height, 40)), WHITE), width, height)


@given(width=sizes, height=sizes, across=inputs, down=inputs)
def test_a_letterboxed_picture_maps_back_to_itself(
    width: int, height: int, across: int, down: int
) -> None:
    tensor, lies = fit(white(width, height), Layout(across, down, "letterbox"))
    assert tensor.shape == (1, down, across, 3)
    covered = (tensor[0] == 255).all(axis=-1)
    assert ((tensor[0] == LETTERBOX_GREY).all(axis=-1) | covered).all()
    box = lies.to_picture(*bounding_box(covered))
    np.testing.assert_allclose(box, [0, 0, width, height], atol=rounding(lies), rtol=1e-5)


@given(width=sizes, height=sizes, across=inputs, down=inputs)
def test_a_letterboxed_picture_keeps_its_shape_and_lies_in_the_middle(
    width: int, height: int, across: int, down: int
) -> None:
    _, lies = fit(white(width, height), Layout(across, down, "letterbox"))
    inner_width, inner_height = lies.across * across, lies.down * down
    scale = min(across / width, down / height)
    assert inner_width == pytest.approx(max(1, width * scale), abs=0.51)
    assert inner_height == pytest.approx(max(1, height * scale), abs=0.51)
    assert abs(across - inner_width - 2 * lies.left * across) <= 1.001
    assert abs(down - inner_height - 2 * lies.top * down) <= 1.001


@given(
    size=st.tuples(sizes, sizes),
    layout=st.builds(Layout, inputs, inputs, st.sampled_from(["stretch", "letterbox"])),
    box=st.tuples(*[st.floats(0, 1, width=32)] * 4),
)
def test_a_box_round_trips_through_the_tensor(
    size: tuple[int, int], layout: Layout, box: tuple[float, float, float, float]
) -> None:
    width, height = size
    _, lies = fit(white(width, height), layout)
    x1, y1, x2, y2 = box
    assume(x1 <= x2 and y1 <= y2)
    in_tensor = (
        lies.top + y1 * lies.down,
        lies.left + x1 * lies.across,
        lies.top + y2 * lies.down,
        lies.left + x2 * lies.across,
    )
    back = lies.to_picture(*np.array(in_tensor, np.float32).tolist())
    wanted = [x1 * width, y1 * height, x2 * width, y2 * height]
    np.testing.assert_allclose(back, wanted, atol=rounding(lies), rtol=1e-5)


@given(
    box=st.tuples(*[st.floats(-1e6, 1e6, allow_subnormal=False)] * 4),
    resize=st.sampled_from(["stretch", "letterbox"]),
)
def test_boxes_are_clamped_to_the_picture(
    box: tuple[float, float, float, float], resize: str
) -> None:
    layout = Layout(320, 320, "stretch" if resize == "stretch" else "letterbox")
    _, lies = fit(white(640, 480), layout)
    x1, y1, x2, y2 = lies.to_picture(*box)
    assert 0 <= min(x1, x2) <= max(x1, x2) <= 640
    assert 0 <= min(y1, y2) <= max(y1, y2) <= 480


def test_a_stretched_picture_fills_the_tensor() -> None:
    tensor, lies = fit(white(640, 360), Layout(48, 64, "stretch"))
    assert (tensor == 255).all()
    assert lies == Fit(640, 360)


@pytest.mark.parametrize(
    "layout",
    [Layout(320, 320, "stretch"), Layout(320, 320, "letterbox"), Layout(1, 1, "letterbox")],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 2)])
def test_a_picture_of_any_shape_fits(size: tuple[int, int], layout: Layout) -> None:
    tensor, lies = fit(seen(flat(RED, size, "PNG")), layout)
    assert tensor.shape == (1, layout.height, layout.width, 3)
    assert (tensor[0].reshape(-1, 3) == RED).all(axis=-1).any()
    assert lies.to_picture(-5, -5, 5, 5) == (0, 0, *size)


@pytest.mark.parametrize("times", [2, 3.5, 10])
@pytest.mark.parametrize("turned", [False, True])
def test_fine_stripes_become_grey(times: float, turned: bool) -> None:
    """A detector is lost on aliased stripes; so every tensor pixel is the mean of several."""
    stripes = np.zeros((64, round(64 * times), 3), np.uint8)
    stripes[:, ::2] = 255
    picture = Image.fromarray(stripes.transpose(1, 0, 2) if turned else stripes)
    tensor, _ = fit(seen(encode(picture, "PNG")), Layout(64, 64, "stretch"))
    # Of a number that is not whole, some have one bright pixel more: as seldom one fewer.
    assert tensor.mean() == pytest.approx(128, abs=3)
    if times == int(times):
        assert_close(tensor[0].reshape(-1, 3), ((128, 128, 128),), 3)


@pytest.mark.parametrize("size", [(64, 64), (65, 70), (128, 100), (90, 256), (1000, 80), (50, 40)])
def test_scaling_moves_nothing(size: tuple[int, int]) -> None:
    """A slope from black to white stays one, from edge to edge, by whichever way."""
    for turned in (False, True):
        slope = np.linspace(0, 255, size[0]).astype(np.uint8)[np.newaxis, :, np.newaxis]
        picture = Image.fromarray(np.broadcast_to(slope, (size[1], size[0], 3)).copy())
        if turned:
            picture = picture.transpose(Image.Transpose.TRANSPOSE)
        tensor, _ = fit(seen(encode(picture, "PNG")), Layout(64, 64, "stretch"))
        middle = tensor[0][:, 32, 0] if turned else tensor[0][32, :, 0]
        wanted = (np.arange(64) + 0.5) / 64 * 255
        assert np.abs(middle - wanted).max() <= 255 / 64
        assert (middle - wanted).mean() == pytest.approx(0, abs=1.5)


def in_scans(width: int, height: int, components: int) -> bytes:
    """A baseline JPEG with a scan for each component, and nothing in them."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    each = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    table = bytes([1] + [0] * 15) + b"\0"  # one code, of one bit
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + bytes([1] * 64)),
            segment(0xC0, b"\x08" + size + bytes([components]) + each),
            segment(0xC4, b"\x00" + table),
            segment(0xC4, b"\x10" + table),
            *(segment(0xDA, bytes([1, number + 1, 0, 0, 63, 0])) for number in range(components)),
            b"\xff\xd9",
        ]
    )


@pytest.mark.parametrize("components", [3, 4])
def test_a_baseline_jpeg_in_several_scans_is_held_whole_and_so_limited(components: int) -> None:
    """libjpeg keeps the coefficients of all of it: 179 bytes took 770 MiB."""
    with pytest.raises(ImageTooLarge, match="more than 25 megapixels"):
        seen(in_scans(10_000, 9_990, components))


# ---------------------------------------------------------------------------- what is missing


def grey_jpeg(width: int, height: int) -> bytes:
    """A grey JPEG in one scan; made without its pixels, so it may be as large as one likes."""
    header = claiming(encode(Image.new("L", (8, 8), 128), "JPEG"), width, height)
    scan = header.index(b"\xff\xda") + 2 + 8
    # With the usual tables, 00 is for the same mean as before, 1010 for the end of a block.
    four_blocks = b"\x28\xa2\x8a"
    blocks = -(-width // 8) * -(-height // 8)
    return header[:scan] + four_blocks * -(-blocks // 4) + b"\xff\xd9"


WHOLE = {
    "of one scan": encode(noise((96, 80)), "JPEG"),
    "of small codes": encode(noise((96, 80)), "JPEG", optimize=True),
    "of one colour": encode(Image.new("RGB", (96, 80), RED), "JPEG"),
    "with restarts": encode(noise((96, 80)), "JPEG", restart_marker_blocks=5),
    "progressive": encode(noise((96, 80)), "JPEG", progressive=True),
    "progressive with restarts": encode(
        noise((96, 80)), "JPEG", progressive=True, restart_marker_rows=1
    ),
    "grey": encode(noise((96, 80)).convert("L"), "JPEG"),
    "in three scans": in_three_scans(noise((96, 80))),
    "of four inks": encode(noise((96, 80)).convert("CMYK"), "JPEG"),
}
END = b"\xff\xd9"
LAST = 16  # bytes at the end of a scan; some of them may be missing: they are of the last blocks


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("tail", [b"", END, END + END, END + b"junk", END + flat(), b"\xff"])
def test_a_jpeg_is_whole_without_its_end_and_with_anything_behind_it(
    name: str, tail: bytes
) -> None:
    whole = seen(WHOLE[name]).pixels.tobytes()
    assert seen(WHOLE[name].removesuffix(END) + tail).pixels.tobytes() == whole


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "tail", [b"", END, flat(), b"\xff\xfe\0\4hi" + END, b"\xff\x01" + END, END + flat()]
)
def test_a_jpeg_whose_data_end_early_is_refused_whatever_is_behind_them(
    name: str, tail: bytes
) -> None:
    scan = WHOLE[name].index(b"\xff\xda") + 20
    for end in range(scan, len(WHOLE[name]) - len(END) - LAST, 37):
        with pytest.raises(ImageCorrupt, match="send it whole"):
            seen(WHOLE[name][:end] + tail)


def test_a_progressive_jpeg_without_some_of_its_scans_is_refused() -> None:
    """libjpeg would decode it, only coarser, and warn of nothing."""
    scans = make.scans(encode(noise((96, 80)), "JPEG", progressive=True))
    for count in range(1, len(scans)):
        with pytest.raises(ImageCorrupt, match="has not all of its scans"):
            seen(b"".join(scans[:count]) + END)
    assert seen(b"".join(scans)).width == 96


@pytest.mark.parametrize("name", [name for name in WHOLE if "of one colour" not in name])
def test_what_stands_between_a_jpegs_scans_and_segments_changes_no_pixel(name: str) -> None:
    whole = seen(WHOLE[name]).pixels.tobytes()
    for segments in make.DAMAGED_SEGMENTS.values():
        damaged = WHOLE[name][:2] + segments + WHOLE[name][2:]
        assert seen(damaged).pixels.tobytes() == whole


REASONS = {
    "jpeg_12_bits": "it has 12 bits per sample; send a JPEG of 8 bits",
    "jpeg_of_no_height": "it is 64x0 pixels in size by its header",
    "jpeg_lossless": "it is a lossless JPEG; send a baseline or a progressive one",
    "jpeg_hierarchical": "it is a hierarchical JPEG",
    "jpeg_of_two_components": "it has 2 colour components",
    "magic_only_jpeg": "it ends within its header; send it whole",
    "png_header_checksum": r"it has a damaged chunk IHDR \(its checksum is wrong\)",
    "png_of_apple": r"it is in Apple's own form of PNG \(CgBI\)",
    "png_transferred_as_text": "transfer it as binary data",
    "png_unknown_critical_chunk": "it has a critical chunk that PNG does not know",
    "png_without_a_palette": "it has no palette",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_picture_that_cannot_be_read_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ImageCorrupt, match=REASONS[name]):
        seen(make.BY_NAME[name].make())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_base64_and_data_uris_are_called_what_they_are(kind: str) -> None:
    text = base64.b64encode(flat(kind=kind))
    for sent in (text, b"\r\n" + text, b'"' + text + b'"'):
        with pytest.raises(NotAnImage, match="is base64 text"):
            seen(sent)
    for scheme in (b"data:", b"DATA:"):
        with pytest.raises(NotAnImage, match="is a data: URI"):
            seen(scheme + b"image/anything;base64," + text)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "WEBP"])
def test_what_pillow_says_of_a_picture_goes_nowhere(kind: str) -> None:
    """It may hold bytes of the client's."""
    data = encode(noise(), kind)
    with pytest.raises(ImageCorrupt) as refused:
        seen(data[: len(data) // 2])
    said = str(refused.value)
    assert said.endswith("send it whole")
    assert "bytes" not in said
