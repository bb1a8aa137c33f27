"""VALID and INVALID, with every reason: on rows of known values, so that no machine disturbs it."""

import json
import re
from typing import Any

import jsonschema
import pytest

from bench.benchmarking.console import WIDTH, text
from bench.benchmarking.rows import Row
from tests.bench.made import made, rows, samples, steady, summary
from tests.support import ROOT

SCHEMA = json.loads((ROOT / "bench" / "schema.json").read_text())


def codes(found: dict[str, Any]) -> set[str]:
    """The reasons; whatever they are, the summary is as described and fits a terminal."""
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert max(map(len, text(found).splitlines())) <= WIDTH
    assert found["verdict"]["valid"] == (not found["verdict"]["reasons"])
    return {str(each["code"]) for each in found["verdict"]["reasons"]}


def some(given: list[Row], every: int, **values: Any) -> list[Row]:
    """Every so-manieth row changed."""
    return [made([row], **values)[0] if i % every == 0 else row for i, row in enumerate(given)]


def test_a_steady_run_is_valid() -> None:
    found = summary(steady(700))
    assert codes(found) == set()
    assert "VERDICT: VALID" in text(found)


@pytest.mark.parametrize(("outcome", "code"), [("reset", "errors"), ("timeout", "errors"),
                                               ("http", "errors"), ("rejected", "rejected"),
                                               ("different", "wrong_answers"),
                                               ("malformed", "wrong_answers")])  # fmt: skip
def test_failures_make_it_invalid(outcome: str, code: str) -> None:
    assert codes(summary(some(steady(700), 20, outcome=outcome, error="why"))) == {code}


def test_one_error_in_a_hundred_is_allowed_and_no_wrong_answer_is() -> None:
    assert codes(summary(some(steady(700), 101, outcome="reset"))) == set()
    assert codes(summary(some(steady(700), 699, outcome="different"))) == {"wrong_answers"}


def test_refusals_are_what_a_stress_run_is_for_and_errors_are_not() -> None:
    assert codes(summary(some(steady(700), 10, outcome="rejected"), mode="stress")) == set()
    assert codes(summary(some(steady(700), 10, outcome="http"), mode="stress")) == {"errors"}


def test_a_change_meanwhile_is_unstable() -> None:
    found = summary(rows([row.latency_ms for row in steady(350) + steady(350, 30.0)]))
    assert codes(found) == {"unstable"}
    assert "the median went from 2" in found["verdict"]["reasons"][0]["text"]


def test_noise_is_not_unstable() -> None:
    import random

    random_ = random.Random(3)
    assert codes(summary(rows([random_.lognormvariate(3, 0.7) for _ in range(150)]))) == set()


@pytest.mark.parametrize(
    ("values", "code"),
    [({"loop_lag_ms": 15.0}, "loop_lag"), ({"client_cpu_pct": 97.0}, "client_busy")],
)
def test_a_client_that_is_too_busy_makes_it_invalid(values: dict[str, Any], code: str) -> None:
    found = summary(steady(700), samples(5, **values))
    assert codes(found) == {code}
    assert found["bottleneck"]["code"] == "client"


def test_a_client_near_its_own_ceiling_makes_it_invalid() -> None:
    assert codes(summary(steady(700), ceiling=90.0)) == {"client_ceiling"}
    assert codes(summary(steady(700), ceiling=1500.0)) == set()


def test_requests_that_leave_late_make_it_invalid() -> None:
    late = [
        made([row], send_delay_ms=8.0, latency_ms=row.latency_ms + 8.0)[0] for row in steady(700)
    ]
    assert codes(summary(made(late, load="open", level="50/s"))) == {"send_delay"}


def test_a_stress_run_asks_for_health_and_recovery() -> None:
    alone = made(steady(30), phase="baseline")
    tired = made(steady(30, 60.0), phase="recovery")
    well = made(steady(30, 21.0), phase="recovery")
    slow = samples(5, health_ms=1500.0)
    assert codes(summary([*alone, *steady(700), *well], mode="stress")) == set()
    assert codes(summary([*alone, *steady(700), *tired], mode="stress")) == {"no_recovery"}
    assert codes(summary(steady(700), slow, mode="stress")) == {"health_slow"}


def test_an_endurance_run_looks_for_what_grows() -> None:
    def endured(given: list[Row], **values: Any) -> set[str]:
        return codes(summary(given, samples(600, **values), mode="endurance"))

    calm = steady(700)
    assert endured(calm, server_rss_mb=200.0, server_fds=30, server_threads=20) == set()
    assert endured(calm, server_rss_mb=lambda s: 200 + s / 100) == {"memory_grows"}
    assert endured(calm, server_fds=lambda s: 30 + s // 10) == {"fds_grow"}
    assert endured(calm, server_threads=lambda s: 30 + s // 10) == {"threads_grow"}
    assert endured(calm, throttled=lambda s: int(s == 9)) == {"throttled"}
    slower = rows([20 + number / 200 for number in range(700)])
    assert endured(slower) == {"drift", "unstable"}


def test_an_interruption_and_a_server_that_went_are_told() -> None:
    assert codes(summary(steady(90), interrupted=True)) == {"interrupted"}
    assert codes(summary(steady(90), gave_up="20 in a row")) == {"server_gone"}
    assert codes(summary([])) == {"no_success"}


def test_a_target_that_can_not_be_told_is_missed() -> None:
    slo = [{"percentile": "p99", "most_ms": 100.0}]
    assert codes(summary(steady(700), slo=slo)) == set()
    assert codes(summary(steady(600), slo=slo)) == {"slo_missed"}


def test_a_sweep_may_pass_what_the_server_can() -> None:
    crowded = made(some(steady(700), 3, outcome="rejected"), level="64 clients")
    assert codes(summary([*steady(700), *crowded], sweep=True)) == set()


def test_notes_say_what_a_reader_should_know() -> None:
    found = summary(
        [*made(steady(100), degraded=1), *made(steady(30), device="pci:0")],
        samples(5, cpu_pct=95.0, usb_mbps=480.0, restarts=lambda second: float(second)),
        local=True,
    )
    notes = " ".join(found["verdict"]["notes"])
    for word in ("server's own computer", "other programs took", "USB 2", "100 answers were "
                 "degraded", "several devices", "was restarted", "p99 662"):  # fmt: skip
        assert word in notes


@pytest.mark.parametrize(
    ("values", "local", "code", "remedy"),
    [
        ({"cpu_pct": 97.0, "server_cpu_pct": 180.0}, True, "processor", "Edge TPU"),
        ({"cpu_pct": 97.0}, False, "latency", "more clients at once"),
        ({"server_cpu_pct": 190.0}, False, "processor", "more cores"),
        ({"device_busy_pct": 150.0}, False, "latency", "more clients at once"),
        ({"http_cpu_pct": 98.0}, False, "http", "smaller pictures"),
        ({}, False, "latency", "more clients at once"),
    ],
)
def test_the_bottleneck_is_named_with_its_remedy(
    values: dict[str, Any], local: bool, code: str, remedy: str
) -> None:
    found = summary(steady(200), samples(5, **values), local=local)["bottleneck"]
    assert found["code"] == code
    assert remedy in found["remedy"]


HARDWARE = re.compile("edge tpu|processor|device|cores|model|network|memory", re.IGNORECASE)


@pytest.mark.parametrize("device", ["cpu", "pci:0"])
@pytest.mark.parametrize(
    ("server", "computer", "share"),
    [(60.0, 97.5, "65 %"), (10.0, 98.0, "90 %"), (20.0, 52.5, "40 %"), (125.0, 99.0, "34 %")],
)
def test_busy_neighbours_are_blamed_and_no_hardware_is_recommended(
    device: str, server: float, computer: float, share: str
) -> None:
    """Of two cores, this client takes 2.5 % and the server half of what it takes of a core."""
    sampled = samples(5, cpu_pct=computer, server_cpu_pct=server, device_busy_pct=95.0)
    judged = summary(made(steady(700), device=device), sampled, local=True)
    assert codes(judged) == {"neighbours"}
    assert f"other programs took {share} of the server's computer" in text(judged).replace(
        "\n  ", " "
    )
    limit = judged["bottleneck"]
    assert limit["code"] == "neighbours"
    assert f"they took {share} of it" in limit["seen"]
    assert not HARDWARE.search(limit["remedy"])


def test_neighbours_that_are_late_themselves_are_blamed_before_the_client() -> None:
    judged = summary(steady(700), samples(5, cpu_pct=99.0, loop_lag_ms=20.0), local=True)
    assert codes(judged) == {"neighbours", "loop_lag"}
    assert judged["bottleneck"]["code"] == "neighbours"


@pytest.mark.parametrize(
    ("server", "computer", "code"),
    [
        (160.0, 98.0, "neighbours"),  # 15.5 %, and nothing is left
        (60.0, 48.0, "latency"),  # as much, and there is room
        (175.0, 94.0, "processor"),  # 4 % are nobody's fault
    ],
)
def test_few_neighbours_are_blamed_only_where_no_room_is_left(
    server: float, computer: float, code: str
) -> None:
    sampled = samples(5, cpu_pct=computer, server_cpu_pct=server)
    judged = summary(steady(700), sampled, local=True)
    assert codes(judged) == set()
    assert judged["bottleneck"]["code"] == code


def test_neighbours_elsewhere_are_blamed_for_the_way_and_not_for_the_inference() -> None:
    busy = samples(5, cpu_pct=90.0)
    slow_way = made(steady(700, 60.0), srv_total_ms=16.0)
    assert summary(slow_way, busy)["bottleneck"]["code"] == "neighbours"
    assert summary(steady(700), busy)["bottleneck"]["code"] == "latency"
    assert codes(summary(slow_way, busy)) == set()


def test_a_full_processor_that_nobody_explains_is_no_reason_to_buy_another() -> None:
    unknown = samples(5, cpu_pct=99.0, server_cpu_pct=None)
    judged = summary(steady(700), unknown, local=True)["bottleneck"]
    assert judged["code"] == "processor"
    assert "not known" in judged["seen"]
    assert "Edge TPU" not in judged["remedy"]


def test_another_device_is_what_helps_an_edge_tpu() -> None:
    busy = samples(5, device_busy_pct=95.0)
    found = summary(made(steady(200), device="pci:0"), busy)["bottleneck"]
    assert found["remedy"].startswith("another Edge TPU")


def test_a_server_that_refuses_has_a_full_queue() -> None:
    found = summary(some(steady(700), 10, outcome="rejected"))
    assert found["bottleneck"]["code"] == "queue"


def test_without_a_success_there_is_no_bottleneck() -> None:
    assert summary(made(steady(20), outcome="reset"))["bottleneck"] is None


def test_every_reason_is_explained() -> None:
    kinds = SCHEMA["properties"]["verdict"]["properties"]["reasons"]["items"]["properties"]
    guide = (ROOT / "docs" / "benchmarking.md").read_text()
    told = {code for line in guide.splitlines() if line.startswith("| `")
            for code in re.findall(r"`(\w+)`", line.split("|")[1])}  # fmt: skip
    assert set(kinds["code"]["enum"]) <= told
