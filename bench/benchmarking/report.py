"""The report: one HTML file with everything inside, for a mail attachment, and the plots as PNG.

It has no script and asks for nothing: its policy forbids both, so a browser would complain.
"""

from collections.abc import Mapping, Sequence
from html import escape

from bench.benchmarking import plots
from bench.benchmarking.bottleneck import sentence
from bench.benchmarking.console import STRIP, conclusion, number
from bench.benchmarking.descriptions import described
from bench.benchmarking.markup import bullets, section, table, terms, with_interval
from bench.benchmarking.percentiles import GATES
from bench.benchmarking.plots import Drawn
from bench.benchmarking.rows import Row, Sample, read
from bench.benchmarking.run import Files
from bench.benchmarking.stages import ABOUT, drawn_stages, nil_stages
from bench.benchmarking.statistics import Figures
from bench.benchmarking.strips import strips
from bench.benchmarking.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(files: Files, summary: Figures, compared: Figures | None = None) -> None:
    """Draw the plots from the run's rows, and write them and the report beside its CSVs."""
    rows = read(files.results, Row)
    samples = read(files.system, Sample) if files.system.exists() else []
    drawn = plots.draw(summary, rows, samples)
    for name, plot in drawn.items():
        files.plot(name).write_bytes(plot.png)
    files.report.write_text(page(summary, samples, drawn, compared), encoding="utf-8")


def page(
    summary: Figures,
    samples: Sequence[Sample],
    drawn: Mapping[str, Drawn],
    compared: Figures | None = None,
) -> str:
    """The whole HTML."""
    more = {
        "stages": _stage_terms(summary),
        "system": _strip_terms(summary, samples) + _system(summary["system"]),
    }
    body = "\n".join(
        [
            _title(summary),
            _verdict(summary),
            _cards(summary),
            _comparison(compared) if compared else "",
            section("Figures", _levels(summary["levels"])),
            *(
                _plot(plot, described(name, summary, samples), more.get(name, ""))
                for name, plot in drawn.items()
            ),
            section("Pictures", _pictures(summary)),
            section("How this was measured", _environment(summary)),
        ]
    )
    name = f"Reef benchmark {summary['run']['id']}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def _title(summary: Figures) -> str:
    run, target = summary["run"], summary["target"]
    devices = ", ".join(str(each["id"]) for each in target["devices"])
    by = {
        (each["model"], each["device"])
        for level in summary["levels"]
        for each in level["answered_by"]
    }
    answered = "; ".join(f"{model} on {device}" for model, device in sorted(by))
    return (
        f"<h1>Reef benchmark</h1><p>{escape(answered or target['model'])}, "
        f"{escape(target['url'])}</p>"
        f'<p class="quiet">{escape(run["started"])}, {escape(run["mode"] or "no")} mode, Reef '
        f"{escape(target['version'] or '?')}, devices: {escape(devices or 'unknown')}</p>"
    )


def _verdict(summary: Figures) -> str:
    found = summary["verdict"]
    word = "VALID" if found["valid"] else "INVALID"
    told = (
        "These figures can be believed."
        if found["valid"]
        else ("These figures should not be relied on:")
    )
    reasons = bullets(
        f"{escape(each['text'])}<br><span class='quiet'>{escape(each['advice'])}</span>"
        for each in found["reasons"]
    )
    limits = summary["bottleneck"]
    limit = f"<p>{escape(sentence(limits))}</p>" if limits else ""
    notes = bullets(escape(note) for note in found["notes"])
    notes = f'<div class="quiet">{notes}</div>' if notes else ""
    return (
        f'<div class="verdict {word.lower()}"><strong>{word}</strong> {told}{reasons}{limit}'
        f"{notes}</div>"
    )


def _cards(summary: Figures) -> str:
    levels = [level for level in summary["levels"] if level["latency_ms"]]
    if not levels:
        return ""
    best = max(levels, key=lambda each: float(each["ok_per_s"]["value"]))
    first = levels[0]
    cards = [(f"{best['ok_per_s']['value']:.1f}", f"answers a second, {best['level']}")]
    for name in GATES:
        if found := first["latency_ms"][name]:
            share = {"p50": "half", "p90": "90 %", "p95": "95 %", "p99": "99 %"}.get(name, "99.9 %")
            cards.append(
                (f"{found['value']:.1f} ms", f"{share} came within ({name.replace('_', '.')})")
            )
    good = sum(level["ok"] for level in summary["levels"])
    asked = sum(level["requests"] for level in summary["levels"])
    cards.append((f"{100 * good / asked:.1f} %", f"of {asked} requests succeeded"))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
            for value, what in cards
        )
        + "</div>"
    )


def _levels(levels: Sequence[Figures]) -> str:
    """What clients waited, first; then what became of the requests."""
    if not levels:
        return ""
    answered = [level for level in levels if level["latency_ms"]]
    known = [name for name in GATES if any(level["latency_ms"][name] for level in answered)]
    few = ", ".join(
        f"{name.replace('_', '.')} (from {least} on)"
        for name, (_, least) in GATES.items()
        if name not in known
    )
    return (
        (_latencies(answered, known) if answered else "")
        + (f'<p class="quiet">Too few requests to tell: {few}.</p>' if few else "")
        + "<h3>What became of the requests</h3>"
        + _outcomes(levels)
        + bullets(
            f"{escape(level['level'])}: {message['count']} {escape(message['outcome'])}: "
            f"<code>{escape(message['text'][:200])}</code>"
            for level in levels
            for message in level["messages"]
        )
    )


def _latencies(levels: Sequence[Figures], known: Sequence[str]) -> str:
    rows = [
        [
            escape(level["level"]),
            *(with_interval(level["latency_ms"][name]) for name in known),
            number(level["latency_ms"]["max"]),
            with_interval(level["latency_ms"]["mean"]),
        ]
        for level in levels
    ]
    head = ["load", *(name.replace("_", ".") for name in known), "slowest", "mean"]
    unknown = any(level["latency_ms"][name] is None for level in levels for name in known)
    return (
        "<h3>Latency in ms, of the answers that are right</h3>"
        + table(head, rows)
        + '<p class="quiet">p95 is what 95 of 100 answers stay below. The smaller figures are '
        f"95 % confidence intervals.{' n/a: too few requests to tell.' if unknown else ''}</p>"
    )


def _outcomes(levels: Sequence[Figures]) -> str:
    rows = [
        [
            escape(level["level"]),
            with_interval(level["ok_per_s"]),
            *(str(level[name]) for name in ("requests", "ok", "rejected", "errors", "wrong")),
        ]
        for level in levels
    ]
    return table(("load", "ok a second", "requests", "ok", "refused", "failed", "wrong"), rows)


def _stage_terms(summary: Figures) -> str:
    levels = [level for level in summary["levels"] if level["stages_ms"]]
    nil = nil_stages(levels)
    note = f'<p class="quiet">Below 0.5 % of a request: {", ".join(nil)}.</p>' if nil else ""
    return terms({stage: ABOUT[stage] for stage in drawn_stages(levels)}) + note


def _strip_terms(summary: Figures, samples: Sequence[Sample]) -> str:
    known = strips(summary, samples)
    nil = ", ".join(strip.title for strip in known if strip.nil)
    note = f'<p class="quiet">Nil all along: {escape(nil)}.</p>' if nil else ""
    return terms({strip.title: strip.about for strip in known if not strip.nil}) + note


def _system(measured: Figures) -> str:
    rows = [
        [escape(name), number(measured[column]["mean"]), number(measured[column]["max"]), unit]
        for name, column, unit in STRIP
        if column in measured
    ]
    if not rows:
        return ""
    head = ("while it was measured", "mean", "most", "")
    return "<h3>In figures</h3>" + table(head, rows, kinds={3: "unit"}, stacked=False)


def _pictures(summary: Figures) -> str:
    """Those of the first level, each with what it looks like."""
    if not summary["levels"]:
        return ""
    posted = {file["image"]: file for file in summary["pictures"]}
    rows = []
    for picture in summary["levels"][0]["images"]:
        classes = picture["classes"].replace(";", ", ") or "nothing"
        file = posted.get(picture["image"], {"copies": [], "thumbnail": None, "width": None})
        size = f"{file['width']}&times;{file['height']}" if file["width"] else "n/a"
        rows.append(
            [
                escape(picture["image"]) + _copies(file["copies"]),
                _thumbnail(file["thumbnail"], picture["image"], classes),
                f"{picture['p50']:.1f}",
                str(picture["count"]),
                f"{picture['kb']:.0f}",
                size,
                escape(classes),
            ]
        )
    head = ("picture", "", "p50, ms", "answers", "kB", "pixels", "found")
    return table(head, rows, kinds={1: "thumb", 6: "text"})


def _copies(names: Sequence[str]) -> str:
    return f'<br><span class="quiet">also as {escape(", ".join(names))}</span>' if names else ""


def _thumbnail(uri: str | None, name: str, classes: str) -> str:
    alt = f"{name}, in which was found: {classes}"
    return f'<img src="{escape(uri)}" alt="{escape(alt)}">' if uri else ""


def _environment(summary: Figures) -> str:
    run, host, target, tool = (summary[name] for name in ("run", "host", "target", "tool"))
    client = summary["client"]
    models = ", ".join(
        f"{model['name']} ({kind} {sum_[:12]})"
        for model in target["models"]
        for kind, sum_ in model["sha256"].items()
    )
    ceiling = client.get("ceiling_per_s")
    others = client.get("other_processes")
    facts = {
        "command": f"benchmark.py {' '.join(run['argv'])}",
        "plan": "\n".join(run["plan"]),
        "seed": run["seed"],
        "from, to": f"{run['started']}, {run['ended']}",
        "server": f"Reef {target['version']} at {target['url']}"
        + (", on this computer" if target["local"] else ""),
        "models": models,
        "devices": ", ".join(f"{each['id']} ({each['about']})" for each in target["devices"]),
        "client": ", ".join(
            f"{host[name]} {unit}".strip()
            for name, unit in (("cpu", ""), ("cores", "cores"), ("memory_mb", "MB"), ("kernel", ""))
            if host.get(name)
        ),
        "client's own ceiling": f"{ceiling:.0f} requests/s" if ceiling else "not measured",
        "other programs took": "unknown" if others is None else f"{100 * others:.0f} % of it",
        "tool": f"{tool['name']} {tool['version']}, {tool['revision'] or 'no commit'}, "
        f"sha256 {tool['sha256'][:12]}",
    }
    rows = [[name, escape(str(value)).replace("\n", "<br>")] for name, value in facts.items()]
    return table(("", ""), rows, kinds={1: "text"}, stacked=False)


def _comparison(found: Figures) -> str:
    rows = [
        [
            f"{escape(each['level'])}, {escape(each['figure'])}",
            f"{each['old']:.1f} {each['unit']}",
            f"{each['new']:.1f} {each['unit']}",
            f"{100 * each['change']:+.1f} %",
            "n/a"
            if each["low"] is None
            else f"{100 * each['low']:+.1f} to {100 * each['high']:+.1f} %",
            f'<span class="{each["verdict"]}">{each["verdict"]}</span>',
        ]
        for each in found["differences"]
    ]
    return section(
        "Compared",
        f"<p>{escape(conclusion(found))}</p><p class='quiet'>old: {escape(found['old'])}<br>new: "
        f"{escape(found['new'])}</p>"
        + bullets(escape(each) for each in found["warnings"])
        + table(("figure", "old", "new", "change", "95 % interval", "verdict"), rows),
    )


def _plot(plot: Drawn, description: str, more: str) -> str:
    """For a wide page and for a telephone, of which one is shown; and in words."""
    return section(
        plot.title,
        f'<figure><div role="img" aria-label="{escape(description)}">'
        f'<div class="wide">{plot.wide}</div><div class="narrow">{plot.narrow}</div></div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>{more}",
    )
