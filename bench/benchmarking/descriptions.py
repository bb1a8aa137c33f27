"""What each plot shows, in words with its main figures: for those who can't see it. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.benchmarking.percentiles import GATES
from bench.benchmarking.rows import Sample
from bench.benchmarking.stages import drawn_stages
from bench.benchmarking.statistics import Figures
from bench.benchmarking.strips import strips

MOST = 8  # of a list: more can't be followed by ear

Describe = Callable[[Figures, Sequence[Sample]], str]


def described(name: str, summary: Figures, samples: Sequence[Sample]) -> str:
    """The plot of this name."""
    return DESCRIPTIONS[name](summary, samples)


def _latency(summary: Figures, _: Sequence[Sample]) -> str:
    def line(level: Figures) -> str:
        spread = level["latency_ms"]
        lost = level["requests"] - level["ok"]
        return (
            f"{level['level']}, {level['ok']} answers in {level['seconds']:.0f} s: median "
            f"{spread['p50']['value']:.1f} ms, fastest {spread['min']:.1f} ms, slowest "
            f"{spread['max']:.1f} ms; {lost} refused, failed or wrong"
        )

    return _sentence("Latency of every answer over time", map(line, _answered(summary)))


def _percentiles(summary: Figures, _: Sequence[Sample]) -> str:
    def line(level: Figures) -> str:
        known = [
            f"{name.replace('_', '.')} {level['latency_ms'][name]['value']:.1f} ms"
            for name in GATES
            if level["latency_ms"][name]
        ]
        return f"{level['level']}: {', '.join(known)}, slowest {level['latency_ms']['max']:.1f} ms"

    return _sentence("Percentiles of the latency", map(line, _answered(summary)))


def _throughput(summary: Figures, _: Sequence[Sample]) -> str:
    levels = _answered(summary)
    if len(levels) > 1:
        lines = (
            f"{level['level']}: {level['ok_per_s']['value']:.1f} answers a second, median "
            f"{level['latency_ms']['p50']['value']:.1f} ms"
            for level in levels
        )
        return _sentence("Latency against throughput", lines)
    windows = [window for window in levels[0]["windows"] if window["p50"] is not None]
    rates = [window["ok_per_s"]["value"] for window in windows]
    medians = [window["p50"] for window in windows]
    return (
        f"Throughput and median latency in {len(windows)} slices of time: "
        f"{min(rates):.1f} to {max(rates):.1f} answers a second, medians of {min(medians):.1f} to "
        f"{max(medians):.1f} ms."
    )


def _stages(summary: Figures, _: Sequence[Sample]) -> str:
    levels = [level for level in summary["levels"] if level["stages_ms"]]

    def line(level: Figures) -> str:
        parts = [f"{stage} {level['stages_ms'][stage]['mean']:.1f} ms" for stage in names]
        return f"{level['level']}: {', '.join(parts)}"

    names = drawn_stages(levels)
    return _sentence("Mean parts of a request's time", map(line, levels))


def _pictures(summary: Figures, _: Sequence[Sample]) -> str:
    lines = (
        f"{picture['image']}: median {picture['p50']:.1f} ms of {picture['count']} answers"
        for picture in summary["levels"][0]["images"]
    )
    return _sentence("Latency by picture", lines)


def _system(summary: Figures, samples: Sequence[Sample]) -> str:
    lines = []
    for strip in strips(summary, samples):
        if strip.nil:
            continue
        means = {
            label: sum(value for _, value in points) / len(points)
            for label, points in strip.parts.items()
        }
        parts = [
            f"{mean:.1f}" if label == strip.title else f"{label} {mean:.1f}"
            for label, mean in means.items()
        ]
        lines.append(f"{strip.title}, {strip.unit}: {', '.join(parts)}")
    return f"Means over time. {'; '.join(lines)}."


DESCRIPTIONS: Mapping[str, Describe] = {
    "latency": _latency,
    "percentiles": _percentiles,
    "throughput": _throughput,
    "stages": _stages,
    "pictures": _pictures,
    "system": _system,
}


def _answered(summary: Figures) -> list[Figures]:
    return [level for level in summary["levels"] if level["ok"]]


def _sentence(what: str, lines: Iterable[str]) -> str:
    parts = list(lines)
    more = f"; and {len(parts) - MOST} more" if len(parts) > MOST else ""
    return f"{what}. {'; '.join(parts[:MOST])}{more}."
