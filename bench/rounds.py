"""Measure often, and keep what was least disturbed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

from bench.helpers import tell
from bench.usage import Neighbours

T = TypeVar("T")


@dataclass(frozen=True)
class Kept(Generic[T]):
    """The results of the rounds that were disturbed least."""

    results: list[T]
    disturbance: float
    """The share of the machine that other processes took during them."""


def rounds(
    name: str,
    number: int,
    measure: Callable[[int], T],
    also_ours: Sequence[psutil.Process] = (),
) -> Kept[T]:
    """Call `measure` with 0, 1, 2 …; keep the half of all rounds in which others took least.

    A round is chosen by what others did and not by what it found, so nothing is flattered.
    `also_ours`: what is measured and is no child of this process.
    """
    found: list[tuple[float, int, T]] = []
    for turn in range(number):
        tell(f"{name}: round {turn + 1} of {number}")
        neighbours = Neighbours(also_ours)
        result = measure(turn)
        found.append((neighbours.share(), turn, result))
    kept = sorted(found, key=lambda each: each[:2])[: (number + 1) // 2]
    return Kept([result for _, _, result in kept], sum(share for share, *_ in kept) / len(kept))
