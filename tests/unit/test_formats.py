"""The walks over files: they hand on what is needed, end, and raise nothing but Unreadable."""

import contextlib
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import formats
from app.formats import Unreadable, exif, needed
from app.formats.jpeg_segments import AT_MARKER, MOST_FILL
from app.imaging import FORMATS
from tests.corpus.make import DAMAGED_SEGMENTS, segment
from tests.support import (
    MEBIBYTE,
    PNG_MAGIC,
    encode,
    exif_entry,
    noise,
    png_chunk,
)
from tests.support import exif as orientation

BEGINNINGS = {
    "JPEG": b"\xff\xd8",
    "JPEG with a table": encode(noise((16, 16)), "JPEG")[:200],
    "PNG": PNG_MAGIC,
    "PNG with a header": encode(noise((16, 16)), "PNG")[:33],
    "WebP": b"RIFF\0\0\0\0WEBP",
    "GIF": encode(noise((16, 16)), "GIF")[:13],
}
GIF_BEGINNING = BEGINNINGS["GIF"] + bytes(3 * 256)  # with its colours
PICTURES = [encode(noise((24, 16)), kind, exif=orientation(6)) for kind in ("JPEG", "PNG", "WEBP")]
PICTURES += [encode(noise((24, 16)), kind) for kind in FORMATS]
PICTURES.append(encode(noise((24, 16)), "JPEG", progressive=True))


def walk(data: bytes) -> None:
    """Anything but Unreadable fails the test."""
    with contextlib.suppress(Unreadable):
        assert isinstance(needed(data).file, bytes)


# What is made of a file's grammar reaches further into a walk than any bytes.
markers = st.builds(segment, st.integers(1, 254), st.binary(max_size=24), st.integers(0, 40))
right_segments = st.builds(segment, st.integers(1, 254), st.binary(max_size=24))
known_segments = st.sampled_from([*DAMAGED_SEGMENTS.values(), b"\xff\xd9", b"\xff\xff", b"\0"])
kinds = st.sampled_from([b"IDAT", b"PLTE", b"tEXt", b"eXIf", b"IEND", b"VP8 ", b"VP8X", b"EXIF"])
chunks = st.builds(png_chunk, kinds, st.binary(max_size=24))
riff_chunks = st.builds(
    lambda kind, length, content: kind + struct.pack("<I", length) + content,
    kinds,
    st.integers(0, 2**32 - 1) | st.integers(0, 30),
    st.binary(max_size=24),
)
parts = markers | right_segments | known_segments | chunks | riff_chunks | st.binary(max_size=8)


@given(st.sampled_from(list(BEGINNINGS.values())), st.lists(parts, max_size=12))
def test_whatever_follows_a_beginning_the_walk_ends_and_raises_nothing_else(
    beginning: bytes, following: list[bytes]
) -> None:
    walk(beginning + b"".join(following))


@given(st.sampled_from(PICTURES), st.data())
def test_a_picture_damaged_anywhere_is_walked_over(picture: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(picture) - 1))
    damaged = picture[:at] + data.draw(st.binary(max_size=6)) + picture[at + 2 :]
    walk(damaged)
    walk(damaged[: data.draw(st.integers(0, len(damaged)))])


@given(st.binary())
def test_what_is_of_no_known_format_is_handed_on_whole(data: bytes) -> None:
    if not formats.begins_like_one(data):
        assert needed(data) == formats.Needed(data)


FLOODS: dict[str, Callable[[int], bytes]] = {
    "segments": lambda size: b"\xff\xd8" + b"\xff\xe1\0\2" * (size // 4),
    "segments of wrong lengths": lambda size: b"\xff\xd8" + b"\xff\xe1\0\3" * (size // 4),
    "endless segments": lambda size: b"\xff\xd8" + b"\xff\xe1\xff\xff" * (size // 4),
    "beginnings": lambda size: b"\xff\xd8" * (size // 2),
    "thumbnails": lambda size: b"\xff\xd8\xff\xe1\xff\xff" + b"\xff\xd8\xff\xdb\0\4" * (size // 6),
    "fill bytes": lambda size: b"\xff\xd8" + b"\xff" * size,
    "fill bytes behind a scan": lambda size: encode(noise(), "JPEG")[:-2] + b"\xff" * size,
    "restarts": lambda size: encode(noise(), "JPEG")[:-2] + b"\xff\xd0" * (size // 2),
    "scans": lambda size: (
        encode(noise(), "JPEG", progressive=True)[:-2]
        + segment(0xDA, b"\1\1\0\1\77\1") * (size // 10)
    ),
    "chunks": lambda size: BEGINNINGS["PNG with a header"] + png_chunk(b"tEXt", b"") * (size // 12),
    "endless chunks": lambda size: PNG_MAGIC + b"\x7f\xff\xff\xfftEXt" * (size // 8),
    "kinds": lambda size: PNG_MAGIC + b"\x7f\xff\xff\xfftEXt" + b"IDAT" * (size // 4),
    "WebP chunks": lambda size: b"RIFF\0\0\0\0WEBP" + b"XMP \0\0\0\0" * (size // 8),
    "endless WebP chunks": lambda size: b"RIFF\0\0\0\0WEBP" + b"XMP \xff\xff\xff\xff" * (size // 8),
    "GIF blocks": lambda size: GIF_BEGINNING + b"!\xfe\0" * (size // 3),
    "GIF sub-blocks": lambda size: GIF_BEGINNING + b"!\xfe" + b"\1x" * (size // 2),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_the_walk_over_a_megabyte_of_anything_takes_no_second(flood: str) -> None:
    """The largest upload has 16: that takes some seconds at most, and not minutes."""
    data = FLOODS[flood](MEBIBYTE)
    began = time.process_time()
    walk(data)
    assert time.process_time() - began < 1


UPLOAD = 15 * MEBIBYTE
BEHIND_DAMAGE = b"\xff\xd8\xff\xe5\0\0"
TOO_MANY: dict[str, tuple[bytes, str]] = {
    "landmarks": (BEHIND_DAMAGE + b"\xff\xe1" * (UPLOAD // 2), "more than 16384 markers"),
    "segments of a thumbnail": (
        BEHIND_DAMAGE + b"\xff\xd8" + b"\xff\xe1\0\xfe" * (UPLOAD // 4), "more than 16384 markers",
    ),
    "short segments": (BEHIND_DAMAGE + b"\xff\xe0\0\3" * (UPLOAD // 4), "than 16384 markers"),
    "ends": (b"\xff\xd8" + b"\xff\xd9" * (UPLOAD // 2), "more than 16384 markers"),
    "markers alone": (b"\xff\xd8" + b"\xff\1" * (UPLOAD // 2), "ends within its header"),
    "beginnings": (b"\xff\xd8" * (UPLOAD // 2), "ends within its header"),
    "chunks within each other": (
        BEGINNINGS["PNG with a header"]
        + (b"\0\x40\0\0tEXt" + png_chunk(b"IDAT", b"")) * (UPLOAD // 20),
        "chunks of wrong lengths",
    ),
    "sub-blocks": (
        GIF_BEGINNING + b"!\xfe" + b"\1x" * (UPLOAD // 2), "more than 131072 blocks",
    ),
}  # fmt: skip


MOST_LINES = 1_000_000


def walk_counting_lines(data: bytes) -> None:
    """The walk; no more than MOST_LINES of Python may run in it."""
    lines = 0

    def count(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        assert lines <= MOST_LINES
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        needed(data)
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("flood", TOO_MANY)
def test_the_steps_of_a_walk_are_limited_whatever_the_size(flood: str) -> None:
    data, why = TOO_MANY[flood]
    with pytest.raises(Unreadable, match=why):
        walk_counting_lines(data)


def test_fill_bytes_are_not_read_without_end_for_every_length_that_leads_to_them() -> None:
    assert AT_MARKER.match(b"\xff" * MOST_FILL + b"\xe1")
    assert not AT_MARKER.match(b"\xff" * (MOST_FILL + 1) + b"\xe1")


def test_restarts_are_counted_without_a_list_of_them() -> None:
    picture = encode(noise(), "JPEG")
    frame = picture.index(b"\xff\xc0")
    picture = picture[:frame] + segment(0xDD, b"\0\1") + picture[frame:]
    data = picture[:-2] + b"\xff\xd3" * (MEBIBYTE // 2)
    tracemalloc.start()
    try:
        needed(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_read(kind: str, value: int) -> None:
    data = encode(noise((16, 16)), kind, exif=orientation(value))
    assert needed(data).orientation == value


def test_of_two_orientations_the_first_holds() -> None:
    turned, flipped = (
        segment(0xE1, b"Exif\0\0" + orientation(value).tobytes().removeprefix(b"Exif\0\0"))
        for value in (6, 2)
    )
    picture = encode(noise((16, 16)), "JPEG")
    assert needed(picture[:2] + turned + flipped + picture[2:]).orientation == 6


@pytest.mark.parametrize("order", [b"II*\0", b"MM\0*"])
def test_either_byte_order_is_read(order: bytes) -> None:
    sign = "<" if order == b"II*\0" else ">"
    entries = [(0x010F, 2, 4, b"Reef"), (0x0112, 3, 1, struct.pack(f"{sign}H2x", 6))]
    directory = b"".join(struct.pack(f"{sign}HHI4s", *entry) for entry in entries)
    data = order + struct.pack(f"{sign}IH", 8, len(entries)) + directory + bytes(4)
    assert exif.orientation(data) == exif.orientation(b"Exif\0\0" + data) == 6


@pytest.mark.parametrize("picture", PICTURES[:3], ids=["JPEG", "PNG", "WEBP"])
def test_a_picture_with_orientation_cut_anywhere_within_it_is_taken_as_upright(
    picture: bytes,
) -> None:
    data = orientation(6).tobytes()
    assert exif.orientation(data) == 6
    assert {exif.orientation(data[:length]) for length in range(len(data))} <= {1, 6}
    assert needed(picture).orientation == 6


ODD = {
    "nothing": b"",
    "another format": b"GIF89a",
    "a directory nowhere": b"II*\0\xff\xff\xff\x7f",
    "65535 entries": b"II*\0\x08\0\0\0\xff\xff",
    "a text": exif_entry(2, 4, b"six\0"),
    "two of them": exif_entry(3, 2, b"\6\0\6\0"),
    "one of nine": exif_entry(3, 1, b"\x09\0\0\0"),
    "one of none": exif_entry(3, 1, b"\0\0\0\0"),
    "an unknown type": exif_entry(99, 1, b"\6\0\0\0"),
    "another tag": exif_entry(3, 1, b"\6\0\0\0", tag=0x0113),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_orientation_is_upright(name: str) -> None:
    assert exif.orientation(ODD[name]) == exif.UPRIGHT


@given(st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"]), st.binary())
def test_any_exif_has_an_orientation(head: bytes, data: bytes) -> None:
    assert 1 <= exif.orientation(head + data) <= 8


# ---------------------------------------------------------------------------- what is handed on


def test_nothing_of_the_metadata_reaches_the_decoder() -> None:
    secret = b"secret" * 20
    data = encode(noise(), "JPEG", comment=secret, icc_profile=secret, xmp=secret, exif=secret)
    assert data.count(secret) == 4
    header = needed(data).file
    assert b"secret" not in header
    assert header.count(b"JFIF") == 1
    animated = encode(noise(), "WEBP", icc_profile=secret, xmp=secret, exif=secret)
    assert b"secret" not in needed(animated).file


def test_a_jpegs_data_are_not_copied() -> None:
    data = encode(noise(), "JPEG")
    ((_, scan, _),) = needed(data).scans
    assert isinstance(scan, memoryview)
    assert scan.obj is data


def test_of_an_animation_the_first_frame_is_handed_on() -> None:
    first, further = noise((16, 16)), [noise((16, 16), seed=seed) for seed in range(20)]
    one = encode(first, "WEBP", lossless=True)
    many = encode(first, "WEBP", lossless=True, save_all=True, append_images=further)
    assert len(needed(many).file) < 2 * len(one) < len(many)


@pytest.mark.parametrize(
    ("picture", "row_by_row"),
    [
        (encode(noise(), "JPEG"), True),
        (b"\xff\xd8\xff\xff\xff" + encode(noise(), "JPEG")[3:], True),
        (encode(noise().convert("L"), "JPEG"), True),
        (encode(noise(), "JPEG", progressive=True), False),
        (encode(noise(), "PNG"), False),
    ],
)
def test_only_a_baseline_jpeg_in_one_scan_is_decoded_row_by_row(
    picture: bytes, row_by_row: bool
) -> None:
    assert needed(picture).row_by_row is row_by_row
