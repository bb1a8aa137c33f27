"""The plots, each a PNG. Every one says in its title what is to be seen in it."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Where no home can be written to, matplotlib would complain on every start.
os.environ.setdefault("MPLCONFIGDIR", f"/tmp/reef-benchmark-{os.getuid()}")  # noqa: S108

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.benchmarking.rows import OK, REJECTED, Row, Sample
from bench.benchmarking.statistics import Figures

DPI = 120
WIDTH = 9.0  # inches
COLOURS = sns.color_palette("colorblind", 10)
BLUE, ORANGE, GREEN, RED = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3]
GREY = "#666666"
MOST_POINTS = 20_000  # more dots show nothing more
TAIL_TICKS = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
STAGES = {
    "waiting to be sent": "#bbbbbb",
    "outside": COLOURS[7],
    "read": COLOURS[9],
    "decode": COLOURS[1],
    "queue": "#7a5fa8",
    "inference": COLOURS[0],
    "post": COLOURS[2],
    "between": COLOURS[5],
}
STRIPS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    (
        "CPU",
        "% of a core",
        {
            "client_cpu_pct": "client",
            "http_cpu_pct": "server: HTTP",
            "devices_cpu_pct": "server: devices",
        },
    ),
    ("Computer", "% of all cores", {"cpu_pct": "CPU", "cpu_max_core_pct": "busiest core"}),
    ("Server's memory", "MB", {"server_rss_mb": "all of it", "devices_rss_mb": "devices"}),
    ("Device", "% of the time", {"device_busy_pct": "infers"}),
    ("Temperature", "°C", {"cpu_temp_c": "processor", "tpu_temp_c": "Edge TPU"}),
    ("Waiting", "requests", {"in_flight": "under way", "queue_depth": "in the queue"}),
    ("Late", "ms", {"loop_lag_ms": "client's loop", "health_ms": "/health"}),
)

Plot = Callable[[Figures, Sequence[Row], Sequence[Sample]], Figure | None]


def draw(
    summary: Figures, rows: Sequence[Row], samples: Sequence[Sample]
) -> dict[str, tuple[str, bytes]]:
    """Every plot there is something to show of: by name, its caption and its PNG."""
    sns.set_theme(
        "notebook",
        "whitegrid",
        rc={
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": "#cccccc",
            "grid.color": "#e6e6e6",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "font.family": "DejaVu Sans",
        },
    )
    found = {}
    for name, (caption, plot) in PLOTS.items():
        figure = plot(summary, rows, samples)
        if figure is not None:
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=DPI)
            plt.close(figure)
            found[name] = (caption, file.getvalue())
    return found


# ---------------------------------------------------------------------------- the plots


def latency(summary: Figures, rows: Sequence[Row], _: Sequence[Sample]) -> Figure | None:
    """Every answer over time."""
    good = [row for row in rows if row.outcome == OK]
    if not good:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for phases, colour, label in (
        (("measure",), BLUE, "an answer"),
        (("warmup", "baseline", "recovery"), GREY, None),
    ):
        own = _thinned([row for row in good if row.phase in phases])
        if own:
            size = 14 if len(own) < 2000 else 5
            axes.scatter(
                [row.done_s for row in own],
                [row.latency_ms for row in own],
                s=size,
                color=colour,
                alpha=0.45,
                linewidths=0,
                label=label,
                rasterized=True,
            )
    _windows(axes, summary)
    _shade(axes, rows)
    top = max(row.latency_ms for row in good)
    low = np.percentile([row.latency_ms for row in good], 50)
    if top > 12 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _pos: f"{value:g}"))
    else:
        axes.set_ylim(0, top * 1.12)
    _rug(axes, [row for row in rows if row.outcome == REJECTED], ORANGE, "refused (503, 429)")
    _rug(axes, [r for r in rows if r.outcome not in (OK, REJECTED)], RED, "failed or wrong")
    axes.set(title="Latency over time", xlabel="seconds since the start", ylabel="latency, ms")
    axes.margins(x=0.01)
    _legend(axes)
    return figure


def percentiles(summary: Figures, rows: Sequence[Row], _: Sequence[Sample]) -> Figure | None:
    """How many are slower than so and so much: the tail, stretched."""
    levels = [level["level"] for level in summary["levels"] if level["ok"]]
    if not levels:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8), layout="constrained")
    shades = sns.color_palette("viridis", len(levels)) if len(levels) > 1 else [BLUE]
    most = 0
    for name, shade in zip(levels, shades, strict=True):
        own = [row for row in rows if row.phase == "measure" and row.level == name]
        good = sorted(row.latency_ms for row in own if row.outcome == OK)
        _tail(axes, good, shade, name if len(levels) > 1 else "latency")
        service = sorted(row.service_ms for row in own if row.outcome == OK)
        if own[0].load == "open" and len(levels) == 1:
            _tail(axes, service, GREY, "from the sending", style="--")
        most = max(most, len(good))
    if len(levels) == 1:
        _intervals(axes, summary["levels"][0])
    axes.set_xscale("log")
    ticks = [share for share in TAIL_TICKS if 1 / (1 - share) <= max(most, 10)]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - share) for share in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _pos: f"{100 * (1 - 1 / x):.4g} %"))
    axes.set_xlim(1, max(most, 10))
    axes.set_ylim(bottom=0)
    axes.set(
        title="Percentiles: so many of the answers came within …",
        xlabel="share of the answers (the right end is the slowest one)",
        ylabel="latency, ms",
    )
    _legend(axes)
    return figure


def throughput(summary: Figures, _rows: Sequence[Row], _: Sequence[Sample]) -> Figure | None:
    """What more load brings, and what it costs; of a single level, its windows."""
    levels = [level for level in summary["levels"] if level["ok"]]
    if len(levels) > 1:
        return _levels(levels, summary["knee"])
    windows = [each for level in levels for each in level["windows"] if each["p50"] is not None]
    if len(windows) < 3:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    middles = [(each["from_s"] + each["to_s"]) / 2 for each in windows]
    rates = [each["ok_per_s"] for each in windows]
    _errorbar(left, middles, [each["value"] for each in rates], rates, GREEN)
    left.set(title="Throughput, slice by slice", xlabel="seconds", ylabel="answers a second")
    _errorbar(right, middles, [each["p50"] for each in windows], windows, BLUE)
    right.set(title="Median latency, slice by slice", xlabel="seconds", ylabel="ms")
    for axes in (left, right):
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
    return figure


def stages(summary: Figures, _rows: Sequence[Row], _: Sequence[Sample]) -> Figure | None:
    """Where the time of a request goes."""
    levels = [level for level in summary["levels"] if level["stages_ms"]]
    if not levels:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 1.5 + 0.42 * len(levels)), layout="constrained")
    for number, level in enumerate(levels):
        left = 0.0
        whole = sum(each["mean"] for each in level["stages_ms"].values())
        for stage, colour in STAGES.items():
            mean = level["stages_ms"][stage]["mean"]
            axes.barh(
                number,
                mean,
                left=left,
                color=colour,
                height=0.62,
                linewidth=0,
                label=stage if number == 0 else None,
            )
            if mean > 0.07 * whole and len(levels) < 12 and whole > 0.07 * _longest(levels):
                axes.text(
                    left + mean / 2,
                    number,
                    f"{mean:.1f}",
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
    axes.set(title="Where the time of a request goes", xlabel="mean ms")
    figure.legend(loc="outside lower center", ncol=8, handlelength=1, columnspacing=1.1)
    return figure


def pictures(summary: Figures, rows: Sequence[Row], _: Sequence[Sample]) -> Figure | None:
    """Latency by picture, where there are several of one level."""
    if len(summary["levels"]) != 1:
        return None
    good = [row for row in rows if row.phase == "measure" and row.outcome == OK]
    names = [each["image"] for each in summary["levels"][0]["images"]]
    if not 1 < len(names) <= 24 or len(good) < 3 * len(names):
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.3 * len(names)), layout="constrained")
    sns.boxplot(
        x=[row.latency_ms for row in good],
        y=[row.image for row in good],
        order=names,
        color=BLUE,
        fliersize=2,
        linewidth=1,
        ax=axes,
        saturation=0.7,
        width=0.6,
    )
    axes.set_xlim(left=0)
    axes.set(title="Latency by picture", xlabel="latency, ms", ylabel="")
    return figure


def system(_: Figures, rows: Sequence[Row], samples: Sequence[Sample]) -> Figure | None:
    """The computer and the server, on one time axis."""
    strips = []
    for title, unit, columns in STRIPS:
        known = {
            label: points
            for column, label in columns.items()
            if len(points := _points(samples, column)) > 1
        }
        if known:
            strips.append((title, unit, known))
    if not strips:
        return None
    figure, grid = plt.subplots(
        len(strips),
        1,
        figsize=(WIDTH, 1.25 * len(strips)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, unit, known) in zip(grid[:, 0], strips, strict=True):
        for number, (label, points) in enumerate(known.items()):
            axes.plot(
                [t for t, _ in points],
                [value for _, value in points],
                label=label,
                color=COLOURS[number],
                linewidth=1.6,
            )
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1) * 1.1)
        axes.set_title(f"{title}, {unit}", fontsize=9.5)
        _shade(axes, rows, label=False)
        _legend(axes)
        axes.margins(x=0.01)
    grid[-1, 0].set_xlabel("seconds since the start")
    return figure


PLOTS: Mapping[str, tuple[str, Plot]] = {
    "latency": (
        "Each dot is an answer; what lies in the grey stripe is not counted. A level band is a "
        "steady server; a slope is drift; a second band is a second kind of request.",
        latency,
    ),
    "percentiles": (
        "Read it from the right: the last tick before the end is what the unlucky ones wait. The "
        "bars are 95 % confidence intervals.",
        percentiles,
    ),
    "throughput": (
        "Equal heights are a steady server. The bars are 95 % confidence intervals. Of several "
        "loads: where the curve turns upwards, more load brings only waiting.",
        throughput,
    ),
    "stages": (
        "The server's own clock tells its stages; 'outside' is the network, the HTTP server and "
        "this client. 'queue' is waiting for the device.",
        stages,
    ),
    "pictures": (
        "The box holds the middle half of the answers to a picture, its line is their median.",
        pictures,
    ),
    "system": (
        "One sample a second. 100 % is one core, but in the strip 'Computer'.",
        system,
    ),
}


# ---------------------------------------------------------------------------- their parts


def _levels(levels: Sequence[Figures], knee: Figures | None) -> Figure:
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8), layout="constrained")
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
            color=GREY,
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
    axes.set(title="Throughput against latency", xlabel="answers a second", ylabel="latency, ms")
    _legend(axes)
    return figure


def _windows(axes: Axes, summary: Figures) -> None:
    """Median and p95 of each slice of time, as steps."""
    for name, colour, label in (("p50", "#003a5d", "median"), ("p95", "#b35900", "p95")):
        for number, level in enumerate(summary["levels"]):
            known = [each for each in level["windows"] if each[name] is not None]
            if known:
                edges = [known[0]["from_s"], *(each["to_s"] for each in known)]
                axes.stairs(
                    [each[name] for each in known],
                    edges,
                    baseline=None,
                    color=colour,
                    linewidth=1.8,
                    label=f"{label} of a slice" if not number else None,
                )


def _shade(axes: Axes, rows: Sequence[Row], *, label: bool = True) -> None:
    """Grey over what is not counted."""
    spans: list[list[Any]] = []
    for row in rows:
        if spans and spans[-1][0] == (row.phase, row.level):
            spans[-1][2] = max(spans[-1][2], row.done_s)
        else:
            spans.append([(row.phase, row.level), row.scheduled_s, row.done_s])
    told = not label
    for (phase, _), began, ended in spans:
        if phase != "measure":
            axes.axvspan(
                began,
                ended,
                color="#000000",
                alpha=0.06,
                linewidth=0,
                label=None if told else "not counted",
            )
            told = True


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
            label=f"{label}: {len(rows)}",
        )


def _tail(axes: Axes, ordered: Sequence[float], colour: Any, label: str, style: str = "-") -> None:
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
                xytext=(-6, 8),
                ha="right",
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


def _points(samples: Sequence[Sample], column: str) -> list[tuple[float, float]]:
    found = [(each.t_s, getattr(each, column)) for each in samples]
    return [(t, float(value)) for t, value in found if value is not None]


def _thinned(rows: Sequence[Row]) -> Sequence[Row]:
    return rows[:: max(1, len(rows) // MOST_POINTS)]


def _longest(levels: Sequence[Figures]) -> float:
    return max(sum(float(each["mean"]) for each in level["stages_ms"].values()) for level in levels)


def _legend(axes: Axes) -> None:
    """Above the plot, at the right of its title: nothing is hidden, and all plots are as wide."""
    _, labels = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncol=min(6, len(labels)),
        borderaxespad=0.3,
        columnspacing=1.0,
        handlelength=1.2,
        handletextpad=0.5,
        markerscale=1.2,
    )
