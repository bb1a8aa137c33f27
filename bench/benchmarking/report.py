"""The report: one HTML file with everything inside, for a mail attachment, and the plots as PNG.

It has no script and asks for nothing: its policy forbids both, so a browser would complain.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from bench.benchmarking import plots
from bench.benchmarking.bottleneck import sentence
from bench.benchmarking.console import STRIP, conclusion
from bench.benchmarking.percentiles import GATES
from bench.benchmarking.rows import Row, Sample, read
from bench.benchmarking.run import Files
from bench.benchmarking.statistics import Figures

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #f5f7f9; margin: 0; }
main { max-width: 61rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p { margin: .4rem 0; } .quiet { color: #5a6875; font-size: .92rem; }
section, .verdict { background: #fff; border: 1px solid #dfe5ea; border-radius: 8px;
  padding: 1rem 1.2rem; margin: 1rem 0; }
section h2 { margin-top: 0; }
.verdict { border-left: 8px solid; } .valid { border-left-color: #2a8a57; }
.invalid { border-left-color: #c0392b; }
.verdict strong { font-size: 1.25rem; } .valid strong { color: #1f6b43; }
.invalid strong { color: #a5281b; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; }
.card { background: #fff; border: 1px solid #dfe5ea; border-radius: 8px; padding: .7rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.2; font-weight: 650; }
.card span { color: #5a6875; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #e8edf1; }
th { color: #5a6875; font-weight: 600; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th:first-child, td:first-child { white-space: nowrap; }
td .quiet { font-size: .8rem; white-space: nowrap; }
td.text, th.text { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 .4rem; } img { width: 100%; height: auto; display: block; }
figcaption { color: #5a6875; font-size: .92rem; }
ul { margin: .4rem 0; padding-left: 1.2rem; } li { margin: .3rem 0; }
.worse { color: #a5281b; font-weight: 650; } .better { color: #1f6b43; font-weight: 650; }
code { font-size: .88em; overflow-wrap: anywhere; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def write(files: Files, summary: Figures, compared: Figures | None = None) -> None:
    """Draw the plots from the run's rows, and write them and the report beside its CSVs."""
    rows = read(files.results, Row)
    samples = read(files.system, Sample) if files.system.exists() else []
    drawn = plots.draw(summary, rows, samples)
    for name, (_, png) in drawn.items():
        files.plot(name).write_bytes(png)
    files.report.write_text(page(summary, drawn, compared), encoding="utf-8")


def page(
    summary: Figures, drawn: Mapping[str, tuple[str, bytes]], compared: Figures | None = None
) -> str:
    """The whole HTML."""
    body = "\n".join(
        [
            _title(summary),
            _verdict(summary),
            _cards(summary),
            _comparison(compared) if compared else "",
            _section("Figures", _levels(summary["levels"])),
            *(_figure(name, *drawn[name]) for name in drawn),
            _section("Meanwhile", _system(summary["system"])),
            _section("Pictures", _pictures(summary["levels"])),
            _section("How this was measured", _environment(summary)),
        ]
    )
    name = f"Reef benchmark {summary['run']['id']}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
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
    reasons = _list(
        f"{escape(each['text'])}<br><span class='quiet'>{escape(each['advice'])}</span>"
        for each in found["reasons"]
    )
    limits = summary["bottleneck"]
    limit = f"<p>{escape(sentence(limits))}</p>" if limits else ""
    notes = _list(escape(note) for note in found["notes"])
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
    head = ("load", "requests", "ok", "refused", "failed", "wrong", "ok/s", "mean", *GATES, "max")
    rows = []
    for level in levels:
        latency = level["latency_ms"] or {}
        rows.append(
            [
                escape(level["level"]),
                *(str(level[name]) for name in ("requests", "ok", "rejected", "errors", "wrong")),
                f"{level['ok_per_s']['value']:.1f}",
                _with_interval(latency.get("mean")),
                *(_with_interval(latency.get(name)) for name in GATES),
                f"{latency['max']:.1f}" if latency else "n/a",
            ]
        )
    told = [
        f"{escape(level['level'])}: {each['count']} {escape(each['outcome'])}: "
        f"<code>{escape(each['text'][:200])}</code>"
        for level in levels
        for each in level["messages"]
    ]
    return (
        _table([name.replace("_", ".") for name in head], rows)
        + '<p class="quiet">Latency in ms, of successes; below each figure its 95 % confidence '
        "interval. n/a: too few requests to tell.</p>" + _list(told)
    )


def _system(found: Figures) -> str:
    rows = [
        [escape(name), f"{found[column]['mean']:.1f}", f"{found[column]['max']:.1f}", escape(unit)]
        for name, column, unit in STRIP
        if column in found
    ]
    return _table(("while it was measured", "mean", "most", ""), rows, text=3) if rows else ""


def _pictures(levels: Sequence[Figures]) -> str:
    if not levels:
        return ""
    level = levels[0]
    rows = [
        [
            escape(each["image"]),
            str(each["count"]),
            f"{each['kb']:.0f}",
            f"{each['p50']:.1f}",
            escape(each["classes"].replace(";", ", ") or "nothing"),
        ]
        for each in level["images"]
    ]
    return _table(("picture", "answers", "kB", "p50, ms", "found"), rows, text=4)


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
    return _table(("", ""), rows, text=1)


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
    return _section(
        "Compared",
        f"<p>{escape(conclusion(found))}</p><p class='quiet'>old: {escape(found['old'])}<br>new: "
        f"{escape(found['new'])}</p>"
        + _list(escape(each) for each in found["warnings"])
        + _table(("", "old", "new", "change", "95 % interval", ""), rows),
    )


def _figure(name: str, caption: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<section><figure><img alt="plot: {escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text: int | None = None) -> str:
    """`text`: the column that is not numbers. Cells are HTML."""

    def cells(row: Sequence[str]) -> Iterator[str]:
        for number, cell in enumerate(row):
            kind = ' class="text"' if number == text else ""
            yield f"<td{kind}>{cell}</td>"

    lines = "".join(f"<tr>{''.join(cells(row))}</tr>" for row in rows)
    left = ' class="text"'
    top = "".join(
        f"<th{left if number == text else ''}>{escape(each)}</th>"
        for number, each in enumerate(head)
    )
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _list(items: Iterable[str]) -> str:
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def _with_interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "n/a"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:.1f}"
    between = f"{found['low']:.1f} to {found['high']:.1f}"
    return f"{found['value']:.1f}<br><span class='quiet'>{between}</span>"
