"""Rows and summaries of known values, without a run."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.benchmarking.rows import Row, Sample
from bench.benchmarking.summary import summarise, unknown_facts

ROW = Row(
    "run", 0, 0, "measure", "1 client", "closed", "1.jpeg", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None,
    200, "ok", "", 50_000, 500, "model", "cpu", 0, 1, "cat", 0.9, "abc",
    0.1, 3.0, 0.5, 12.0, 0.3, 16.0,
)  # fmt: skip


def rows(latencies_ms: Sequence[float], **values: Any) -> list[Row]:
    """One client's requests, one behind the other."""
    found, now = [], 0.0
    for seq, latency in enumerate(latencies_ms):
        done = now + latency / 1000
        found.append(
            replace(ROW, seq=seq, scheduled_s=now, sent_s=now, done_s=done, latency_ms=latency,
                    service_ms=latency, **values)
        )  # fmt: skip
        now = done
    return found


def steady(count: int, mean_ms: float = 20.0, seed: int = 7) -> list[Row]:
    """A server that takes nearly the same time for each."""
    random_ = random.Random(seed)
    return rows([random_.gauss(mean_ms, mean_ms / 40) for _ in range(count)])


def made(given: Sequence[Row], **values: Any) -> list[Row]:
    """The same rows, with other values."""
    return [replace(row, **values) for row in given]


def samples(count: int, **values: Any) -> list[Sample]:
    """One a second, of a computer that is quiet; a callable is asked with the second."""
    calm = {"cpu_pct": 40.0, "client_cpu_pct": 5.0, "server_cpu_pct": 70.0, "loop_lag_ms": 0.5,
            "health_ms": 2.0, "device_busy_pct": 60.0, "http_cpu_pct": 30.0}  # fmt: skip
    found = []
    for second in range(count):
        sample = Sample("run", float(second), "measure", "1 client")
        for name, value in (calm | values).items():
            setattr(sample, name, value(second) if callable(value) else value)
        found.append(sample)
    return found


def summary(
    given: Sequence[Row],
    sampled: Sequence[Sample] = (),
    *,
    model: str = "model",
    local: bool = False,
    ceiling: float | None = None,
    slo: Sequence[dict[str, Any]] = (),
    **run: Any,
) -> dict[str, Any]:
    """A summary of these rows; `run` changes what is known of the run."""
    facts = unknown_facts("made.csv")
    facts["run"] |= {"slo": list(slo), **run}
    facts["target"] |= {"model": model, "local": local}
    facts["target"]["devices"] = [{"id": "cpu", "about": "made, 2 of 2 cores"}]
    facts["host"] = {"cores": 2, "cpu": "made"}
    facts["client"]["ceiling_per_s"] = ceiling
    return summarise(facts, given, sampled or samples(5))
