"""The command line."""

import argparse
import math
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from app import __version__
from bench.benchmarking.errors import WrongUsage
from bench.benchmarking.percentiles import GATES
from bench.benchmarking.plan import MODES, Request
from bench.pictures import FORMATS, Size

DEFAULT_URL = "http://localhost:5000"
URL_VARIABLE = "BENCH_URL"
"""Where another default is set: in the container, `localhost` is the benchmark itself."""

KEY_VARIABLE = "REEF_API_KEY"
"""Where the server's keys are set, and so, in its compose project, this tool's."""

MOST_CLIENTS = 512
MOST_SIDE = 8000
SEEDS = 2**31
SLO = re.compile(r"(p50|p90|p95|p99|p99\.9)\s*(?:=|<=?)\s*(\d+(?:\.\d+)?)\s*(?:ms)?")
SIZE = re.compile(r"(\d+)x(\d+)")

DESCRIPTION = """\
Measure what a running Reef holds, and what limits it: how long pictures take, how many a second,
where the time goes, and whether the figures can be believed.
"""
EXPLAINED = """\
modes (all are closed loops; each asks for at least so much, and an explicit option comes first):
{modes}
  Without a mode: 100 requests from one client. --iterations alone is exact, and so is --duration;
  both together are both minimums. A percentile that the requests can't bear is shown as n/a.

what it writes into --output:
  benchmark_results_TIMESTAMP.csv   a row for each request, as it is answered
  system_metrics_TIMESTAMP.csv      a row for each second
  benchmark_summary_TIMESTAMP.json  every figure (bench/schema.json), for --compare
  benchmark_report_TIMESTAMP.html   the report, with its plots inside; the plots as PNG beside it

exit status: 0 valid, 1 invalid, 2 wrong usage, 4 no server answers, 130 interrupted (whatever was
  measured until then is kept and reported)

docs/benchmarking.md tells how to read a report and how to compare two boxes.
"""


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    url: str
    plan: Request
    output: Path
    images: tuple[Path, ...]
    size: Size
    formats: tuple[str, ...]
    unique: bool
    query: dict[str, str]
    headers: dict[str, str]
    insecure: bool
    timeout_s: float
    wait_s: float
    seed: int
    slo: tuple[tuple[str, float], ...]
    golden: Path | None
    save_golden: Path | None
    compare: Path | None
    margin: float
    report: Path | None
    plots: bool
    calibrate: bool
    only_calibrate: bool
    json: bool
    argv: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(f"{message}; see --help")


def parse(argv: Sequence[str]) -> Options:
    """Read the command line. Raises WrongUsage; --help and --version leave with SystemExit."""
    found = _parser().parse_args(argv)
    if found.rate and found.concurrent:
        raise WrongUsage("--rate sends when it is time, --concurrent when answers came: choose one")
    if found.rate and found.delay:
        raise WrongUsage("--delay is a closed loop's; with --rate, the rate says it all")
    if found.sweep and (found.rate or found.concurrent):
        raise WrongUsage("--sweep chooses the levels itself; --concurrent 1,4,16 names them")
    if found.golden and found.save_golden:
        raise WrongUsage("--golden compares and --save-golden writes: choose one")
    if found.unique and set(found.format) - {"jpeg", "png"}:
        raise WrongUsage("--unique: only a JPEG or a PNG can carry a salt")
    query = {
        name: value
        for name, value in (("min_score", found.min_score), ("model", found.model))
        if value is not None
    }
    return Options(
        found.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
        Request(
            found.mode,
            found.iterations,
            found.concurrent,
            found.rate,
            found.arrivals,
            found.duration,
            found.warmup,
            found.delay,
            found.sweep,
        ),
        found.output,
        tuple(found.image),
        found.size,
        found.format,
        found.unique,
        query,
        _headers(found),
        found.insecure,
        found.timeout,
        found.wait,
        random.randrange(SEEDS) if found.seed is None else found.seed,
        tuple(found.slo),
        found.golden,
        found.save_golden,
        found.compare,
        found.margin / 100,
        found.report,
        not found.no_plots,
        not found.no_calibration,
        found.calibrate,
        found.format_ == "json",
        tuple(_without_key(argv)),
    )


def _parser() -> argparse.ArgumentParser:
    modes = "\n".join(
        f"  {name:9} {mode.requests} requests and {mode.seconds:g} s, {mode.clients} "
        f"client{'s' if mode.clients > 1 else ''}: {mode.about}"
        for name, mode in MODES.items()
    )
    parser = _Parser(
        prog="benchmark.py",
        description=DESCRIPTION,
        epilog=EXPLAINED.format(modes=modes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"reef-benchmark {__version__}")

    add = parser.add_argument_group("the server").add_argument
    add("--url", help=f"its address ({DEFAULT_URL})")
    add("--api-key", metavar="KEY", help="its key; others on this computer may see it here")
    add("--api-key-file", metavar="FILE", type=Path, help="a file with its key")
    add(
        "--header",
        metavar="'NAME: VALUE'",
        action="append",
        default=[],
        help="send a header with every request; may be given several times",
    )
    add("--insecure", action="store_true", help="take any certificate of an https:// address")
    add(
        "--timeout",
        metavar="S",
        type=_more_than_0,
        default=30.0,
        help="a request that takes longer has failed (%(default)g s)",
    )
    add(
        "--wait",
        metavar="S",
        type=_not_negative,
        default=60.0,
        help="how long a server that answers may take to be ready (%(default)g s)",
    )

    add = parser.add_argument_group("the load").add_argument
    add("--mode", choices=MODES, help="a preset, see below")
    add("--iterations", metavar="N", type=_whole, help="measure exactly so many requests (100)")
    add(
        "--concurrent",
        metavar="N",
        type=_clients,
        help="closed loop: so many clients (1); 1,2,4 measures each",
    )
    add(
        "--delay",
        metavar="S",
        type=_not_negative,
        default=0.0,
        help="closed loop: how long a client thinks after each answer (0)",
    )
    add(
        "--rate",
        metavar="R",
        type=_rates,
        help="open loop: so many requests a second; 10,20 measures each",
    )
    add(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="open loop: as independent users come, or evenly spaced (%(default)s)",
    )
    add(
        "--sweep",
        choices=("clients", "rate"),
        help="raise the load level by level until more brings no more",
    )
    add("--duration", metavar="S", type=_more_than_0, help="measure so long")
    add(
        "--warmup",
        metavar="S",
        type=_not_negative,
        help="before it, not counted (2, or the mode's)",
    )
    add("--seed", metavar="N", type=int, help="of the arrivals and salts (another one each time)")

    add = parser.add_argument_group("the pictures").add_argument
    add(
        "--image",
        metavar="PATH",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        help="files, or folders of them, in turn; without it, six built-in ones",
    )
    add(
        "--size",
        metavar="WxH",
        type=_size,
        default=(640, 480),
        help="of the built-in ones (640x480)",
    )
    add(
        "--format",
        metavar="LIST",
        type=_formats,
        default=("jpeg",),
        help=f"of the built-in ones: {', '.join(FORMATS)} (jpeg); jpeg,png sends both",
    )
    add("--unique", action="store_true", help="make every file different, with a salt in a comment")
    add("--min-score", metavar="X", help="the parameter min_score (the server's default)")
    add("--model", metavar="NAME", help="the parameter model (the server's default)")
    add("--golden", metavar="FILE", type=Path, help="hold the answers against this file's")
    add("--save-golden", metavar="FILE", type=Path, help="write such a file of these answers")

    add = parser.add_argument_group("the results").add_argument
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("benchmark_results"),
        help="where they are written (%(default)s)",
    )
    add(
        "--slo",
        metavar="p99=100ms",
        type=_slo,
        action="append",
        default=[],
        help="INVALID when a percentile is higher; may be given several times",
    )
    add(
        "--compare",
        metavar="OLD.json",
        type=Path,
        help="say which differences to an older summary are significant",
    )
    add(
        "--margin",
        metavar="PERCENT",
        type=_not_negative,
        default=5.0,
        help="with --compare: smaller differences don't count (%(default)g)",
    )
    add(
        "--report",
        metavar="FILE.csv",
        type=Path,
        help="measure nothing: make summary and report again from a benchmark_results CSV, or "
        "read a benchmark_summary JSON",
    )
    add("--no-plots", action="store_true", help="neither HTML nor PNGs")
    add(
        "--print",
        dest="format_",
        choices=("text", "json"),
        default="text",
        help="what goes to stdout (%(default)s)",
    )
    add(
        "--no-calibration",
        action="store_true",
        help="don't measure this client's own ceiling first",
    )
    add("--calibrate", action="store_true", help="measure that ceiling alone, with 50 kB bodies")
    return parser


def _headers(found: argparse.Namespace) -> dict[str, str]:
    headers = {}
    for line in found.header:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[\w-]+", name) or re.search(r"[\r\n]", value):
            raise WrongUsage(f"--header takes 'NAME: VALUE', not {line!r}")
        headers[name] = value.strip()
    key = found.api_key
    if found.api_key_file:
        if key:
            raise WrongUsage("--api-key and --api-key-file: choose one")
        try:
            key = found.api_key_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUsage(f"--api-key-file: {error}") from error
    if key is None and found.url is None:
        # The key of the server beside it; for another address it is nobody's business.
        key = next(iter(os.environ.get(KEY_VARIABLE, "").split()), None)
    if key is not None:
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise WrongUsage("the API key is empty, or has characters that no key has")
        headers["X-API-Key"] = key
    return headers


def _without_key(argv: Sequence[str]) -> list[str]:
    """The command line for the record: a key is nobody's business, nor is a header's value."""
    secret = ("--api-key", "--header")
    found: list[str] = []
    for before, each in zip(["", *argv], argv, strict=False):
        name, equals, _ = each.partition("=")
        if before in secret:
            found.append("...")
        elif name in secret and equals:
            found.append(f"{name}=...")
        else:
            found.append(each)
    return found


# ---------------------------------------------------------------------------- what options take


def _number(check: Callable[[float], bool], takes: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not check(value):
            raise argparse.ArgumentTypeError(f"takes {takes}, not {text!r}")
        return value

    return read


_not_negative = _number(lambda value: value >= 0, "a number from 0")
_more_than_0 = _number(lambda value: value > 0, "a number above 0")


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"takes a whole number from 1, not {text!r}")
    return int(text)


def _clients(text: str) -> tuple[int, ...]:
    found = tuple(_whole(each) for each in text.split(","))
    if max(found) > MOST_CLIENTS or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"takes different numbers up to {MOST_CLIENTS}")
    return found


def _rates(text: str) -> tuple[float, ...]:
    found = tuple(_more_than_0(each) for each in text.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("takes different numbers")
    return found


def _formats(text: str) -> tuple[str, ...]:
    found = tuple(text.lower().replace("jpg", "jpeg").split(","))
    if unknown := set(found) - set(FORMATS):
        raise argparse.ArgumentTypeError(f"knows {', '.join(FORMATS)}, not {unknown.pop()!r}")
    return found


def _size(text: str) -> Size:
    match = SIZE.fullmatch(text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (0 < width <= MOST_SIDE and 0 < height <= MOST_SIDE):
        raise argparse.ArgumentTypeError(f"takes a size like 1920x1080, not {text!r}")
    return width, height


def _slo(text: str) -> tuple[str, float]:
    match = SLO.fullmatch(text.strip())
    name = match[1].replace(".", "_") if match else ""
    if not match or name not in GATES:
        raise argparse.ArgumentTypeError(f"takes something like p99=100ms, not {text!r}")
    return name, float(match[2])
