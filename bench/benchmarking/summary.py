"""The summary: everything that the console, the report and `--compare` show. bench/schema.json
describes it. It is made from the rows of the two CSV files, after a run and by `--report` alike.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.benchmarking import bottleneck, statistics
from bench.benchmarking.errors import WrongUsage
from bench.benchmarking.plan import WINDOW_S
from bench.benchmarking.rows import OK, Row, Sample
from bench.benchmarking.statistics import Figures
from bench.benchmarking.verdict import verdict

SCHEMA = 1
RECOVERED_REQUESTS = 10  # the last ones of the recovery: it has time to recover
DECIMALS = 3
SIGNIFICANT = 6
"""Digits that a small number keeps: 52.3 ms, as seconds, are more than 0.052."""


def summarise(facts: Mapping[str, Any], rows: Sequence[Row], samples: Sequence[Sample]) -> Figures:
    """`facts` are what no row tells: tool, run, target, host, client, pictures and answers."""
    measured = [row for row in rows if row.phase == "measure"]
    names = list(dict.fromkeys(row.level for row in measured))
    window_s = WINDOW_S if facts["run"]["mode"] == "endurance" else None
    levels = [
        statistics.level([row for row in measured if row.level == name], window_s) for name in names
    ]
    during = [sample for sample in samples if sample.phase == "measure"]
    summary: Figures = {
        "schema": SCHEMA,
        **{part: facts[part] for part in ("tool", "run", "target", "host")},
        "levels": levels,
        "knee": statistics.knee(levels) if facts["run"]["sweep"] else None,
        "recovery": recovery(rows),
        "system": statistics.system(during),
        "trends": {
            name: statistics.trend(during, name)
            for name in ("server_rss_mb", "server_fds", "server_threads")
        },
        "client": {**facts["client"], "other_processes": others(during, facts)},
        "pictures": facts.get("pictures", []),  # which older summaries lack
        "answers": facts["answers"],
    }
    summary["run"] = {**facts["run"], "slo": _slo(facts["run"]["slo"], levels)}
    summary["verdict"] = verdict(summary)
    summary["bottleneck"] = bottleneck.bottleneck(summary)
    return summary


def recovery(rows: Sequence[Row]) -> Figures | None:
    """After a stress run: what a single client waits, beside what it waited before."""
    before = [row.latency_ms for row in rows if row.phase == "baseline" and row.outcome == OK]
    after = [row.latency_ms for row in rows if row.phase == "recovery" and row.outcome == OK]
    if not before or not after:
        return None
    medians = [sorted(each)[len(each) // 2] for each in (before, after[-RECOVERED_REQUESTS:])]
    return {
        "before_ms": medians[0],
        "after_ms": medians[1],
        "ratio": medians[1] / max(medians[0], 1e-9),
    }


def others(samples: Sequence[Sample], facts: Mapping[str, Any]) -> float | None:
    """The share of this computer that programs took which are neither client nor server."""
    cores = facts["host"].get("cores")
    if not cores:
        return None
    shares = []
    for each in samples:
        ours = each.client_cpu_pct
        if facts["target"]["local"] and ours is not None:
            ours = None if each.server_cpu_pct is None else ours + each.server_cpu_pct
        if each.cpu_pct is not None and ours is not None:
            shares.append(max(0.0, each.cpu_pct - ours / cores) / 100)
    return math.fsum(shares) / len(shares) if shares else None


def unknown_facts(path: Path | str) -> Figures:
    """The facts of a CSV file that lies alone."""
    return {
        "tool": {"name": "reef-benchmark", "version": "", "revision": None, "sha256": ""},
        "run": {
            "id": "",
            "started": "",
            "ended": "",
            "argv": ["--report", str(path)],
            "mode": None,
            "seed": None,
            "sweep": False,
            "plan": [],
            "interrupted": False,
            "gave_up": "",
            "slo": [],
        },
        "target": {
            "url": "",
            "local": False,
            "version": "",
            "model": "",
            "models": [],
            "devices": [],
            "notes": [],
        },
        "host": {},
        "client": {"ceiling_per_s": None},
        "pictures": [],
        "answers": [],
    }


def write(path: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary whole, or not at all; numbers as `rounded` has them."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rounded(summary), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def read(path: Path) -> Figures:
    """A summary of this version. Raises WrongUsage when it is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WrongUsage(f"{path}: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise WrongUsage(f"{path}: is no summary of this version of the benchmark")
    return found


def rounded(value: Any) -> Any:
    """The same, with every number to a thousandth, and small ones to six digits: more is noise."""
    if isinstance(value, float):
        return round(value, max(DECIMALS, SIGNIFICANT - 1 - _magnitude(value)))
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def _magnitude(value: float) -> int:
    """The power of ten of its first digit."""
    return math.floor(math.log10(abs(value))) if value else 0


def _slo(asked: Sequence[Mapping[str, Any]], levels: Sequence[Figures]) -> list[Figures]:
    """What was asked for, and whether each level gives it."""
    found = []
    for each in asked:
        for level in levels:
            seen = (level["latency_ms"] or {}).get(each["percentile"])
            value = seen["value"] if seen else None
            found.append(
                {
                    "percentile": each["percentile"],
                    "most_ms": each["most_ms"],
                    "level": level["level"],
                    "found_ms": value,
                    "met": value is not None and value <= each["most_ms"],
                }
            )
    return found
