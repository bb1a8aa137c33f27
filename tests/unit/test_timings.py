"""What inferences took, and what that says of a device."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.devices.discovery import Bus
from app.devices.limits import START_LIMIT_S
from app.devices.timings import (
    STANDSTILL_S,
    TICK_S,
    TIMINGS_KEPT,
    UNKNOWN_RELOAD_S,
    BusyShare,
    RunningTime,
    Timings,
)


@pytest.mark.parametrize("bus", ["cpu", "pci", "usb"])
def test_before_the_first_inference_the_limit_is_that_of_the_start(bus: Bus) -> None:
    timings = Timings(bus)
    assert timings.median_s is None
    assert timings.hang_limit_s() == START_LIMIT_S[bus]


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
    assert timings.hang_limit_s() == pytest.approx(limit_s)


def test_one_slow_inference_does_not_move_the_limit() -> None:
    timings = Timings("cpu")
    for seconds in (0.1, 0.1, 30.0, 0.1):
        timings.record(seconds)
    assert timings.median_s == 0.1
    assert timings.hang_limit_s() == pytest.approx(2.0)


def test_only_the_last_inferences_count() -> None:
    timings = Timings("cpu")
    for seconds in [10.0] * TIMINGS_KEPT + [0.1] * TIMINGS_KEPT:
        timings.record(seconds)
    assert timings.hang_limit_s() == pytest.approx(2.0)


def test_a_cpu_may_be_as_slow_as_it_likes() -> None:
    timings = Timings("cpu")
    timings.record(1e6)
    assert math.isfinite(timings.hang_limit_s())
    assert timings.hang_limit_s() == 2e7


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


def test_a_change_of_model_is_no_slowness() -> None:
    timings = Timings("pci")
    for _ in range(50):
        timings.record(0.007)
        timings.record(0.030, reloaded=True)
    assert timings.slowdown == pytest.approx(1.0)
    assert timings.median_s == pytest.approx(0.007)
    assert timings.reload_s == pytest.approx(0.023)


def test_a_reload_has_a_limit_of_its_own() -> None:
    timings = Timings("usb")
    timings.record(0.01)
    assert timings.reload_s == UNKNOWN_RELOAD_S
    assert timings.hang_limit_s() == 0.5
    assert timings.hang_limit_s(reloads=True) == 5.0  # nobody knows yet how long it takes
    timings.record(0.1, reloaded=True)
    assert timings.hang_limit_s(reloads=True) == pytest.approx(2.0)
    assert timings.hang_limit_s() == 0.5


def test_a_new_process_has_limits_of_its_own_but_not_another_best() -> None:
    timings = Timings("pci")
    for _ in range(50):
        timings.record(0.007)
    timings.begin_anew()
    assert timings.hang_limit_s() == START_LIMIT_S["pci"]
    assert timings.slowdown == 1.0
    for _ in range(50):
        timings.record(0.014)
    assert timings.slowdown == pytest.approx(2.0)


def test_a_stand_still_of_the_server_is_no_time() -> None:
    clock = RunningTime()
    began = clock.look(100.0)
    assert clock.look(100.25) - began == pytest.approx(0.25)
    assert clock.look(130.0) - began == pytest.approx(0.25 + TICK_S)
    assert clock.at(130.2) - began == pytest.approx(0.45 + TICK_S)


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=50))
def test_running_time_goes_on_at_every_look_and_never_faster_than_the_clock(
    gaps: list[float],
) -> None:
    clock, now = RunningTime(), 1000.0
    before = clock.look(now)
    for gap in gaps:
        now += gap
        passed = clock.look(now) - before
        before += passed
        assert passed == pytest.approx(gap if gap <= STANDSTILL_S else TICK_S)
