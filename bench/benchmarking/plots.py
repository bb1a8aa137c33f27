"""The plots. Each says in its title what is to be seen in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.benchmarking import paper as papers
from bench.benchmarking import strips
from bench.benchmarking.palette import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    RED,
    SERIES,
    TEAL,
)
from bench.benchmarking.paper import NARROW, WIDE, Paper
from bench.benchmarking.rows import OK, REJECTED, Row, Sample
from bench.benchmarking.stages import drawn_stages
from bench.benchmarking.statistics import Figures

MOST_POINTS = 20_000  # more dots show nothing more
MOST_PICTURES = 24
TAIL_TICKS = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
CROWDED_TICK = 0.95  # beside 0.9 on a narrow paper
STAGE_COLOURS = {
    "waiting to be sent": GREY,
    "outside": PURPLE,
    "read": TEAL,
    "decode": ORANGE,
    "queue": RED,
    "inference": BLUE,
    "post": GREEN,
    "between": BROWN,
}
STACK_COLOURS = {
    strips.DEVICES: BLUE,
    strips.HTTP: ORANGE,
    strips.REST: BROWN,
    strips.CLIENT: GREEN,
    strips.OTHERS: GREY,
    strips.UNTOLD: GREY,
}

Plot = Callable[[Paper, Figures, Sequence[Row], Sequence[Sample]], Figure | None]


@dataclass(frozen=True)
class Drawn:
    """A plot: as a file of its own, and for a page that is wide or narrow."""

    title: str
    caption: str
    png: bytes
    wide: str
    narrow: str


def draw(summary: Figures, rows: Sequence[Row], samples: Sequence[Sample]) -> dict[str, Drawn]:
    """Every plot there is something to show of, by name."""
    papers.prepare()
    drawn = {}
    for name, (title, caption, plot) in PLOTS.items():
        wide, narrow = (plot(paper, summary, rows, samples) for paper in (WIDE, NARROW))
        if wide is not None and narrow is not None:
            png = papers.png(wide, title)
            drawn[name] = Drawn(title, caption, png, papers.svg(wide), papers.svg(narrow))
            plt.close(wide)
            plt.close(narrow)
    return drawn


# ---------------------------------------------------------------------------- the plots


def latency(
    paper: Paper, summary: Figures, rows: Sequence[Row], _: Sequence[Sample]
) -> Figure | None:
    """Every answer over time."""
    good = [row for row in rows if row.outcome == OK]
    if not good:
        return None
    figure, axes = _figure(paper, 3.6)
    for phases, colour, label in (
        (("measure",), BLUE, "an answer"),
        (("warmup", "baseline", "recovery"), GREY, None),
    ):
        own = _thinned([row for row in good if row.phase in phases])
        if own:
            axes.scatter(
                [row.done_s for row in own],
                [row.latency_ms for row in own],
                s=14 if len(own) < 2000 else 5,
                color=colour,
                alpha=0.6,
                linewidths=0,
                label=label,
                rasterized=True,
            )
    _windows(axes, summary)
    _shade(axes, rows, label="not counted")
    top = max(row.latency_ms for row in good)
    if top > 12 * np.percentile([row.latency_ms for row in good], 50):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _pos: f"{value:g}"))
    else:
        axes.set_ylim(0, top * 1.12)
    _rug(axes, [row for row in rows if row.outcome == REJECTED], ORANGE, "refused (503, 429)")
    _rug(axes, [r for r in rows if r.outcome not in (OK, REJECTED)], RED, "failed or wrong")
    axes.set(xlabel="seconds since the start", ylabel="latency, ms")
    axes.margins(x=0.01)
    papers.legend(figure, paper)
    return figure


def percentiles(
    paper: Paper, summary: Figures, rows: Sequence[Row], _: Sequence[Sample]
) -> Figure | None:
    """How many are slower than so and so much: the tail, stretched."""
    levels = [level["level"] for level in summary["levels"] if level["ok"]]
    if not levels:
        return None
    figure, axes = _figure(paper, 3.8)
    most = 0
    for name, shade in zip(levels, shades(len(levels)), strict=True):
        own = [row for row in rows if row.phase == "measure" and row.level == name]
        good = sorted(row.latency_ms for row in own if row.outcome == OK)
        alone = len(levels) == 1
        scheduled = own[0].load == "open"
        label = name if not alone else "from the schedule" if scheduled else None
        _tail(axes, good, shade, label)
        if alone and scheduled:
            service = sorted(row.service_ms for row in own if row.outcome == OK)
            _tail(axes, service, GREY, "from the sending", style="--")
        most = max(most, len(good))
    if len(levels) == 1:
        _intervals(axes, next(level for level in summary["levels"] if level["ok"]))
    axes.set_xscale("log")
    ticks = [
        share
        for share in TAIL_TICKS
        if 1 / (1 - share) <= max(most, 10) and not (paper.narrow and share == CROWDED_TICK)
    ]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - share) for share in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _pos: f"{100 * (1 - 1 / x):.4g} %"))
    axes.set_xlim(1, max(most, 10) * 1.1)
    papers.level_top(axes)
    axes.set(xlabel="so many of the answers …", ylabel="… came within, ms")
    papers.legend(figure, paper)
    return figure


def throughput(
    paper: Paper, summary: Figures, _rows: Sequence[Row], _: Sequence[Sample]
) -> Figure | None:
    """What more load brings, and what it costs; of a single level, its windows."""
    levels = [level for level in summary["levels"] if level["ok"]]
    if len(levels) > 1:
        return _levels(paper, levels, summary["knee"])
    windows = [each for level in levels for each in level["windows"] if each["p50"] is not None]
    if len(windows) < 3:
        return None
    rows, columns = (2, 1) if paper.narrow else (1, 2)
    figure, grid = plt.subplots(
        rows, columns, figsize=(paper.width, 2.6 * rows), squeeze=False, layout="constrained"
    )
    first, second = grid.flat
    middles = [(each["from_s"] + each["to_s"]) / 2 for each in windows]
    rates = [each["ok_per_s"] for each in windows]
    _errorbar(first, middles, [each["value"] for each in rates], rates, GREEN)
    first.set(title="Answers a second")
    _errorbar(second, middles, [each["p50"] for each in windows], windows, BLUE)
    second.set(title="Median latency, ms")
    for axes in (first, second):
        papers.level_top(axes)
        axes.set(xlabel="seconds since the start")
    return figure


def stages(
    paper: Paper, summary: Figures, _rows: Sequence[Row], _: Sequence[Sample]
) -> Figure | None:
    """Where the time of a request goes."""
    levels = [level for level in summary["levels"] if level["stages_ms"]]
    if not levels:
        return None
    names = drawn_stages(levels)
    height = 1.2 + 0.42 * len(levels) + 0.25 * -(-len(names) // paper.columns)
    figure, axes = _figure(paper, height)
    longest = max(_whole(level) for level in levels)
    for number, level in enumerate(levels):
        left = 0.0
        for stage in names:
            mean = level["stages_ms"][stage]["mean"]
            axes.barh(
                number,
                mean,
                left=left,
                color=STAGE_COLOURS[stage],
                height=0.62,
                linewidth=1.5,
                edgecolor=LIGHT["surface"],
                label=stage if number == 0 else None,
            )
            text = f"{mean:.1f}"
            if mean * paper.width > 0.1 * len(text) * longest and len(levels) < 12:
                axes.text(
                    left + mean / 2,
                    number,
                    text,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=9,
                    fontweight="bold",
                )
            left += mean
    axes.set_yticks(range(len(levels)), [level["level"] for level in levels])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="mean ms")
    papers.legend(figure, paper)
    return figure


def pictures(
    paper: Paper, summary: Figures, rows: Sequence[Row], _: Sequence[Sample]
) -> Figure | None:
    """Latency by picture, where there are several of one level."""
    if len(summary["levels"]) != 1:
        return None
    good = [row for row in rows if row.phase == "measure" and row.outcome == OK]
    names = [each["image"] for each in summary["levels"][0]["images"]]
    if not 1 < len(names) <= MOST_PICTURES or len(good) < 3 * len(names):
        return None
    figure, axes = _figure(paper, 0.9 + 0.34 * len(names))
    line = {"color": LIGHT["ink"], "linewidth": 1}
    boxes = axes.boxplot(
        [[row.latency_ms for row in good if row.image == name] for name in names],
        orientation="horizontal",
        tick_labels=[papers.shortened(name, paper) for name in names],
        patch_artist=True,
        widths=0.55,
        boxprops={"facecolor": BLUE, "edgecolor": LIGHT["ink"], "linewidth": 1},
        medianprops=line | {"linewidth": 2},
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": GREY},
    )
    for dots in boxes["fliers"]:
        dots.set_rasterized(True)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=0)
    axes.set(xlabel="latency, ms")
    return figure


def system(
    paper: Paper, summary: Figures, rows: Sequence[Row], samples: Sequence[Sample]
) -> Figure | None:
    """Computer and server, on one time axis: each line has a strip, and parts are stacked."""
    drawn = [strip for strip in strips.strips(summary, samples) if not strip.nil]
    if not drawn:
        return None
    figure, grid = plt.subplots(
        len(drawn),
        1,
        figsize=(paper.width, 0.7 + 1.1 * len(drawn)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, strip in zip(grid[:, 0], drawn, strict=True):
        _shade(axes, rows)
        seconds = [t for t, _ in next(iter(strip.parts.values()))]
        values = [[value for _, value in points] for points in strip.parts.values()]
        if set(strip.parts) <= set(STACK_COLOURS):
            colours = [STACK_COLOURS[label] for label in strip.parts]
            axes.stackplot(seconds, values, labels=list(strip.parts), colors=colours, linewidth=0)
        else:
            axes.plot(seconds, values[0], color=BLUE, linewidth=1.6)
        papers.level_top(axes)
        axes.set_title(f"{strip.title}, {strip.unit}")
        axes.margins(x=0.01)
    grid[-1, 0].set_xlabel("seconds since the start")
    papers.legend(figure, paper)
    return figure


PLOTS: Mapping[str, tuple[str, str, Plot]] = {
    "latency": (
        "Latency over time",
        "Each dot is an answer; what lies in the shaded stripe is not counted. A level band is a "
        "steady server; a slope is drift; a second band is a second kind of request.",
        latency,
    ),
    "percentiles": (
        "Percentiles",
        "The slow ones are those that hurt, so the right end is stretched; its last step is the "
        "slowest answer. The bars are 95 % confidence intervals.",
        percentiles,
    ),
    "throughput": (
        "Throughput",
        "Equal heights, slice by slice, are a steady server. The bars are 95 % confidence "
        "intervals. Of several loads: where the curve turns upwards, more load brings only "
        "waiting.",
        throughput,
    ),
    "stages": (
        "Where the time of a request goes",
        "The mean of each part. The server's own clock tells its stages.",
        stages,
    ),
    "pictures": (
        "Latency by picture",
        "The box holds the middle half of the answers to a picture, its line is their median.",
        pictures,
    ),
    "system": (
        "Meanwhile",
        "One sample a second. What lies in the shaded stripe is not counted.",
        system,
    ),
}


def shades(count: int) -> Sequence[Any]:
    """Colours for so many levels, in their order; as bright as SERIES, so that both screens show
    them."""
    if count <= len(SERIES):
        return SERIES[:count]
    return list(sns.husl_palette(count, s=0.8, l=0.53))


# ---------------------------------------------------------------------------- their parts


def _figure(paper: Paper, height: float) -> tuple[Figure, Axes]:
    """A figure with one plot, `height` inches high."""
    return plt.subplots(figsize=(paper.width, height), layout="constrained")


def _levels(paper: Paper, levels: Sequence[Figures], knee: Figures | None) -> Figure:
    figure, axes = _figure(paper, 3.8)
    rates = [level["ok_per_s"]["value"] for level in levels]
    for name, colour in (("p50", BLUE), ("p95", ORANGE), ("p99", RED)):
        points = [
            (rate, level["latency_ms"][name]["value"])
            for rate, level in zip(rates, levels, strict=True)
            if level["latency_ms"][name]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
    for rate, level in zip(rates, levels, strict=True):
        axes.annotate(
            level["level"],
            (rate, level["latency_ms"]["p50"]["value"]),
            fontsize=8,
            color=LIGHT["quiet"],
            xytext=(4, -11),
            textcoords="offset points",
        )
    if knee and knee["level"]:
        axes.axvline(
            knee["ok_per_s"],
            color=GREY,
            linestyle=":",
            linewidth=1.2,
            label=f"knee: {knee['level']}, {knee['ok_per_s']:.1f}/s",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0, right=max(rates) * 1.12)
    axes.set(xlabel="answers a second", ylabel="latency, ms")
    papers.legend(figure, paper)
    return figure


def _windows(axes: Axes, summary: Figures) -> None:
    """Median and p95 of each slice of time, as steps."""
    for name, style, label in (("p50", "-", "median"), ("p95", ":", "p95")):
        entry: str | None = f"{label} of a slice"
        for level in summary["levels"]:
            known = [each for each in level["windows"] if each[name] is not None]
            if known:
                edges = [known[0]["from_s"], *(each["to_s"] for each in known)]
                axes.stairs(
                    [each[name] for each in known],
                    edges,
                    baseline=None,
                    color=LIGHT["ink"],
                    linestyle=style,
                    linewidth=1.8,
                    label=entry,
                )
                entry = None


def _shade(axes: Axes, rows: Sequence[Row], *, label: str | None = None) -> None:
    """A stripe over what is not counted."""
    spans: list[list[Any]] = []
    for row in rows:
        if spans and spans[-1][0] == (row.phase, row.level):
            spans[-1][2] = max(spans[-1][2], row.done_s)
        else:
            spans.append([(row.phase, row.level), row.scheduled_s, row.done_s])
    for (phase, _), began, ended in spans:
        if phase != "measure":
            axes.axvspan(began, ended, color=LIGHT["shade"], linewidth=0, zorder=0, label=label)
            label = None


def _rug(axes: Axes, rows: Sequence[Row], colour: Any, label: str) -> None:
    """Marks at the lower edge."""
    if rows:
        own = _thinned(rows)
        axes.plot(
            [row.done_s for row in own],
            [0.02] * len(own),
            "|",
            color=colour,
            markersize=9,
            transform=axes.get_xaxis_transform(),
            rasterized=True,
            label=f"{label}: {len(rows)}",
        )


def _tail(
    axes: Axes, ordered: Sequence[float], colour: Any, label: str | None, style: str = "-"
) -> None:
    if not ordered:
        return
    count = len(ordered)
    # The slowest of n stands at 1 - 1/(n+1), so that it is on the paper.
    places = (count + 1) / (count + 1 - np.arange(1, count + 1))
    axes.step(
        places, ordered, where="post", color=colour, linewidth=1.8, label=label, linestyle=style
    )


def _intervals(axes: Axes, level: Figures) -> None:
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
    for name, share in shares.items():
        found = level["latency_ms"][name]
        if found and found["low"] is not None:
            value = found["value"]
            axes.errorbar(
                1 / (1 - share),
                value,
                fmt="o",
                color=ORANGE,
                capsize=4,
                markersize=4,
                yerr=[[value - found["low"]], [found["high"] - value]],
            )
            axes.annotate(
                f"{name.replace('_', '.')} {value:.1f}",
                (1 / (1 - share), value),
                fontsize=8,
                xytext=(6, -11),  # below a curve that rises there is room
                textcoords="offset points",
            )


def _errorbar(
    axes: Axes,
    xs: Sequence[float],
    values: Sequence[float],
    bounds: Sequence[Figures],
    colour: Any,
) -> None:
    down = [value - (each["low"] or value) for value, each in zip(values, bounds, strict=True)]
    up = [(each["high"] or value) - value for value, each in zip(values, bounds, strict=True)]
    yerr = np.maximum([down, up], 0)
    axes.errorbar(xs, values, yerr=yerr, fmt="o-", color=colour, capsize=3, linewidth=1.4)


def _thinned(rows: Sequence[Row]) -> Sequence[Row]:
    return rows[:: max(1, len(rows) // MOST_POINTS)]


def _whole(level: Figures) -> float:
    return float(sum(stage["mean"] for stage in level["stages_ms"].values()))
