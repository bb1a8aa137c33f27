"""How long a device may take, and how long it is left alone after it failed."""

import math

import pytest

from app.devices.discovery import Bus
from app.devices.limits import START_LIMIT_S, TIMINGS_KEPT, Backoff, BusyShare, Timings


def pauses(backoff: Backoff, *served_s: float) -> list[float]:
    """The pause after each failure."""
    return [backoff.pause_s(served) for served in served_s]


def test_the_first_restart_is_at_once_and_the_next_ones_wait_twice_as_long_each() -> None:
    assert pauses(Backoff(60), *[0.0] * 10) == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_minute_of_good_service_begins_the_sequence_anew() -> None:
    assert pauses(Backoff(60), 0, 0, 0, 59.9, 60, 0, 0, 1e6) == [0, 1, 2, 4, 0, 1, 2, 0]


@pytest.mark.parametrize(("longest", "expected"), [(0, [0, 0, 0]), (1.5, [0, 1, 1.5])])
def test_no_pause_is_longer_than_the_setting(longest: float, expected: list[float]) -> None:
    assert pauses(Backoff(longest), 0, 0, 0) == expected


def test_years_of_failures_overflow_nothing() -> None:
    assert set(pauses(Backoff(3600), *[0.0] * 5000)[20:]) == {3600}


@pytest.mark.parametrize("bus", ["cpu", "pci", "usb"])
def test_before_the_first_inference_the_limit_is_that_of_the_start(bus: Bus) -> None:
    timings = Timings(bus)
    assert timings.median_s is None
    assert timings.hang_limit_s == START_LIMIT_S[bus]


LIMITS: list[tuple[Bus, float, float]] = [
    # bus, median, limit
    ("cpu", 0.001, 0.5),
    ("cpu", 0.025, 0.5),
    ("cpu", 0.1, 2.0),
    ("cpu", 3.0, 60.0),
    ("pci", 0.007, 0.5),
    ("usb", 0.1, 2.0),
    ("pci", 0.25, 5.0),
    ("usb", 3.0, 5.0),
]


@pytest.mark.parametrize(("bus", "median_s", "limit_s"), LIMITS)
def test_an_inference_hangs_after_twenty_times_the_median_within_bounds(
    bus: Bus, median_s: float, limit_s: float
) -> None:
    timings = Timings(bus)
    timings.record(median_s)
    assert timings.hang_limit_s == pytest.approx(limit_s)


def test_one_slow_inference_does_not_move_the_limit() -> None:
    timings = Timings("cpu")
    for seconds in (0.1, 0.1, 30.0, 0.1):
        timings.record(seconds)
    assert timings.median_s == 0.1
    assert timings.hang_limit_s == pytest.approx(2.0)


def test_only_the_last_inferences_count() -> None:
    timings = Timings("cpu")
    for seconds in [10.0] * TIMINGS_KEPT + [0.1] * TIMINGS_KEPT:
        timings.record(seconds)
    assert timings.hang_limit_s == pytest.approx(2.0)


def test_a_cpu_may_be_as_slow_as_it_likes() -> None:
    timings = Timings("cpu")
    timings.record(1e6)
    assert math.isfinite(timings.hang_limit_s)
    assert timings.hang_limit_s == 2e7


def test_a_device_that_takes_twice_as_long_as_at_its_best_is_seen_to() -> None:
    timings = Timings("pci")
    assert timings.slowdown == 1.0
    for seconds in [0.007] * 50:
        timings.record(seconds)
    assert timings.slowdown == pytest.approx(1.0)
    for seconds in [0.014] * 50:
        timings.record(seconds)
    assert timings.slowdown == pytest.approx(2.0)
    for seconds in [0.007] * 50:
        timings.record(seconds)
    assert timings.slowdown == pytest.approx(1.0)


def test_the_busy_share_is_that_of_the_last_ten_seconds() -> None:
    busy = BusyShare()
    for second in range(100, 120):
        for part in range(10):
            busy.record(0.05, second + part / 10)
    assert busy.share(120.0) == pytest.approx(0.5)
    assert busy.share(125.0) == pytest.approx(0.25)
    assert busy.share(1000.0) == 0.0


def test_the_busy_share_is_never_more_than_all() -> None:
    busy = BusyShare()
    busy.record(60.0, 100.5)
    assert busy.share(101.5) == 1.0
