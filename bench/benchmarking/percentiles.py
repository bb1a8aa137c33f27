"""Percentiles that a sample can bear, and how sure they are. Pure, and without libraries.

A percentile is an order statistic: the value of rank ceil(p·n), one of those measured, as
numpy.percentile(method="inverted_cdf") has it. Nothing is interpolated and nothing is averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95

GATES = {
    "p50": (500, 1),
    "p90": (900, 64),
    "p95": (950, 130),
    "p99": (990, 662),
    "p99_9": (999, 6636),
}
"""Per mille, and how many requests it takes: so many that, even with one request above it, chance
alone would explain that in less than 1 % of all runs. (MLPerf's early stopping rule.)"""

NORMAL = 1.96  # standard deviations either side that hold 95 %


@dataclass(frozen=True)
class Percentile:
    """A value and its 95 % confidence interval; None where the sample is too small for one."""

    value: float
    low: float | None
    high: float | None


def percentiles(values: Sequence[float]) -> dict[str, Percentile | None]:
    """Every percentile of GATES; None for one that the sample can't bear."""
    ordered = sorted(values)
    return {
        name: _percentile(ordered, per_mille) if len(ordered) >= least else None
        for name, (per_mille, least) in GATES.items()
    }


def needed(count: int) -> list[str]:
    """The percentiles that so many requests can't bear."""
    return [name for name, (_, least) in GATES.items() if count < least]


def rank(count: int, per_mille: int) -> int:
    """ceil(p·n), from 1; exact, as it is done in whole numbers."""
    return max(1, -(-count * per_mille // 1000))


def interval(count: int, per_mille: int) -> tuple[int, int] | None:
    """The ranks that hold the true percentile with at least 95 %, or None.

    Exact: of n requests, the number below the true percentile is binomial. The two tails are cut
    at 2.5 % each.
    """
    p = per_mille / 1000
    tail = (1 - CONFIDENCE) / 2
    spread = 12 * math.sqrt(count * p * (1 - p)) + 12  # beyond it lies less than 1e-30
    first, last = max(0, int(count * p - spread)), min(count, int(count * p + spread) + 1)
    below, low, high = 0.0, None, None
    for k in range(first, last + 1):
        if below <= tail:
            low = k  # P(B < k) is small enough for rank k to be the lower end
        below += _binomial(count, k, p)
        if high is None and below >= 1 - tail:
            high = k + 1
    if not low or high is None or high > count:
        return None
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 95 % interval that the normal distribution gives it."""
    mean = math.fsum(values) / len(values)
    half = NORMAL * deviation(values, mean) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def deviation(values: Sequence[float], mean: float) -> float:
    """The standard deviation of a sample; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float] | None:
    """Of the straight line through points: its slope and the slope's 95 % interval."""
    count = len(xs)
    if count < 3:
        return None
    x_mean, y_mean = math.fsum(xs) / count, math.fsum(ys) / count
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    if not spread:
        return None
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    rest = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    half = NORMAL * math.sqrt(rest / (count - 2) / spread)
    return slope, slope - half, slope + half


def _percentile(ordered: Sequence[float], per_mille: int) -> Percentile:
    ranks = interval(len(ordered), per_mille)
    value = ordered[rank(len(ordered), per_mille) - 1]
    if ranks is None:
        return Percentile(value, None, None)
    return Percentile(value, ordered[ranks[0] - 1], ordered[ranks[1] - 1])


def _binomial(count: int, k: int, p: float) -> float:
    log = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
    return math.exp(log + k * math.log(p) + (count - k) * math.log1p(-p))
