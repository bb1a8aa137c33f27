"""How long a device is left alone after it failed, and when it fails too often."""

import pytest

from app.devices.limits import Backoff, FailureShare


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


def test_who_mended_it_lets_a_device_begin_anew() -> None:
    backoff = Backoff(60)
    pauses(backoff, 0, 0, 0)
    backoff.begin_anew()
    assert pauses(backoff, 0, 0) == [0, 1]


def too_often(ends: str) -> str:
    """What is said of inferences that ended so: `x` failed, `.` well."""
    share = FailureShare()
    for end in ends:
        share.record(failed=end == "x")
    return share.too_often


@pytest.mark.parametrize("ends", ["", "....", "xx", "xx.xx", "x........." * 4])
def test_some_failures_are_borne(ends: str) -> None:
    assert too_often(ends) == ""


def test_three_in_a_row_are_too_many() -> None:
    assert too_often("...xxx") == "failed 3 times"


def test_so_are_five_of_the_last_fifty() -> None:
    assert too_often("x........." * 4 + "x") == "failed 5 of its last 41 inferences"
    assert too_often("xx.xx" + "." * 46 + "x") == ""
