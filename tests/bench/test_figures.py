"""Percentiles, plans, windows, knees and comparisons: pure functions, on values that are known."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.benchmarking import percentiles as p
from bench.benchmarking import plan, statistics
from bench.benchmarking.compare import compare
from bench.benchmarking.plan import Closed, Goal, Open, Request, Step
from bench.benchmarking.summary import rounded
from tests.bench.made import made, rows, steady, summary
from tests.support import ROOT

times = st.lists(st.floats(0.001, 60_000, allow_nan=False), min_size=1, max_size=300)


# ---------------------------------------------------------------------------- numbers written down


@given(st.floats(1e-9, 1e9))
def test_a_number_that_is_written_down_keeps_its_first_digits(value: float) -> None:
    """Of a run of 52.3 ms, 0.052 s would be 1 % off: a rate could not be made from it again."""
    assert rounded(value) == pytest.approx(value, rel=1e-5)
    assert len(f"{rounded(value):.15g}") <= 16


# ---------------------------------------------------------------------------- percentiles


@given(times, st.sampled_from([500, 900, 950, 990, 999]))
def test_percentiles_are_numpys(values: list[float], per_mille: int) -> None:
    found = sorted(values)[p.rank(len(values), per_mille) - 1]
    assert found == np.percentile(values, per_mille / 10, method="inverted_cdf")


@pytest.mark.parametrize(("name", "least"), [("p90", 64), ("p95", 130), ("p99", 662),
                                             ("p99_9", 6636)])  # fmt: skip
def test_a_percentile_is_told_from_its_number_of_requests_on(name: str, least: int) -> None:
    assert p.percentiles([1.0] * (least - 1))[name] is None
    assert p.percentiles([1.0] * least)[name] is not None
    assert name in p.needed(least - 1)
    assert name not in p.needed(least)


@pytest.mark.parametrize("per_mille", [900, 950, 990, 999])
def test_the_gates_are_mlperfs(per_mille: int) -> None:
    """The smallest n where at most one of n beyond the percentile has a chance below 1 %."""

    def chance(count: int) -> float:
        share = per_mille / 1000
        return share**count + count * share ** (count - 1) * (1 - share)

    gates = dict(p.GATES.values())
    assert chance(gates[per_mille]) <= 0.01 < chance(gates[per_mille] - 1)


@pytest.mark.parametrize(("count", "per_mille"), [(100, 500), (200, 900), (700, 990)])
def test_intervals_hold_the_truth_in_95_of_100_runs(count: int, per_mille: int) -> None:
    random_ = random.Random(11)
    held = 0
    ranks = p.interval(count, per_mille)
    assert ranks
    for _ in range(1000):
        drawn = sorted(random_.random() for _ in range(count))
        held += drawn[ranks[0] - 1] <= per_mille / 1000 <= drawn[ranks[1] - 1]
    assert 0.935 < held / 1000 < 0.985


def test_an_interval_is_as_exact_as_the_binomial_is() -> None:
    count, share = 100, 0.5
    chances = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(101)]
    assert p.interval(100, 500) == (40, 61)
    assert sum(chances[40:61]) >= 0.95 > sum(chances[41:60])


def test_too_few_have_no_interval() -> None:
    assert p.interval(5, 500) is None
    assert p.interval(6, 500) == (1, 6)
    assert p.percentiles([3.0, 1.0, 2.0])["p50"] == p.Percentile(2.0, None, None)


def test_a_million_take_no_time() -> None:
    ranks = p.interval(1_000_000, 990)
    assert ranks
    assert ranks[0] < 990_000 < ranks[1]


def test_the_slope_of_a_line_is_its_slope() -> None:
    found = p.slope([0, 1, 2, 3], [1, 3, 5, 7])
    assert found == pytest.approx((2, 2, 2))
    assert p.slope([1, 1, 1], [1, 2, 3]) is None
    assert p.slope([1, 2], [1, 2]) is None


# ---------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("mode", "clients", "promised", "requests"),
    [("quick", 1, 10, 64), ("normal", 1, 100, 662), ("stress", 10, 1000, 1000),
     ("endurance", 2, 10000, 10000)],
)  # fmt: skip
def test_modes_are_closed_loops_with_at_least_what_was_promised(
    mode: str, clients: int, promised: int, requests: int
) -> None:
    (step,) = [step for step in plan.steps(Request(mode)) if step.phase == "measure"]
    assert step.load == Closed(clients)
    assert step.goal.requests == requests >= promised
    assert step.goal.seconds > 0


def test_without_anything_it_is_100_requests_of_one_client() -> None:
    warmup, step = plan.steps(Request())
    assert (warmup.phase, warmup.goal.seconds) == ("warmup", 2)
    assert step == Step("measure", Closed(1), Goal(100, 0))


@pytest.mark.parametrize("mode", [None, *plan.MODES])
def test_explicit_options_override_a_mode(mode: str | None) -> None:
    def measured(**asked: Any) -> Step:
        (step,) = [s for s in plan.steps(Request(mode, **asked)) if s.phase == "measure"]
        return step

    assert measured(iterations=7).goal == Goal(7, 0)
    assert measured(duration_s=9.0).goal == Goal(0, 9)
    assert measured(iterations=7, duration_s=9.0).goal == Goal(7, 9)
    assert measured(clients=(3,), think_s=0.5).load == Closed(3, 0.5)
    assert measured(rates=(40.0,), arrivals="constant").load == Open(40, "constant")
    assert not [s for s in plan.steps(Request(mode, warmup_s=0.0)) if s.phase == "warmup"]


def test_a_stress_run_looks_at_the_server_before_and_after() -> None:
    phases = [step.phase for step in plan.steps(Request("stress"))]
    assert phases == ["warmup", "baseline", "warmup", "measure", "recovery"]


def test_a_sweep_of_rates_crosses_the_capacity() -> None:
    measured = [s for s in plan.rate_steps(Request(sweep="rate"), 80.0) if s.phase == "measure"]
    rates = [step.load.rate for step in measured if isinstance(step.load, Open)]
    assert rates == [20, 40, 56, 68, 80, 92, 120]
    assert "measure" not in {step.phase for step in plan.steps(Request(sweep="rate"))}


def test_a_plan_is_told_in_a_line_for_each_load() -> None:
    (line,) = plan.described(plan.steps(Request("quick")))
    assert line == (
        "closed loop, 1 client, think time 0 ms: 3 s of warm-up, then 64 requests and 10 s"
    )


# ---------------------------------------------------------------------------- windows, knees


def test_windows_share_the_requests() -> None:
    found = statistics.level(steady(300))["windows"]
    assert len(found) == 10
    assert sum(each["count"] for each in found) == 300
    assert all(each["p50"] == pytest.approx(20, rel=0.05) for each in found)
    assert statistics.level(steady(20))["windows"] == []


def test_a_percentile_is_of_all_requests_and_no_mean_of_windows() -> None:
    values = [10.0] * 350 + [1000.0] * 350
    found = statistics.level(rows(values))["latency_ms"]
    assert (found["p50"]["value"], found["p90"]["value"]) == (10, 1000)


def level(name: str, rate: float, load: str = "closed", **more: float) -> dict[str, Any]:
    return {"level": name, "load": load, "ok_per_s": {"value": rate}, "requests": 1000,
            "errors": 0, "rejected": 0, "pace": 1.0} | more  # fmt: skip


def test_the_knee_is_where_twice_the_clients_bring_nothing() -> None:
    found = [level("1 client", 50), level("2 clients", 95), level("4 clients", 98)]
    assert statistics.knee(found) == {"level": "2 clients", "ok_per_s": 95, "passed": True}
    assert statistics.knee(found[:2]) == {"level": "2 clients", "ok_per_s": 95, "passed": False}
    assert statistics.knee(found[:1]) is None


def test_the_pace_is_what_came_back_over_what_was_due() -> None:
    due = [
        replace(
            row, load="open", level="50/s", scheduled_s=row.seq / 50, done_s=row.seq / 50 + 0.02
        )
        for row in steady(101)
    ]
    assert statistics.level(due)["pace"] == pytest.approx(1, abs=0.01)
    late = [replace(row, done_s=row.done_s + row.seq / 50) for row in due]  # half as fast as asked
    assert statistics.level(late)["pace"] == pytest.approx(0.5, abs=0.01)
    assert statistics.level(steady(100))["pace"] is None


def test_the_knee_of_rates_is_the_highest_that_was_kept_up_with() -> None:
    found = [level("40/s", 40, "open"), level("80/s", 79, "open")]
    found.append(level("120/s", 85, "open", pace=0.7))
    assert statistics.knee(found) == {"level": "80/s", "ok_per_s": 79, "passed": True}
    refused = level("80/s", 79, "open", rejected=100)
    assert statistics.knee([found[0], refused]) == {"level": "40/s", "ok_per_s": 40, "passed": True}
    slow = [level("40/s", 10, "open", pace=0.3), level("80/s", 12, "open", pace=0.2)]
    none = statistics.knee(slow)
    assert none == {"level": None, "ok_per_s": 12, "passed": True}


# ---------------------------------------------------------------------------- comparisons


def verdicts(old: dict[str, Any], new: dict[str, Any], margin: float = 0.05) -> dict[str, str]:
    found = compare(old, new, margin)
    return {each["figure"]: each["verdict"] for each in found["differences"]}


def test_two_runs_of_the_same_server_do_not_differ() -> None:
    found = verdicts(summary(steady(700, seed=1)), summary(steady(700, seed=2)))
    assert found["p50"] == found["p99"] == found["mean"] == found["ok per second"] == "same"


def test_a_slower_server_is_worse_and_a_faster_one_better() -> None:
    slow, fast = summary(steady(700, 24.0)), summary(steady(700, 20.0))
    assert set(verdicts(fast, slow).values()) == {"worse"}
    assert set(verdicts(slow, fast).values()) == {"better"}


def test_a_difference_below_the_margin_does_not_count() -> None:
    old, new = summary(steady(5000, 20.0)), summary(steady(5000, 20.6))
    assert set(verdicts(old, new, 0.05).values()) == {"same"}
    assert verdicts(old, new, 0.01)["p50"] == "worse"


def test_a_difference_that_chance_explains_does_not_count() -> None:
    random_ = random.Random(5)
    noisy = [random_.lognormvariate(3, 1) for _ in range(40)]
    other = [random_.lognormvariate(3.1, 1) for _ in range(40)]
    assert verdicts(summary(rows(noisy)), summary(rows(other)))["mean"] == "same"


def test_a_comparison_warns_of_what_can_not_be_compared() -> None:
    old = summary(steady(100))
    new = summary(made(steady(100), device="pci:0"), model="another")
    new["verdict"]["valid"] = False
    told = "; ".join(compare(old, new)["warnings"])
    for word in ("model", "devices", "INVALID"):
        assert word in told
    nothing = compare(old, summary(made(steady(100), level="2 clients")))
    assert nothing["differences"] == []
    assert "no level in common" in nothing["warnings"][0]


def test_the_guide_tells_what_modes_and_percentiles_need() -> None:
    guide = (ROOT / "docs" / "benchmarking.md").read_text()
    for name, mode in plan.MODES.items():
        length = f"{mode.seconds:g} s" if mode.seconds < 600 else f"{mode.seconds / 60:g} minutes"
        assert f"| `{name}` | {mode.requests:,} requests and {length}, " in guide
    for name, (_, least) in p.GATES.items():
        assert name == "p50" or f"{name.replace('_', '.')} {least}" in guide
