"""What is printed: no line has more than 80 characters. Pure, but for the progress bar."""

import contextlib
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.benchmarking import calibrate
from bench.benchmarking.bottleneck import sentence
from bench.benchmarking.percentiles import GATES
from bench.benchmarking.plan import Step
from bench.benchmarking.statistics import Figures

WIDTH = 80
INDENT = "  "
SHOWN_CLASSES = 6
SHOWN_IMAGES = 12
STRIP = (
    ("computer's CPU", "cpu_pct", "%"),
    ("client's CPU", "client_cpu_pct", "% of a core"),
    ("server's CPU", "server_cpu_pct", "% of a core"),
    ("  its HTTP process", "http_cpu_pct", "% of a core"),
    ("  its devices", "devices_cpu_pct", "% of a core"),
    ("server's memory", "server_rss_mb", "MB"),
    ("device infers", "device_busy_pct", "% of the time"),
    ("queue", "queue_depth", "pictures"),
    ("/health takes", "health_ms", "ms"),
    ("client was late by", "loop_lag_ms", "ms"),
    ("processor", "cpu_temp_c", "°C"),
    ("Edge TPU", "tpu_temp_c", "°C"),
    ("Edge TPU's USB", "usb_mbps", "Mbit/s"),
)


class Progress:
    """A bar on stderr for each step, if that is a terminal and tqdm is there."""

    def __init__(self, on: bool) -> None:
        self._bar: Any = None
        self._tqdm: Any = None
        if on and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._tqdm = tqdm

    def begin(self, step: Step) -> None:
        """A new step."""
        self.end()
        if self._tqdm:
            self._bar = self._tqdm(
                total=1.0,
                desc=f"{step.phase}, {step.level}",
                ncols=WIDTH - 1,
                leave=False,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} {postfix}",
            )

    def show(self, done: float, requests: int) -> None:
        """How much of it is done, from 0 to 1."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{requests} requests", refresh=False)
            self._bar.update(done - self._bar.n)

    def end(self) -> None:
        """Wipe the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def header(facts: Mapping[str, Any]) -> str:
    """What is about to be done."""
    target, host, run = facts["target"], facts["host"], facts["run"]
    devices = ", ".join(str(each["id"]) for each in target["devices"]) or "unknown"
    lines = [
        f"Reef {target['version']} at {target['url']}",
        f"{INDENT}model {target['model']}, devices: {devices}",
        f"{INDENT}from {host['cpu']}, {host['cores']} cores",
    ]
    if ceiling := facts["client"]["ceiling_per_s"]:
        lines.append(INDENT + calibrate.told(ceiling, facts["client"]["request_kb"]))
    lines.append(f"plan, {run['mode'] or 'no'} mode, seed {run['seed']}:")
    return "\n".join(
        line for each in [*lines, *(INDENT + s for s in run["plan"])] for line in _wrapped(each)
    )


def text(summary: Figures) -> str:
    """The whole of it."""
    levels = summary["levels"]
    parts = [table(levels)]
    if levels:
        parts += [stages(levels), predictions(levels[-1]), images(levels[-1])]
    parts += [system(summary["system"]), knee(summary["knee"]), verdict(summary)]
    return "\n\n".join(part for part in parts if part)


def table(levels: Sequence[Figures]) -> str:
    """A line for each level, and the intervals of the percentiles where there is one level."""
    names = [name for name in ("p50", "p90", "p95", "p99") if name in GATES]
    head = f"{'':14}{'sent':>6}{'ok':>6}{'503':>5}{'bad':>5}{'ok/s':>8}" + "".join(
        f"{name:>7}" for name in names
    )
    lines = [head + f"{'max':>8}"]
    for level in levels:
        latency = level["latency_ms"] or {}
        bad = level["errors"] + level["wrong"]
        cells = "".join(f"{_value(latency.get(name)):>7}" for name in names)
        lines.append(
            f"{level['level']:14}{level['requests']:6}{level['ok']:6}{level['rejected']:5}{bad:5}"
            f"{level['ok_per_s']['value']:8.1f}{cells}{number(latency.get('max')):>8}"
        )
    lines.append(f"{'':44}latency in ms, of successes")
    if len(levels) == 1 and levels[0]["latency_ms"]:
        lines += ["", *_exactly(levels[0])]
    return "\n".join(lines)


def _exactly(level: Figures) -> Iterator[str]:
    """Rates and every percentile with its 95 % interval."""
    latency, count = level["latency_ms"], level["requests"]
    yield (
        f"success {100 * level['ok'] / count:.1f} %, refused {100 * level['rejected'] / count:.1f} "
        f"%, failed {100 * level['errors'] / count:.1f} %, wrong "
        f"{100 * level['wrong'] / count:.1f} %"
    )
    rate = level["ok_per_s"]
    yield f"{'successes per second':24}{_with_interval(rate)}"
    yield f"{'mean latency, ms':24}{_with_interval(latency['mean'])}"
    for name in GATES:
        shown = "median (p50)" if name == "p50" else name.replace("_", ".")
        yield f"{shown + ', ms':24}{_with_interval(latency[name])}"
    yield f"{'least and most, ms':24}{latency['min']:8.1f}{latency['max']:8.1f}"


def stages(levels: Sequence[Figures]) -> str:
    """Where the time goes, of each level."""
    told = [level for level in levels if level["stages_ms"]]
    if not told:
        return "The server tells no stages (no Server-Timing)."
    names = ("read", "decode", "queue", "inference", "post", "outside")
    lines = ["mean ms of a request in the server's stages, and outside of it"]
    lines.append(f"{'':14}" + "".join(f"{name:>11}" for name in names))
    for level in told:
        cells = "".join(f"{level['stages_ms'][name]['mean']:11.2f}" for name in names)
        lines.append(f"{level['level']:14}{cells}")
    return "\n".join(lines)


def predictions(level: Figures) -> str:
    """What was found."""
    found = level["predictions"]
    if found["per_picture"] is None:
        return ""
    classes = list(found["classes"].items())
    names = ", ".join(f"{name} {count}" for name, count in classes[:SHOWN_CLASSES])
    more = f" and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
    score = "" if found["mean_score"] is None else f", mean score {found['mean_score']:.2f}"
    by = ", ".join(f"{each['model']} on {each['device']}" for each in level["answered_by"])
    text = f"{found['total']} objects, {found['per_picture']:.1f} a picture{score}: {names}{more}"
    return "\n".join([*_wrapped(text), *_wrapped(f"answered by {by}")])


def images(level: Figures) -> str:
    """The pictures, where there are several."""
    own = level["images"]
    if not 1 < len(own) <= SHOWN_IMAGES:
        return ""
    lines = [f"{'picture':24}{'requests':>9}{'kB':>8}{'p50 ms':>9}  found"]
    for each in own:
        found = each["classes"].replace(";", ", ") or "nothing"
        lines.append(
            f"{each['image'][:23]:24}{each['count']:9}{each['kb']:8.0f}{each['p50']:9.1f}  "
            f"{textwrap.shorten(found, WIDTH - 52, placeholder='...')}"
        )
    return "\n".join(lines)


def system(found: Figures) -> str:
    """The computer and the server meanwhile."""
    lines = [
        f"{name:20}{found[column]['mean']:9.1f}{found[column]['max']:9.1f}  {unit}"
        for name, column, unit in STRIP
        if column in found
    ]
    return "\n".join([f"{'meanwhile':20}{'mean':>9}{'most':>9}", *lines]) if lines else ""


def knee(found: Figures | None) -> str:
    """Where more load stops to bring more."""
    if found is None:
        return ""
    if found["level"] is None:
        return "\n".join(
            _wrapped(
                f"Knee: below the lowest rate; the server did {found['ok_per_s']:.1f}/s at best."
            )
        )
    more = "more load brings hardly more" if found["passed"] else "the sweep ended before it"
    return "\n".join(_wrapped(f"Knee: {found['level']}, {found['ok_per_s']:.1f}/s; {more}."))


def verdict(summary: Mapping[str, Any]) -> str:
    """VALID or INVALID, why, what to do, and what to know."""
    found = summary["verdict"]
    lines = ["VERDICT: " + ("VALID" if found["valid"] else "INVALID")]
    for reason in found["reasons"]:
        lines += _wrapped(f"- {reason['text']}")
        lines += _wrapped(f"  {reason['advice']}", INDENT)
    if found["notes"]:
        lines += ["", "Notes"]
        for note in found["notes"]:
            lines += _wrapped(f"- {note}")
    if summary["bottleneck"]:
        lines += ["", *_wrapped(sentence(summary["bottleneck"]))]
    return "\n".join(lines)


def comparison(found: Figures) -> str:
    """Two runs side by side."""
    lines = [*_wrapped(f"old: {found['old']}"), *_wrapped(f"new: {found['new']}"), ""]
    lines.append(f"{'':14}{'':14}{'old':>9}{'new':>9}{'change':>9}  95 % interval")
    for each in found["differences"]:
        bounds = (
            f"[{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
            if each["low"] is not None
            else "n/a"
        )
        lines.append(
            f"{each['level']:14}{each['figure']:14}{each['old']:9.1f}{each['new']:9.1f}"
            f"{100 * each['change']:+8.1f}%  {bounds:15}{each['verdict']}"
        )
    lines += ["", *_wrapped(conclusion(found))]
    for warning in found["warnings"]:
        lines += _wrapped(f"- {warning}")
    return "\n".join(lines)


def conclusion(found: Mapping[str, Any]) -> str:
    """What a comparison comes to."""
    counts = dict.fromkeys(("better", "worse", "same", "unknown"), 0)
    for each in found["differences"]:
        counts[each["verdict"]] += 1
    least = f"{100 * found['margin']:g} %"
    if not counts["better"] and not counts["worse"]:
        return f"No significant difference (of at least {least})."
    return (
        f"Significant differences of at least {least}: {counts['better']} better, "
        f"{counts['worse']} worse; {counts['same']} figures are the same."
    )


def _with_interval(found: Mapping[str, float | None] | None) -> str:
    if found is None or found["value"] is None:
        return f"{'n/a':>8}"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:8.1f}"
    return f"{found['value']:8.1f}   95 %: {found['low']:.1f} to {found['high']:.1f}"


def _value(found: Mapping[str, float] | None) -> str:
    return "n/a" if found is None else number(found["value"])


def number(value: float | None) -> str:
    """To a tenth, and from 1000 on without; n/a of nothing."""
    if value is None:
        return "n/a"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _wrapped(line: str, indent: str = "") -> list[str]:
    start = indent + INDENT if line.startswith(("-", INDENT)) else indent
    return textwrap.wrap(line, WIDTH, subsequent_indent=start, break_on_hyphens=False) or [""]
