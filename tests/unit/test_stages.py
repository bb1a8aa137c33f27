"""The stopwatch of one request."""

import time

import pytest

from app.stages import STAGES, Stages

A_MOMENT_S = 0.02


def test_a_new_stopwatch_has_every_stage_at_zero_and_a_total() -> None:
    times = Stages().milliseconds()
    assert list(times) == [*STAGES, "total"]
    assert all(times[stage] == 0 for stage in STAGES)


def test_a_stage_counts_what_its_block_took_and_adds_up() -> None:
    stages = Stages()
    for _ in range(2):
        with stages.measure("decode"):
            time.sleep(A_MOMENT_S)
    times = stages.milliseconds()
    assert times["decode"] >= 2000 * A_MOMENT_S
    assert times["total"] >= times["decode"]
    assert times["read"] == 0


def test_a_stage_that_fails_is_counted_too() -> None:
    stages = Stages()

    def fail() -> None:
        time.sleep(A_MOMENT_S)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), stages.measure("decode"):
        fail()
    assert stages.seconds["decode"] >= A_MOMENT_S


def test_a_device_takes_its_share_out_of_the_queue() -> None:
    stages = Stages()
    stages.seconds["queue"] = 0.5
    stages.move(0.25, "queue", "inference")
    times = stages.milliseconds()
    assert (times["queue"], times["inference"]) == (250, 250)


def test_an_unknown_stage_is_a_bug() -> None:
    with pytest.raises(KeyError), Stages().measure("lunch"):
        pass


def test_milliseconds_are_rounded_to_hundredths() -> None:
    stages = Stages()
    stages.seconds["post"] = 0.00123456
    assert stages.milliseconds()["post"] == 1.23
