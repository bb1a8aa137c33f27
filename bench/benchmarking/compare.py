"""Two runs side by side, and which differences mean something. Pure.

The interval of a difference is made from the two values' own intervals (Zou and Donner's MOVER),
widened by how much the windows of each run differ, since requests near each other in time are
alike. A difference means something when its interval leaves out 0 and it is at least the margin:
two runs of one box differ by a few percent.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.benchmarking.percentiles import GATES, NORMAL, deviation
from bench.benchmarking.statistics import Figures

MARGIN = 0.05


@dataclass(frozen=True)
class Difference:
    """One figure of both runs; shares are of the old one."""

    level: str
    figure: str
    unit: str
    old: float
    new: float
    change: float
    low: float | None
    high: float | None
    verdict: str
    """better, worse, same or unknown"""


def compare(old: Mapping[str, Any], new: Mapping[str, Any], margin: float = MARGIN) -> Figures:
    """Every level that both have."""
    before = {level["level"]: level for level in old["levels"]}
    found: list[Difference] = []
    for level in new["levels"]:
        if level["level"] in before:
            found += _level(before[level["level"]], level, margin)
    return {
        "old": _name(old),
        "new": _name(new),
        "margin": margin,
        "differences": [asdict(each) for each in found],
        "warnings": list(_warnings(old, new, bool(found))),
    }


def _level(old: Figures, new: Figures, margin: float) -> Iterator[Difference]:
    noise = math.hypot(_noise(old), _noise(new))
    yield _difference(
        new["level"], "ok per second", "/s", old["ok_per_s"], new["ok_per_s"], noise, margin, True
    )
    for name in ("mean", *GATES):
        pair = [(level["latency_ms"] or {}).get(name) for level in (old, new)]
        if pair[0] and pair[1]:
            yield _difference(
                new["level"], name.replace("_", "."), "ms", pair[0], pair[1], noise, margin, False
            )


def _difference(
    level: str,
    figure: str,
    unit: str,
    old: Figures,
    new: Figures,
    noise: float,
    margin: float,
    more_is_better: bool,
) -> Difference:
    a, b = float(old["value"]), float(new["value"])
    change = (b - a) / a if a else 0.0
    ends = [old["low"], old["high"], new["low"], new["high"]]
    if any(end is None for end in ends) or not a:
        return Difference(level, figure, unit, a, b, change, None, None, "unknown")
    down = math.hypot(math.hypot(b - new["low"], old["high"] - a) / a, noise)
    up = math.hypot(math.hypot(new["high"] - b, a - old["low"]) / a, noise)
    low, high = change - down, change + up
    means = (low > 0 or high < 0) and abs(change) >= margin
    verdict = "same" if not means else "better" if (change > 0) == more_is_better else "worse"
    return Difference(level, figure, unit, a, b, change, low, high, verdict)


def _noise(level: Figures) -> float:
    """Half the 95 % interval of the median that the windows' medians give, as a share of it."""
    medians = [each["p50"] for each in level["windows"] if each["p50"]]
    if len(medians) < 3:
        return 0.0
    mean = math.fsum(medians) / len(medians)
    student = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
    factor = student.get(len(medians), NORMAL)
    return factor * deviation(medians, mean) / math.sqrt(len(medians)) / mean if mean else 0.0


def _warnings(old: Mapping[str, Any], new: Mapping[str, Any], any_level: bool) -> Iterator[str]:
    if not any_level:
        yield "the two runs have no level in common: run both with the same options"
    for name, of in (
        ("model", lambda each: each["target"]["model"]),
        ("pictures", lambda each: _all(each, "images", "image")),
        ("devices", lambda each: _all(each, "answered_by", "device")),
        ("server version", lambda each: each["target"]["version"]),
        ("computer of the client", lambda each: each["host"].get("cpu")),
    ):
        if of(old) != of(new):
            yield f"not the same {name}: {_short(of(old))}, now {_short(of(new))}"
    for which, each in (("old", old), ("new", new)):
        if not each["verdict"]["valid"]:
            codes = ", ".join(sorted({reason["code"] for reason in each["verdict"]["reasons"]}))
            yield f"the {which} run is INVALID ({codes}): its figures prove nothing"


def _all(summary: Mapping[str, Any], of: str, name: str) -> list[str]:
    return sorted({str(each[name]) for level in summary["levels"] for each in level[of]})


def _short(value: object) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value or "unknown")
    return text if len(text) <= 60 else text[:57] + "..."


def _name(summary: Mapping[str, Any]) -> str:
    return f"{summary['run']['started']} {summary['target']['url']}".strip()
