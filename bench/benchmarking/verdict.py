"""Whether a run can be believed, why not, and what to do about it. Pure.

Every reason has a code, which stays the same, and words that may change.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.benchmarking.percentiles import GATES, needed
from bench.benchmarking.statistics import Figures

MOST_ERRORS = 0.01
STEADY = 1.10  # the highest window's median or rate, over the lowest's
DRIFT = 0.10  # of p95 in an endurance run, between its thirds
LAG_MS, LAG_SHARE = 10.0, 0.1  # of p50; whichever is more
DELAY_MS, DELAY_SHARE = 1.0, 0.05  # of p50; whichever is more
CLIENT_CPU_PCT = 90.0
CEILING_SHARE = 0.5
NOTED_NEIGHBOURS = 0.10  # of the computer: worth a word
BUSY_NEIGHBOURS = 0.25  # of the server's own computer: the figures are theirs as much as its
HEALTH_MS = 1000.0
GROWTH_MB_PER_HOUR = 1.0
STALL = 10.0  # the longest answer, over the median
RECOVERED = 1.25  # the median afterwards, over the one before
USB2_MBPS = 480.0


@dataclass(frozen=True)
class Reason:
    """Why a run is not to be believed."""

    code: str
    text: str
    advice: str


def verdict(summary: Mapping[str, Any]) -> Figures:
    """VALID or INVALID, with reasons; and notes, which a reader of the figures should know."""
    reasons = [*_of_the_run(summary), *_of_the_neighbours(summary)]
    for level in summary["levels"]:
        reasons += _of_a_level(level, summary)
    reasons += _of_the_client(summary)
    reasons += _of_the_mode(summary)
    return {
        "valid": not reasons,
        "reasons": [asdict(reason) for reason in reasons],
        "notes": list(_notes(summary)),
    }


# ---------------------------------------------------------------------------- the run


def _of_the_run(summary: Mapping[str, Any]) -> Iterator[Reason]:
    run = summary["run"]
    if run["interrupted"]:
        yield Reason(
            "interrupted",
            "the run was interrupted; these are the figures until then",
            "Let it end.",
        )
    if run["gave_up"]:
        yield Reason(
            "server_gone",
            f"the run was ended early: {run['gave_up']}",
            "See the server's log, and whether it was restarted.",
        )
    if not any(level["ok"] for level in summary["levels"]):
        yield Reason(
            "no_success", "no request was answered as it should be", "See the messages below."
        )
    missed = [each for each in run["slo"] if not each["met"]]
    for each in missed:
        found = "n/a" if each["found_ms"] is None else f"{each['found_ms']:.1f} ms"
        yield Reason(
            "slo_missed",
            f"{each['level']}: {each['percentile']} is {found}, asked for at most "
            f"{each['most_ms']:g} ms",
            "See where the time goes, below.",
        )


def _of_the_neighbours(summary: Mapping[str, Any]) -> Iterator[Reason]:
    """Programs elsewhere don't take from the server what it needs, so they are but noted."""
    share = summary["client"]["other_processes"]
    if summary["target"]["local"] and share is not None and share > BUSY_NEIGHBOURS:
        yield Reason(
            "neighbours",
            f"other programs took {100 * share:.0f} % of the server's computer: these figures tell "
            "of them as much as of the server",
            "Stop them, or measure again when they rest; the command top names them.",
        )


# ---------------------------------------------------------------------------- a level


def _of_a_level(level: Figures, summary: Mapping[str, Any]) -> Iterator[Reason]:
    sweep, stress = summary["run"]["sweep"], summary["run"]["mode"] == "stress"
    name, count = level["level"], level["requests"]
    if level["wrong"]:
        text = next(
            (
                each["text"]
                for each in level["messages"]
                if each["outcome"] in ("malformed", "different")
            ),
            "",
        )
        yield Reason(
            "wrong_answers",
            f"{name}: {level['wrong']} of {count} answers are wrong: {text}",
            "Fast but wrong is no result. Report it with the two answers: --save-golden.",
        )
    if level["errors"] > MOST_ERRORS * count and not sweep:
        yield Reason(
            "errors",
            f"{name}: {_share(level['errors'], count)} of the requests failed: {_worst(level)}",
            "See the server's log; --timeout changes how long an answer may take.",
        )
    if level["rejected"] > MOST_ERRORS * count and not stress and not sweep:
        yield Reason(
            "rejected",
            f"{name}: the server refused {_share(level['rejected'], count)} of the requests",
            "It has more to do than it can: ask less at once (--concurrent), or slower (--rate).",
        )
    if not sweep:
        yield from _steadiness(level)


def _steadiness(level: Figures) -> Iterator[Reason]:
    known = [each for each in level["windows"] if each["low"] is not None]
    if len(known) < 3:
        return
    slow, fast = max(known, key=lambda each: each["p50"]), min(known, key=lambda each: each["p50"])
    if slow["p50"] > STEADY * fast["p50"] and slow["low"] > fast["high"]:
        yield Reason(
            "unstable",
            f"{level['level']}: the median went from {fast['p50']:.1f} ms (at "
            f"{fast['from_s']:.0f} s) to {slow['p50']:.1f} ms (at {slow['from_s']:.0f} s)",
            "Something changed meanwhile: other programs, heat, a restart. See the plots; measure "
            "again when it is quiet, or for longer (--duration).",
        )
        return
    rates = [each["ok_per_s"] for each in known if each["ok_per_s"]["low"] is not None]
    if level["load"] == "open" or len(rates) < 3:
        return  # an open loop's rate is what was asked for
    most, least = max(rates, key=_value), min(rates, key=_value)
    if most["value"] > STEADY * least["value"] and most["low"] > least["high"]:
        yield Reason(
            "unstable",
            f"{level['level']}: the rate went from {least['value']:.1f} to "
            f"{most['value']:.1f} requests/s",
            "Something stood still, or changed, meanwhile. See the plots; measure again when it "
            "is quiet, or for longer (--duration).",
        )


# ---------------------------------------------------------------------------- the client


def _of_the_client(summary: Mapping[str, Any]) -> Iterator[Reason]:
    system = summary["system"]
    elsewhere = "Run the benchmark on another computer, or ask slower."
    lag = _mean(system, "loop_lag_ms")
    fastest = min(
        (level["latency_ms"]["p50"]["value"] for level in summary["levels"] if level["latency_ms"]),
        default=0.0,
    )
    if lag is not None and lag > max(LAG_MS, LAG_SHARE * fastest):
        yield Reason(
            "loop_lag",
            f"this client came {lag:.0f} ms late to its own work: its figures are too high",
            "The computer has too much to do. " + elsewhere,
        )
    cpu = _mean(system, "client_cpu_pct")
    if cpu is not None and cpu > CLIENT_CPU_PCT:
        yield Reason(
            "client_busy",
            f"this client used {cpu:.0f} % of a core: it is the bottleneck",
            "Ask slower (--rate), or run several clients on several computers.",
        )
    ceiling = summary["client"]["ceiling_per_s"]
    for level in summary["levels"]:
        if level["send_delay_ms"] and level["latency_ms"]:
            delay = level["send_delay_ms"]["p99"] or level["send_delay_ms"]["p50"]
            bound = max(DELAY_MS, DELAY_SHARE * level["latency_ms"]["p50"]["value"])
            if delay["value"] > bound:
                yield Reason(
                    "send_delay",
                    f"{level['level']}: requests left up to {delay['value']:.1f} ms late",
                    "This client could not keep up, or all its connections waited for answers: "
                    "latency counts from the schedule, so it holds, but the load was not as "
                    "even as asked. " + elsewhere,
                )
        if ceiling and level["ok_per_s"]["value"] > CEILING_SHARE * ceiling:
            yield Reason(
                "client_ceiling",
                f"{level['level']}: {level['ok_per_s']['value']:.0f} requests/s is more than half "
                f"of what this client can ask at all ({ceiling:.0f}/s)",
                "Run several clients on several computers.",
            )


# ---------------------------------------------------------------------------- a mode's own


def _of_the_mode(summary: Mapping[str, Any]) -> Iterator[Reason]:
    mode, system = summary["run"]["mode"], summary["system"]
    if mode == "stress":
        health = system.get("health_ms")
        if health and health["max"] > HEALTH_MS:
            yield Reason(
                "health_slow",
                f"/health took {health['max']:.0f} ms under load",
                "A watchdog would restart the server: raise its patience, or lower the load.",
            )
        recovery = summary["recovery"]
        if recovery and recovery["ratio"] > RECOVERED:
            yield Reason(
                "no_recovery",
                f"afterwards a single client waited {recovery['after_ms']:.1f} ms, before "
                f"{recovery['before_ms']:.1f} ms",
                "The server did not become itself again within 10 s: see its log, and its heat.",
            )
    if mode == "endurance":
        yield from _endurance(summary, system)


def _endurance(summary: Mapping[str, Any], system: Mapping[str, Any]) -> Iterator[Reason]:
    growth = summary["trends"].get("server_rss_mb")
    if growth and growth["low"] > GROWTH_MB_PER_HOUR:
        yield Reason(
            "memory_grows",
            f"the server's memory grew by {growth['value']:.1f} MB an hour",
            "Measure for longer: --duration 14400. If it goes on, report it.",
        )
    for name, what in (("server_fds", "open files"), ("server_threads", "threads")):
        trend = summary["trends"].get(name)
        if trend and trend["low"] > 0 and system[name]["last"] > 1.2 * system[name]["first"]:
            yield Reason(
                f"{name.removeprefix('server_')}_grow",
                f"the server's {what} went from {system[name]['first']:.0f} to "
                f"{system[name]['last']:.0f}",
                "Measure for longer: --duration 14400. If it goes on, report it.",
            )
    for level in summary["levels"]:
        found = [each["p95"] for each in level["windows"] if each["p95"] is not None]
        third = len(found) // 3
        if third:
            first, last = sorted(found[:third]), sorted(found[-third:])
            before, after = first[third // 2], last[third // 2]
            if after > before * (1 + DRIFT):
                yield Reason(
                    "drift",
                    f"{level['level']}: p95 went from {before:.1f} ms in the first third to "
                    f"{after:.1f} ms in the last",
                    "See temperature and memory in the plots.",
                )
    if system.get("throttled", {}).get("max") or system.get("tpu_throttle_level", {}).get("max"):
        yield Reason(
            "throttled",
            "processor or Edge TPU was slowed down by heat or a weak supply",
            "Cool it, or give it a stronger supply.",
        )


# ---------------------------------------------------------------------------- notes


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    target, system, levels = summary["target"], summary["system"], summary["levels"]
    if any(level["load"] == "closed" for level in levels):
        yield (
            "closed loop: clients wait for their answers, so the queueing that independent "
            "clients would suffer is not visible; --rate shows it"
        )
    for level in levels:
        latency = level["latency_ms"]
        if level["load"] == "closed" and latency and latency["max"] > _stall_ms(level):
            yield (
                f"{level['level']}: one answer took {latency['max']:.0f} ms. Whoever else would "
                "have come meanwhile would have waited too, which a closed loop can't count; "
                f"measure it with --rate {0.7 * level['ok_per_s']['value']:.0f}"
            )
    few = sorted({name for level in levels for name in needed(level["ok"])}, key=list(GATES).index)
    if few:
        texts = [f"{_shown(name)} {GATES[name][1]}" for name in few]
        yield f"n/a: too few requests; it takes for {', '.join(texts)}"
    copies = sum(len(picture["copies"]) for picture in summary["pictures"])
    if copies:
        yield f"{copies} of the files are copies of others, which were posted once"
    if target["local"]:
        share = _mean(system, "client_cpu_pct")
        used = f", and took {share:.0f} % of a core of it" if share is not None else ""
        yield f"the benchmark ran on the server's own computer{used}"
    others = summary["client"]["other_processes"]
    if others is not None and others > NOTED_NEIGHBOURS:
        yield (
            f"other programs took {100 * others:.0f} % of this computer meanwhile: "
            "times are upper bounds"
        )
    if any(level["degraded"] for level in levels):
        degraded = sum(level["degraded"] for level in levels)
        yield f"{degraded} answers were degraded: the CPU stood in for an Edge TPU"
    devices = {each["device"] for level in levels for each in level["answered_by"]}
    if len(devices) > 1:
        yield f"several devices answered: {', '.join(sorted(devices))}"
    speed = system.get("usb_mbps")
    if speed and speed["min"] <= USB2_MBPS:
        yield "an Edge TPU is on USB 2: expect it 2 to 3 times slower than on USB 3"
    if system.get("throttled", {}).get("max") and summary["run"]["mode"] != "endurance":
        yield "the processor was slowed down by heat or a weak supply meanwhile"
    if system.get("tpu_throttle_level", {}).get("max"):
        yield "an Edge TPU halved its clock because it was too hot: cool it"
    if system.get("device_warnings", {}).get("max"):
        yield "the server warns of its devices: see /devices"
    restarts = system.get("restarts")
    if restarts and restarts["max"] > restarts["min"]:
        yield "a device's process was restarted meanwhile: see the server's log"
    for level in levels:
        yield from _two_latencies(level)
    yield from target["notes"]


def _two_latencies(level: Figures) -> Iterator[str]:
    latency, service = level["latency_ms"], level["service_ms"]
    if (
        level["load"] == "open"
        and latency
        and latency["p50"]["value"] > 1.05 * service["p50"]["value"]
    ):
        yield (
            f"{level['level']}: from the schedule p50 is {latency['p50']['value']:.1f} ms, from "
            f"the sending {service['p50']['value']:.1f} ms; users wait for the former"
        )


def _stall_ms(level: Figures) -> float:
    return STALL * float(level["latency_ms"]["p50"]["value"])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % ({part} of {whole})"


def _worst(level: Figures) -> str:
    bad = [each for each in level["messages"] if each["outcome"] not in ("rejected", "different")]
    return f"{bad[0]['outcome']}, {bad[0]['text'][:100]}" if bad else ""


def _mean(system: Mapping[str, Any], name: str) -> float | None:
    found = system.get(name)
    return None if found is None else float(found["mean"])


def _value(rate: Figures) -> float:
    return float(rate["value"])


def _shown(name: str) -> str:
    return name.replace("_", ".")
