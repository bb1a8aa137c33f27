"""From rows to figures, level by level. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from bench.benchmarking.percentiles import (
    NORMAL,
    deviation,
    interval,
    mean_interval,
    percentiles,
    rank,
    slope,
)
from bench.benchmarking.rows import OK, REJECTED, STAGES, Row, Sample

WINDOWS = (3, 10)  # at least and at most, in a run shorter than a few minutes
WINDOW_REQUESTS = 30  # that each should have
MOST_WINDOWS = 60
ERRORS = ("http", "connect", "reset", "timeout", "parse")
WRONG = ("malformed", "different")

Figures = dict[str, Any]


def level(rows: Sequence[Row], window_s: float | None = None) -> Figures:
    """The figures of one level's measured requests.

    Latencies are those of successes alone. Rates are per second of the time from the first request
    sent to the last one answered.
    """
    good = [row for row in rows if row.outcome == OK]
    began = min(row.scheduled_s for row in rows)
    seconds = max(max(row.done_s for row in rows) - began, 1e-9)
    outcomes = Counter(row.outcome for row in rows)
    found: Figures = {
        "level": rows[0].level,
        "load": rows[0].load,
        "began_s": began,
        "seconds": seconds,
        "requests": len(rows),
        "ok": len(good),
        "rejected": outcomes[REJECTED],
        "errors": sum(outcomes[kind] for kind in ERRORS),
        "wrong": sum(outcomes[kind] for kind in WRONG),
        "outcomes": dict(sorted(outcomes.items())),
        "statuses": dict(sorted(Counter(str(row.status or "none") for row in rows).items())),
        "messages": _messages(rows),
        "sent_per_s": len(rows) / seconds,
        "ok_per_s": _rate(good, seconds),
        "pace": _pace(rows, good),
        "latency_ms": spread([row.latency_ms for row in good]),
        "service_ms": spread([row.service_ms for row in good]),
        "send_delay_ms": spread([row.send_delay_ms for row in rows]),
        "connect_ms": spread([row.connect_ms for row in rows if row.connect_ms is not None]),
        "stages_ms": stages(good),
        "images": images(good),
        "predictions": predictions(good),
        "windows": windows(good, began, seconds, window_s),
        "answered_by": answered_by(good),
        "degraded": sum(row.degraded or 0 for row in good),
        "kb_out": sum(row.bytes_out for row in rows) / 1000,
        "kb_in": sum(row.bytes_in for row in rows) / 1000,
    }
    return found


def spread(values: Sequence[float]) -> Figures | None:
    """Mean, extremes and percentiles; None of nothing."""
    if not values:
        return None
    mean, low, high = mean_interval(values)
    exact = {
        name: None if each is None else asdict(each) for name, each in percentiles(values).items()
    }
    return {
        "count": len(values),
        "mean": {"value": mean, "low": low, "high": high},
        "deviation": deviation(values, mean),
        "min": min(values),
        "max": max(values),
        **exact,
    }


def stages(rows: Sequence[Row]) -> Figures | None:
    """Mean and median of each of the server's stages, and of what is outside of it.

    `between` is what the server spends between its stages; `outside` is the way to it and back:
    network, the HTTP server before the request is read, and this client. None where the server
    tells no stages.
    """
    told = [row for row in rows if row.srv_total_ms is not None]
    if not told:
        return None
    columns: dict[str, list[float]] = {
        name: [float(getattr(row, f"srv_{name}_ms") or 0.0) for row in told] for name in STAGES
    }
    totals = [row.srv_total_ms or 0.0 for row in told]
    columns["between"] = [
        max(0.0, whole - sum(parts))
        for whole, parts in zip(totals, zip(*columns.values(), strict=True), strict=True)
    ]
    columns["outside"] = [
        max(0.0, row.service_ms - whole) for row, whole in zip(told, totals, strict=True)
    ]
    columns["waiting to be sent"] = [row.send_delay_ms for row in told]
    return {
        name: {"mean": math.fsum(each) / len(each), "p50": sorted(each)[rank(len(each), 500) - 1]}
        for name, each in columns.items()
    }


def images(rows: Sequence[Row]) -> list[Figures]:
    """Latency and detections of each picture."""
    found = []
    for name in sorted({row.image for row in rows}):
        own = [row for row in rows if row.image == name]
        latencies = sorted(row.latency_ms for row in own)
        found.append(
            {
                "image": name,
                "count": len(own),
                "kb": own[0].bytes_out / 1000,
                "p50": latencies[rank(len(own), 500) - 1],
                "detections": own[0].detections,
                "classes": own[0].classes,
            }
        )
    return found


def predictions(rows: Sequence[Row]) -> Figures:
    """What was found, over all requests."""
    classes = Counter(name for row in rows for name in row.classes.split(";") if name)
    scores = [row.mean_score for row in rows if row.mean_score is not None]
    counts = [row.detections or 0 for row in rows]
    return {
        "total": sum(counts),
        "per_picture": sum(counts) / len(counts) if counts else None,
        "pictures_without": sum(not count for count in counts),
        "mean_score": sum(scores) / len(scores) if scores else None,
        "classes": dict(classes.most_common()),
    }


def answered_by(rows: Iterable[Row]) -> list[Figures]:
    """How many answers each model and device gave."""
    counts = Counter((row.model, row.device) for row in rows)
    return [
        {"model": model, "device": device, "answers": count}
        for (model, device), count in counts.most_common()
    ]


def windows(
    rows: Sequence[Row], began: float, seconds: float, window_s: float | None
) -> list[Figures]:
    """Equal slices of time: rate, median and mean in each, with their intervals.

    None where there are too few requests to tell anything of three slices.
    """
    least, most = WINDOWS
    if len(rows) < least * WINDOW_REQUESTS / 2:
        return []
    number = max(least, min(most, len(rows) // WINDOW_REQUESTS))
    if window_s:
        number = max(number, min(MOST_WINDOWS, int(seconds / window_s)))
    length = seconds / number
    slices: list[list[Row]] = [[] for _ in range(number)]
    for row in rows:
        slices[min(number - 1, max(0, int((row.done_s - began) / length)))].append(row)
    return [_window(own, began + index * length, length) for index, own in enumerate(slices)]


def knee(levels: Sequence[Figures]) -> Figures | None:
    """Where more load brings less than 5 % more for twice of it; None of a single level.

    In a sweep of rates, it is the highest rate that the server kept up with.
    """
    if len(levels) < 2:
        return None
    best = levels[0]
    if levels[0]["load"] == "open":
        kept = [each for each in levels if _kept_up(each)]
        if not kept:
            return {
                "level": None,
                "ok_per_s": max(each["ok_per_s"]["value"] for each in levels),
                "passed": True,
            }
        best = max(kept, key=lambda each: float(each["ok_per_s"]["value"]))
        return {
            "level": best["level"],
            "ok_per_s": best["ok_per_s"]["value"],
            "passed": len(kept) < len(levels),
        }
    for level in levels[1:]:
        if gain(best, level) < LEAST_GAIN:
            return {"level": best["level"], "ok_per_s": best["ok_per_s"]["value"], "passed": True}
        best = level
    return {"level": best["level"], "ok_per_s": best["ok_per_s"]["value"], "passed": False}


LEAST_GAIN = 0.05
LEAST_PACE = 0.95


def gain(before: Figures, after: Figures) -> float:
    """What a doubling of clients brought, from one level to the next: 0.05 is 5 %."""
    clients = [float(each["level"].split()[0]) for each in (before, after)]
    rates = [max(float(each["ok_per_s"]["value"]), 1e-9) for each in (before, after)]
    doublings = math.log2(clients[1] / clients[0])
    return (rates[1] / rates[0]) ** (1 / doublings) - 1 if doublings > 0 else 0.0


def _kept_up(level: Figures) -> bool:
    refused = (level["errors"] + level["rejected"]) / level["requests"]
    return bool((level["pace"] or 0.0) >= LEAST_PACE and refused <= 0.01)


def _pace(rows: Sequence[Row], good: Sequence[Row]) -> float | None:
    """Of an open loop: the rate of answers over the rate at which requests were due.

    The last answer comes later than it was due by what the fastest took, which is no fault.
    """
    due = [row.scheduled_s for row in rows]
    span = max(due) - min(due)
    if rows[0].load != "open" or not good or not span:
        return None
    last = max(row.done_s for row in rows) - min(row.latency_ms for row in good) / 1000
    return (len(good) / len(rows)) * span / max(span, last - min(due))


def system(samples: Sequence[Sample]) -> Figures:
    """Mean, least and most of every column, over the measured phase."""
    found: Figures = {}
    for name in Sample.__dataclass_fields__:
        if name in ("run_id", "t_s", "phase", "level"):
            continue
        values = [float(value) for each in samples if (value := getattr(each, name)) is not None]
        if values:
            found[name] = {
                "mean": math.fsum(values) / len(values),
                "min": min(values),
                "max": max(values),
                "first": values[0],
                "last": values[-1],
            }
    return found


def trend(samples: Sequence[Sample], name: str) -> Figures | None:
    """How a column rises an hour, with its interval; None of too few samples."""
    points = [
        (each.t_s / 3600, float(value))
        for each in samples
        if (value := getattr(each, name)) is not None
    ]
    if len(points) < 30:
        return None
    line = slope([t for t, _ in points], [value for _, value in points])
    return None if line is None else dict(zip(("value", "low", "high"), line, strict=True))


def _window(rows: Sequence[Row], began: float, length: float) -> Figures:
    count = len(rows)
    found: Figures = {"from_s": began, "to_s": began + length, "count": count}
    found["ok_per_s"] = _rate(rows, length)
    if not rows:
        return {**found, "p50": None, "low": None, "high": None, "p95": None}
    ordered = sorted(row.latency_ms for row in rows)
    ranks = interval(count, 500)
    low, high = (None, None) if ranks is None else (ordered[each - 1] for each in ranks)
    p95 = ordered[rank(count, 950) - 1]
    return {**found, "p50": ordered[rank(count, 500) - 1], "low": low, "high": high, "p95": p95}


def _rate(rows: Sequence[Row], seconds: float) -> Figures:
    """Successes per second. Its interval comes from how much single answers differ."""
    rate = len(rows) / seconds
    if len(rows) < 2:
        return {"value": rate, "low": None, "high": None}
    if rows[0].load == "open":
        relative = NORMAL / math.sqrt(len(rows))  # arrivals are a Poisson stream's
    else:
        values = [row.service_ms for row in rows]
        mean, _, high = mean_interval(values)
        relative = (high - mean) / mean if mean else 0.0
    return {"value": rate, "low": rate * (1 - relative), "high": rate * (1 + relative)}


def _messages(rows: Sequence[Row]) -> list[Figures]:
    """The commonest texts of what went wrong."""
    counts = Counter((row.outcome, row.error) for row in rows if row.outcome != OK)
    return [
        {"outcome": outcome, "text": text, "count": count}
        for (outcome, text), count in counts.most_common(5)
    ]
