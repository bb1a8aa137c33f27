"""The closing sentence: what limits this box, and what would raise it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.benchmarking.statistics import Figures
from bench.benchmarking.verdict import BUSY_NEIGHBOURS, NOTED_NEIGHBOURS

BUSY_PCT = 85.0  # of a core, a device or the whole computer: it is full


@dataclass(frozen=True)
class Bottleneck:
    """What limits, how one sees it, and what would raise it."""

    code: str
    what: str
    seen: str
    remedy: str


CORES = re.compile(r" of (\d+) cores?")
"""What `/devices` says about a CPU: `AMD EPYC, 2 of 2 cores`."""

ON_THIS_COMPUTER = ("outside", "waiting to be sent")
"""Where a request's time goes to this client's own computer, and to the network."""

ADVICE = {
    "read": "the body arrives slowly: a faster network, or smaller pictures",
    "decode": "smaller pictures, or JPEG instead of PNG or WebP: the decoder takes most of it",
    "queue": "another device, or fewer requests at once: pictures wait for the device",
    "post": "a higher min_score or a lower max_results: there is much to sort out in the answers",
    "outside": "a better network, a client that keeps its connection open, or one that is closer",
    "waiting to be sent": "fewer requests a second, or several clients: this client was late",
    "between": "a faster processor: the HTTP process waits for its turn",
}


def bottleneck(summary: Mapping[str, Any]) -> Figures | None:
    """What limits the level with the highest rate; None when nothing was measured."""
    levels = [level for level in summary["levels"] if level["ok"]]
    if not levels:
        return None
    level = max(levels, key=lambda each: float(each["ok_per_s"]["value"]))
    limit = (
        _neighbours(level, summary)
        or _client(summary)
        or _full(level, summary)
        or _waited_for(level)
    )
    return asdict(limit) if limit else None


def _neighbours(level: Figures, summary: Mapping[str, Any]) -> Bottleneck | None:
    """Other programs: while they take what the server or this client needs, nothing that a run
    shows is the hardware's."""
    share = summary["client"]["other_processes"]
    if share is None or share <= NOTED_NEIGHBOURS:
        return None
    system = summary["system"]
    if summary["target"]["local"]:
        cpu = _mean(system, "cpu_pct")
        blamed = share > BUSY_NEIGHBOURS or (cpu is not None and cpu > BUSY_PCT)
    else:
        blamed = share > BUSY_NEIGHBOURS and _longest(level) in ON_THIS_COMPUTER
    if not blamed:
        return None
    cores = summary["host"]["cores"]
    ours = [
        f"{what} {used / cores:.0f} %"
        for what, name in (("the server", "server_cpu_pct"), ("this client", "client_cpu_pct"))
        if (used := _mean(system, name)) is not None
        and (name == "client_cpu_pct" or summary["target"]["local"])
    ]
    return Bottleneck(
        "neighbours",
        "the other programs on this computer",
        f"they took {100 * share:.0f} % of it, {' and '.join(ours)}",
        "stopping them, or measuring again while they rest; what the server can do alone is not "
        "known yet"
        if summary["target"]["local"]
        else "run the benchmark on a computer that is idle; what the server can do is not known "
        "yet",
    )


def _client(summary: Mapping[str, Any]) -> Bottleneck | None:
    codes = {each["code"] for each in summary["verdict"]["reasons"]}
    if not codes & {"client_busy", "client_ceiling", "loop_lag"}:
        return None
    return Bottleneck(
        "client",
        "this benchmark's own computer",
        "the client was late or full, see the verdict",
        "run it on another computer; what the server can do is not known yet",
    )


def _full(level: Figures, summary: Mapping[str, Any]) -> Bottleneck | None:
    """Something that has no room left."""
    system = summary["system"]
    stages = level["stages_ms"] or {}
    inference = stages.get("inference", {}).get("mean")
    busy, http, cpu = (
        _mean(system, name) for name in ("device_busy_pct", "http_cpu_pct", "cpu_pct")
    )
    devices = " and ".join(sorted({each["device"] for each in level["answered_by"]})) or "device"
    if devices == "cpu":
        cpu = cpu if summary["target"]["local"] else _of_the_server(summary)
        if cpu is not None and cpu > BUSY_PCT:
            if summary["target"]["local"] and summary["client"]["other_processes"] is None:
                return _by_whom(cpu)
            return Bottleneck(
                "processor",
                "the processor",
                f"its cores are {cpu:.0f} % busy at {level['ok_per_s']['value']:.1f} requests/s, "
                f"an inference takes {_ms(inference)}",
                "an Edge TPU takes the inference off it; or a processor with more cores",
            )
    elif busy is not None and busy > BUSY_PCT:
        return Bottleneck(
            "device",
            f"the device ({devices})",
            f"it infers {busy:.0f} % of the time, {_ms(inference)} for each picture",
            "another Edge TPU, or a smaller model",
        )
    if http is not None and http > BUSY_PCT:
        return Bottleneck(
            "http",
            "the server's HTTP process",
            f"it uses {http:.0f} % of a core",
            "smaller pictures, or a processor with faster cores",
        )
    if level["rejected"] > 0.01 * level["requests"]:
        return Bottleneck(
            "queue",
            "the server's queue",
            f"{level['rejected']} of {level['requests']} requests were refused",
            "another device; a longer queue (REEF_QUEUE) only makes clients wait longer",
        )
    return None


def _by_whom(cpu: float) -> Bottleneck:
    return Bottleneck(
        "processor",
        "the processor",
        f"its cores are {cpu:.0f} % busy; with what is not known, as the server does not tell its "
        "own share",
        "stopping what is not the server; the command top tells",
    )


def _longest(level: Figures) -> str | None:
    """The stage that a client waits for longest; None where the server tells no stages."""
    stages = level["stages_ms"]
    return max(stages, key=lambda stage: float(stages[stage]["mean"])) if stages else None


def _waited_for(level: Figures) -> Bottleneck | None:
    """Nothing is full: then it is what a client waits for longest."""
    name = _longest(level)
    if name is None:
        return None
    stages = level["stages_ms"]
    whole = sum(stage["mean"] for stage in stages.values())
    most = stages[name]
    devices = {each["device"] for each in level["answered_by"]}
    advice = ADVICE.get(name, "a smaller model")
    if name == "inference":
        advice = "an Edge TPU, or a smaller model" if devices == {"cpu"} else "a smaller model"
        if level["load"] == "closed":
            advice += "; more clients at once would use what is idle now"
    share = most["mean"] / whole if whole else 0.0
    named = {"inference": "the inference", "outside": "the way to the server and back"}
    return Bottleneck(
        "latency",
        f"{named.get(name, name)}, which takes {100 * share:.0f} % of a request",
        f"{_ms(most['mean'])} of {_ms(whole)}; nothing is full",
        advice,
    )


def sentence(found: Mapping[str, str]) -> str:
    """For people."""
    return f"What limits it: {found['what']} ({found['seen']}). What would raise it: " + (
        f"{found['remedy']}."
    )


def _of_the_server(summary: Mapping[str, Any]) -> float | None:
    """How busy a server elsewhere keeps its cores; a CPU device says how many there are."""
    used = _mean(summary["system"], "server_cpu_pct")
    for device in summary["target"]["devices"]:
        if used is not None and (cores := CORES.search(str(device["about"]))):
            return used / int(cores[1])
    return None


def _mean(system: Mapping[str, Any], name: str) -> float | None:
    found = system.get(name)
    return None if found is None else float(found["mean"])


def _ms(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f} ms"
