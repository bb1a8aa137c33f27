"""Damages pictures at random, the same way in every run."""

import random
import struct
import zlib
from collections.abc import Iterator, Sequence

from tests.support import PNG_MAGIC

EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\0\0\0\0",
            b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")  # fmt: skip
HEADER_BYTES = 160


def mutations(pictures: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged pictures; half of the damage is where most headers are."""
    chance = random.Random(seed)
    for _ in range(count):
        yield mutate(chance, chance.choice(pictures), pictures)


def mutate(chance: random.Random, picture: bytes, others: Sequence[bytes]) -> bytes:
    """One picture, or other bytes, damaged in one to twelve places, with parts of others."""
    file = bytearray(picture)
    for _ in range(chance.choice((1, 1, 2, 4, 12))):
        reach = len(file) if chance.random() < 0.5 else min(len(file), HEADER_BYTES)
        if not reach:
            break
        _damage(chance, file, chance.randrange(reach), others)
    if chance.random() < 0.1:
        del file[chance.randrange(len(file) + 1) :]
    return bytes(file) if chance.random() < 0.3 else _with_right_checksums(file)


def _damage(chance: random.Random, file: bytearray, at: int, others: Sequence[bytes]) -> None:
    match chance.randrange(6):
        case 0:
            file[at] ^= 1 << chance.randrange(8)
        case 1:
            file[at] = chance.randrange(256)
        case 2:
            extreme = chance.choice(EXTREMES)
            file[at : at + len(extreme)] = extreme
        case 3:
            del file[at : at + chance.randrange(1, 32)]
        case 4:
            file[at:at] = chance.randbytes(chance.randrange(1, 16))
        case _:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            file[at : at + 16] = other[start : start + 16]


def _with_right_checksums(file: bytearray) -> bytes:
    """A PNG's damage must get past its checksums to reach the decoder."""
    position = len(PNG_MAGIC)
    while file.startswith(PNG_MAGIC) and position + 12 <= len(file):
        (length,) = struct.unpack_from(">I", file, position)
        end = position + 8 + length
        if end + 4 > len(file):
            break
        file[end : end + 4] = struct.pack(">I", zlib.crc32(file[position + 4 : end]))
        position = end + 4
    return bytes(file)
