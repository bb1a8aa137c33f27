"""The corpus of bad and odd pictures, made when the tests run: no mystery files are committed.

`python -m tests.corpus.make FOLDER` writes each as NAME.bin, to try on a running server:
`curl -F image=@FOLDER/NAME.bin http://127.0.0.1:5000/predict`.
"""

import io
import itertools
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from tests.support import (
    GREY,
    PNG_MAGIC,
    RED,
    claiming,
    encode,
    exif,
    exif_entry,
    flat,
    noise,
    png,
    png_chunk,
)

SEEN = "200"
TOO_LARGE = "413 image_too_large"
NOT_AN_IMAGE = "415 not_an_image"
CORRUPT = "422 image_corrupt"
EMPTY = "400 image_missing"

MANY_FRAMES = 10_000


@dataclass(frozen=True)
class Sample:
    """A file, and the status and code that it is answered with; `" | "` where either is right."""

    name: str
    expect: str
    make: Callable[[], bytes]

    @property
    def outcomes(self) -> frozenset[str]:
        """The answers allowed, as `415 not_an_image`, or `200`."""
        return frozenset(self.expect.split(" | "))


@cache
def _jpeg(**options: bool | int) -> bytes:
    return encode(noise(), "JPEG", **options)


@cache
def _png() -> bytes:
    return encode(noise(), "PNG")


@cache
def _as(kind: str) -> bytes:
    return encode(noise(), kind, **({"quality": 80} if kind == "WEBP" else {}))


@cache
def _small(kind: str, **options: bool) -> bytes:
    return encode(Image.new("RGB", (16, 16), RED), kind, **options)


def _cut(file: bytes, share: float) -> bytes:
    return file[: int(len(file) * share)]


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(zipfile.ZipInfo("picture.jpg"), flat())
    return file.getvalue()


def _lines(width: int, height: int) -> bytes:
    """A PNG's compressed black lines, made without ever holding them."""
    compressor = zlib.compressobj()
    line = bytes(1 + 3 * width)
    return b"".join(compressor.compress(line) for _ in range(height)) + compressor.flush()


@cache
def _compressed_zeros(length: int) -> bytes:
    compressor, block = zlib.compressobj(), bytes(1_000_000)
    blocks = [compressor.compress(block) for _ in range(length // len(block))]
    return b"".join(blocks) + compressor.flush()


def _png_with(kind: bytes, head: bytes) -> bytes:
    """A small PNG with a chunk of 100 MB, compressed to 100 kB."""
    chunk = png_chunk(kind, head + _compressed_zeros(100_000_000))
    return png(4, 4, _lines(4, 4), before_pixels=chunk)


def _with_bad_checksum(file: bytes, chunk: bytes) -> bytes:
    """A PNG one of whose chunks has been changed in transit."""
    damaged = bytearray(file)
    damaged[damaged.index(chunk) + 6] ^= 0x55
    return bytes(damaged)


def _flipped(file: bytes) -> bytes:
    """A JPEG with a bit wrong in every hundredth byte of its scan."""
    damaged = bytearray(file)
    for position in range(file.index(b"\xff\xda") + 20, len(file) - 2, 100):
        damaged[position] ^= 0x10
    return bytes(damaged)


def _frames(count: int) -> bytes:
    """An animated GIF of equal small frames; the first is RED."""
    first = encode(Image.new("P", (16, 16)), "GIF")
    palette = bytes(RED) + bytes(GREY)
    screen = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + palette
    frame = first[first.index(b",") : first.rindex(b";")]
    return screen + count * (b"\x21\xf9\x04\0\1\0\0\0" + frame) + b";"


def _empty_gif() -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0x80, 0, 0) + bytes(RED) + bytes(GREY)
    return screen + b"," + bytes(9) + b"\2\2D\1\0;"


def _animated_webp() -> bytes:
    further = [Image.new("RGB", (16, 16), GREY)] * 3
    return encode(Image.new("RGB", (16, 16), RED), "WEBP", save_all=True, append_images=further)


def _large_webp() -> bytes:
    return encode(Image.new("RGB", (4_000, 2_500), RED), "WEBP", lossless=True)


def _large(progressive: bool) -> bytes:
    """81 megapixels."""
    return encode(Image.new("L", (9000, 9000), 200), "JPEG", quality=30, progressive=progressive)


END_OF_JPEG = b"\xff\xd9"


def segment(marker: int, content: bytes, length: int | None = None) -> bytes:
    """A segment of a JPEG, of a length of its own or of one that isn't."""
    length = len(content) + 2 if length is None else length
    return b"\xff" + bytes((marker,)) + struct.pack(">H", length) + content


DAMAGED_SEGMENTS = {
    "tem": b"\xff\x01",
    "a_restart": b"\xff\xd3",
    "fill_bytes": b"\xff\xff\xff",
    "garbage": segment(0xFE, b"a comment") + b"garbage\0\xff\0",
    "short_jfif": segment(0xE0, b"JFIF\0\1"),
    "empty_jfif": segment(0xE0, b""),
    "short_adobe": segment(0xEE, b"Adobe"),
    "cut_photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10\0\1"),
    "a_lost_profile": segment(0xE2, b"ICC_PROFILE\0\2\3" + bytes(40)),
    "a_resolution_of_nothing": segment(0xE1, exif_entry(5, 1, b"\x28\0\0\0", tag=0x011A)),
    "a_resolution_of_one_byte": segment(0xE1, exif_entry(1, 1, b"\0\0\0\0", tag=0x011A)),
    "exif_in_circles": segment(0xE1, exif_entry(4, 1, b"\x08\0\0\0", tag=0x8769)),
    "pictures_nowhere": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "an_unknown_segment": segment(0xF7, b"abc"),
    "a_length_too_short": segment(0xFE, b"a comment of some length", 7),
    "a_length_too_long": segment(0xFE, b"a comment of some length", 40),
    "a_length_of_nothing": segment(0xFE, b"a comment", 0),
    "a_length_past_the_end": segment(0xE1, b"Exif\0\0II*\0", 0xFFFF),
    "a_thumbnail_of_a_wrong_length": segment(0xE1, b"Exif\0\0" + _small("JPEG"), 300),
}
"""What may stand behind a JPEG's first marker."""


def _jpeg_with(segments: bytes) -> bytes:
    return _jpeg()[:2] + segments + _jpeg()[2:]


def _with_frame(file: bytes, offset: int, value: int) -> bytes:
    """A JPEG with another byte in its frame header, or as its marker."""
    changed = bytearray(file)
    changed[file.index(b"\xff\xc0") + offset] = value
    return bytes(changed)


def scans(file: bytes) -> list[bytes]:
    """A progressive JPEG cut behind each of its scans, without its end."""
    tables = [each.start() for each in re.finditer(b"\xff\xda", file)]
    ends = [re.compile(b"\xff[^\0\xff\xd0-\xd7]").search(file, at + 2) for at in tables]
    cuts = [0, *(end.start() for end in ends if end)]
    return [file[start:end] for start, end in itertools.pairwise(cuts)]


def _png_with_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk, behind its header."""
    return _png()[:33] + png_chunk(kind, content) + _png()[33:]


def _gif_with(blocks: bytes) -> bytes:
    """A GIF with more blocks, before its frame."""
    gif = _small("GIF")
    frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    return gif[:frame] + blocks + gif[frame:]


def _webp_with_exif() -> bytes:
    return encode(noise(), "WEBP", quality=80, exif=exif(6))


def _exif(data: bytes) -> bytes:
    return encode(noise(), "JPEG", exif=data)


SIZES = ((1, 1), (2, 2), (1, 10_000), (10_000, 1))
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

CORPUS: tuple[Sample, ...] = (
    # No picture at all, or one of a kind that is not read here.
    Sample("empty", EMPTY, lambda: b""),
    Sample("one_byte", NOT_AN_IMAGE, lambda: b"\xff"),
    Sample("text", NOT_AN_IMAGE, lambda: b"I am a picture.\n" * 100),
    Sample("html", NOT_AN_IMAGE, lambda: b"<!doctype html><title>502 Bad Gateway</title>"),
    Sample("svg", NOT_AN_IMAGE, lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    Sample("pdf", NOT_AN_IMAGE, lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n"),
    Sample("zip", NOT_AN_IMAGE, _zip),
    Sample("random", NOT_AN_IMAGE, lambda: bytes(range(255, -1, -1)) * 40),
    Sample("zeros", NOT_AN_IMAGE, lambda: bytes(10_000)),
    Sample("magic_only_jpeg", CORRUPT, lambda: b"\xff\xd8\xff"),
    Sample("magic_only_png", CORRUPT, lambda: b"\x89PNG\r\n\x1a\n"),
    Sample("magic_only_gif", CORRUPT, lambda: b"GIF89a"),
    Sample("magic_only_bmp", NOT_AN_IMAGE, lambda: b"BM"),
    Sample("magic_only_webp", CORRUPT, lambda: b"RIFF\x04\0\0\0WEBP"),
    Sample("tiff", NOT_AN_IMAGE, lambda: encode(noise(), "TIFF")),
    Sample("ppm", NOT_AN_IMAGE, lambda: encode(noise(), "PPM")),
    Sample("ico", NOT_AN_IMAGE, lambda: encode(noise((16, 16)), "ICO")),
    Sample("eps", NOT_AN_IMAGE, lambda: encode(noise(), "EPS")),
    Sample("heic", NOT_AN_IMAGE, lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)),
    # Cut short or damaged.
    Sample("jpeg_cut_in_half", CORRUPT, lambda: _cut(_jpeg(), 0.5)),
    Sample("jpeg_without_its_end", SEEN, lambda: _jpeg()[:-2]),
    Sample("jpeg_cut_at_100", CORRUPT, lambda: _jpeg()[:100]),
    Sample("jpeg_progressive_cut", CORRUPT, lambda: _cut(_jpeg(progressive=True), 0.5)),
    Sample("jpeg_half_and_its_end", CORRUPT, lambda: _cut(_jpeg(), 0.5) + END_OF_JPEG),
    Sample("jpeg_half_and_another", CORRUPT, lambda: _cut(_jpeg(), 0.5) + _jpeg()),
    Sample("jpeg_progressive_half_and_its_end", CORRUPT,
           lambda: _cut(_jpeg(progressive=True), 0.5) + END_OF_JPEG),
    Sample("jpeg_progressive_of_one_scan", CORRUPT,
           lambda: scans(_jpeg(progressive=True))[0] + END_OF_JPEG),
    Sample("jpeg_progressive_but_its_last_scan", CORRUPT,
           lambda: b"".join(scans(_jpeg(progressive=True))[:-1]) + END_OF_JPEG),
    Sample("jpeg_12_bits", CORRUPT, lambda: _with_frame(_jpeg(), 4, 12)),
    Sample("jpeg_of_no_height", CORRUPT, lambda: claiming(_jpeg(), 64, 0)),
    Sample("jpeg_of_no_width", CORRUPT, lambda: claiming(_jpeg(), 0, 48)),
    Sample("jpeg_of_two_components", CORRUPT, lambda: _with_frame(_jpeg(), 9, 2)),
    Sample("jpeg_lossless", CORRUPT, lambda: _with_frame(_jpeg(), 1, 0xC3)),
    Sample("jpeg_hierarchical", CORRUPT, lambda: _with_frame(_jpeg(), 1, 0xC5)),
    Sample("jpeg_without_a_frame", CORRUPT, lambda: _with_frame(_jpeg(), 1, 0xFE)),
    Sample("jpeg_of_lost_bytes", CORRUPT, lambda: _jpeg()[:-700] + _jpeg()[-200:]),
    Sample("jpeg_flipped_bits", f"{SEEN} | {CORRUPT}", lambda: _flipped(_jpeg())),
    Sample("png_cut_in_half", CORRUPT, lambda: _cut(_png(), 0.5)),
    Sample("png_cut_in_its_header", CORRUPT, lambda: _png()[:20]),
    Sample("png_header_checksum", CORRUPT, lambda: _with_bad_checksum(_png(), b"IHDR")),
    Sample("png_pixels_checksum", CORRUPT, lambda: _with_bad_checksum(_png(), b"IDAT")),
    Sample("png_too_few_lines", CORRUPT, lambda: png(64, 64, _lines(64, 64)[:-20])),
    Sample("png_of_too_few_whole_lines", CORRUPT, lambda: png(64, 64, _lines(64, 9))),
    Sample("png_no_lines", CORRUPT, lambda: png(64, 64)),
    Sample("png_100_mb_of_lines", SEEN, lambda: png(64, 64, _compressed_zeros(100_000_000))),
    Sample("png_of_no_width", CORRUPT, lambda: png(0, 4, _lines(4, 4))),
    Sample("png_pixels_cut_and_closed", CORRUPT, lambda: png(64, 64, _lines(64, 64)[:30])),
    Sample("png_unknown_critical_chunk", CORRUPT, lambda: _png_with_chunk(b"ABCD", b"x")),
    Sample("png_of_apple", CORRUPT,
           lambda: PNG_MAGIC + png_chunk(b"CgBI", bytes(4)) + _png()[len(PNG_MAGIC):]),
    Sample("png_transferred_as_text", CORRUPT, lambda: _png().replace(b"\r\n", b"\n")),
    Sample("png_without_a_palette", CORRUPT, lambda: png(4, 4, _lines(4, 4), colour=3)),
    Sample("png_of_unknown_colours", CORRUPT, lambda: png(4, 4, _lines(4, 4), colour=5)),
    Sample("webp_cut_in_half", CORRUPT, lambda: _cut(_as("WEBP"), 0.5)),
    Sample("webp_without_its_end", CORRUPT, lambda: _as("WEBP")[:-2]),
    Sample("gif_cut_in_half", CORRUPT, lambda: _cut(_as("GIF"), 0.5)),
    Sample("gif_of_no_size_with_a_frame", SEEN, lambda: claiming(_small("GIF"), 0, 0)),
    Sample("gif_of_no_size", CORRUPT, _empty_gif),
    Sample("gif_half_and_its_end", CORRUPT, lambda: _cut(_as("GIF"), 0.5) + b"\0;"),
    Sample("bmp_cut_in_half", CORRUPT, lambda: _cut(_as("BMP"), 0.5)),
    Sample("bmp_of_no_width", NOT_AN_IMAGE, lambda: claiming(_small("BMP"), 0, 16)),
    # Bombs: few bytes that claim to be much.
    Sample("png_30000", TOO_LARGE, lambda: png(30_000, 30_000, _lines(4, 4))),
    Sample("png_12000", TOO_LARGE, lambda: png(12_000, 12_000, _lines(4, 4))),
    Sample("png_largest", TOO_LARGE, lambda: png(2**31 - 1, 2**31 - 1, _lines(4, 4))),
    Sample("png_just_above", TOO_LARGE, lambda: png(5_001, 5_000, _lines(4, 4))),
    Sample("jpeg_65500", TOO_LARGE, lambda: claiming(_small("JPEG"), 65_500, 65_500)),
    Sample("jpeg_just_above", TOO_LARGE, lambda: claiming(_small("JPEG"), 10_001, 10_000)),
    Sample("webp_16383", TOO_LARGE, lambda: claiming(_small("WEBP"), 16_383, 16_383)),
    Sample("webp_lossy_9000", TOO_LARGE, lambda: claiming(_small("WEBP"), 9_000, 9_000)),
    Sample(
        "webp_lossless_9000",
        TOO_LARGE,
        lambda: claiming(_small("WEBP", lossless=True), 9_000, 9_000),
    ),
    Sample("gif_65535", TOO_LARGE, lambda: claiming(_small("GIF"), 65_535, 65_535)),
    Sample("gif_9000", TOO_LARGE, lambda: claiming(_small("GIF"), 9_000, 9_000)),
    Sample("bmp_9000", TOO_LARGE, lambda: claiming(_small("BMP"), 9_000, 9_000)),
    Sample("bmp_negative_width", TOO_LARGE, lambda: claiming(_small("BMP"), -4, 16)),
    Sample("jpeg_81_mp_progressive", TOO_LARGE, lambda: _large(progressive=True)),
    Sample("jpeg_81_mp", SEEN, lambda: _large(progressive=False)),
    Sample("webp_10_mp", SEEN, _large_webp),
    Sample("png_25_mp", SEEN, lambda: png(5_000, 5_000, _lines(5_000, 5_000))),
    Sample("png_text_bomb", SEEN, lambda: _png_with(b"zTXt", b"Comment\0\0")),
    Sample("png_international_bomb", SEEN, lambda: _png_with(b"iTXt", b"Comment\0\1\0\0\0")),
    Sample("png_profile_bomb", SEEN, lambda: _png_with(b"iCCP", b"profile\0\0")),
    # Odd, but sound.
    *(
        Sample(
            f"{kind.lower()}_{width}x{height}",
            SEEN,
            lambda kind=kind, size=(width, height): flat(RED, size, kind),  # type: ignore[misc]
        )
        for kind in KINDS
        for width, height in SIZES
    ),
    Sample("jpeg_progressive", SEEN, lambda: _jpeg(progressive=True)),
    Sample("jpeg_and_zip", SEEN, lambda: _jpeg() + _zip()),
    *(
        Sample(
            f"{kind.lower()}_and_garbage",
            SEEN,
            lambda kind=kind: _as(kind) + b"garbage" * 100,  # type: ignore[misc]
        )
        for kind in KINDS
    ),
    Sample("gif_animated", SEEN, lambda: _frames(3)),
    Sample("gif_10000_frames", SEEN, lambda: _frames(MANY_FRAMES)),
    Sample("webp_animated", SEEN, _animated_webp),
    Sample("jpeg_with_a_second_picture", SEEN, lambda: encode(
        noise(), "MPO", save_all=True, append_images=[noise(seed=8)]
    )),
    *(
        Sample(f"jpeg_with_{name}", SEEN, lambda segment=segment: _jpeg_with(segment))  # type: ignore[misc]
        for name, segment in DAMAGED_SEGMENTS.items()
    ),
    Sample("jpeg_with_two_beginnings", SEEN, lambda: b"\xff\xd8" + _jpeg()),
    Sample("jpeg_without_jfif", SEEN, lambda: _jpeg()[:2] + _jpeg()[20:]),
    *(
        Sample(f"png_with_bad_{kind.decode()}", SEEN, lambda kind=kind: _with_bad_checksum(  # type: ignore[misc]
            _png_with_chunk(kind, b"damaged"), kind
        ))
        for kind in (b"pHYs", b"tEXt", b"iCCP", b"gAMA", b"eXIf", b"tRNS", b"acTL")
    ),
    Sample("png_with_an_endless_chunk", SEEN, lambda: _png_with_chunk(b"tEXt", b"damaged").replace(
        b"\0\0\0\x07tEXt", b"\x7f\xff\xff\xfftEXt"
    )),
    Sample("png_without_its_end", SEEN, lambda: _png()[:-12]),
    Sample("png_with_an_empty_pixel_chunk", SEEN, lambda: _png_with_chunk(b"IDAT", b"")),
    Sample("png_animated", SEEN, lambda: encode(
        noise(), "PNG", save_all=True, append_images=[noise(seed=8)]
    )),
    Sample("webp_with_bad_metadata", SEEN, lambda: _webp_with_exif().replace(
        b"EXIF", b"EXIF\xff\xff\xff"
    )),
    Sample("gif_with_bad_blocks", SEEN, lambda: _gif_with(
        b"!\xf9\0!\xf9\1\0\0!\xff\x0bNETSCAPE2.0\1\1\0!\xfe\3abc\0"
    )),
    Sample("bmp_upside_down", SEEN, lambda: claiming(_small("BMP"), 16, -16)),
    Sample("exif_turned", SEEN, lambda: encode(noise(), "JPEG", exif=exif(6))),
    Sample("exif_unknown_orientation", SEEN, lambda: encode(noise(), "JPEG", exif=exif(99))),
    Sample("exif_empty", SEEN, lambda: _exif(b"Exif\0\0")),
    Sample("exif_junk", SEEN, lambda: _exif(b"Exif\0\0junkjunkjunk")),
    Sample("exif_cut", SEEN, lambda: _exif(exif_entry(3, 1, b"\6\0\0\0")[:20])),
    Sample("exif_directory_nowhere", SEEN, lambda: _exif(b"Exif\0\0II*\0\xff\xff\xff\x7f")),
    Sample("exif_of_2_gb", SEEN, lambda: _exif(exif_entry(3, 2**31 - 1, bytes(4)))),
    Sample("exif_twice_oriented", SEEN, lambda: _exif(exif_entry(3, 2, b"\6\0\6\0"))),
    Sample("exif_text", SEEN, lambda: _exif(exif_entry(2, 4, b"six\0"))),
    Sample("exif_infinite", SEEN, lambda: _exif(exif_entry(11, 1, struct.pack("<f", 1e999)))),
    Sample("exif_not_a_number", SEEN, lambda: _exif(exif_entry(11, 1, b"\0\0\xc0\x7f"))),
    Sample("exif_unknown_type", SEEN, lambda: _exif(exif_entry(99, 1, bytes(4)))),
)  # fmt: skip

BY_NAME = {sample.name: sample for sample in CORPUS}


def write(folder: Path) -> dict[str, Path]:
    """Write the whole corpus into a folder; returns each file by its name."""
    files = {sample.name: folder / f"{sample.name}.bin" for sample in CORPUS}
    for sample in CORPUS:
        files[sample.name].write_bytes(sample.make())
    return files


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write(target)
    for each in CORPUS:
        print(f"{each.name:30} {each.expect}")
