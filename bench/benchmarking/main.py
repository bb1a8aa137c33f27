"""The command: reads options, measures or reads, prints, draws, and says how it ended."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.benchmarking import compare, console, options, run, summary
from bench.benchmarking.calibrate import ceiling, told
from bench.benchmarking.errors import BenchmarkError, WrongUsage
from bench.benchmarking.loops import event_loop
from bench.benchmarking.options import Options
from bench.benchmarking.run import Files
from bench.benchmarking.statistics import Figures

CEILING_BYTES = 50_000
VALID, INVALID, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    try:
        asked = options.parse(argv)
        if asked.only_calibrate:
            return _calibrate()
        old = summary.read(asked.compare) if asked.compare else None
        files, found = _again(asked.report) if asked.report else run.run(asked)
        compared = compare.compare(old, found, asked.margin) if old else None
        try:
            _print(found, compared, as_json=asked.json)
            sys.stdout.flush()
        except BrokenPipeError:  # as `| head` does; the files are still wanted
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end
        if files:
            _draw(files, found, compared, asked)
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # a full disk, most likely
        print(f"benchmark: {error}", file=sys.stderr)
        return INVALID
    except KeyboardInterrupt:  # after the measurement; while it lasts, it is handled there
        print("benchmark: interrupted; what was measured is kept", file=sys.stderr)
        return INTERRUPTED
    if found["run"]["interrupted"] and not asked.report:
        return INTERRUPTED
    return VALID if found["verdict"]["valid"] else INVALID


def _again(path: Path) -> tuple[Files | None, Figures]:
    """An earlier run: from its CSV, or, only to be shown or compared, its summary."""
    if path.suffix == ".json":
        return None, summary.read(path)
    if not path.exists():
        raise WrongUsage(f"--report: there is no file {path}")
    return run.again(path)


def _print(found: Figures, compared: Figures | None, *, as_json: bool) -> None:
    if as_json:
        whole = {**found, "comparison": compared} if compared else found
        print(json.dumps(summary.rounded(whole), indent=1))
        return
    print(f"\n{console.text(found)}")
    if compared:
        print(f"\n{console.comparison(compared)}")


def _draw(files: Files, found: Figures, compared: Figures | None, asked: Options) -> None:
    """The report, where the libraries are there: a small board can do without."""
    drawn = ""
    if asked.plots:
        try:
            from bench.benchmarking import report
        except ImportError as error:
            drawn = f"no report, as there is no {error.name}: see --report"
        else:
            report.write(files, found, compared)
            drawn = str(files.report)
    if asked.json:
        return
    print()
    for path in (files.results, files.system, files.summary, drawn):
        if path and (isinstance(path, str) or path.exists()):
            print(path)


def _calibrate() -> int:
    """Print this client's own ceiling."""
    with tempfile.TemporaryDirectory() as scratch:
        loop: asyncio.AbstractEventLoop = event_loop()
        try:
            rate = loop.run_until_complete(ceiling(CEILING_BYTES, Path(scratch), 3.0))
        finally:
            loop.close()
    print(told(rate, CEILING_BYTES / 1000))
    return VALID
