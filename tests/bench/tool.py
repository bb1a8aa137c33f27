"""The benchmark, run as users run it, and its files."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.benchmarking.rows import Row, Sample, read
from tests.client import ENVIRON
from tests.support import ROOT

COMMAND = [sys.executable, str(ROOT / "bench" / "benchmark.py")]
CLIENT_REASONS = {"loop_lag", "send_delay", "client_busy", "unstable", "neighbours"}
"""What a busy machine, as one that runs tests, may add to any verdict: these are tested on rows of
known values instead."""


@dataclass(frozen=True)
class Result:
    """How a run ended, what it printed, and what it left behind."""

    status: int
    out: str
    err: str
    folder: Path

    def file(self, pattern: str) -> Path:
        """The only file of a name."""
        (path,) = self.folder.glob(pattern)
        return path

    @property
    def rows(self) -> list[Row]:
        """Every request."""
        return read(self.file("benchmark_results_*.csv"), Row)

    @property
    def measured(self) -> list[Row]:
        """Those that count."""
        return [row for row in self.rows if row.phase == "measure"]

    @property
    def samples(self) -> list[Sample]:
        """Every second."""
        return read(self.file("system_metrics_*.csv"), Sample)

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON."""
        found = json.loads(self.file("benchmark_summary_*.json").read_text())
        return dict(found)

    @property
    def level(self) -> dict[str, Any]:
        """The figures of the only level."""
        (level,) = self.summary["levels"]
        return dict(level)

    @property
    def reasons(self) -> set[str]:
        """The verdict's codes, without those that a busy machine may add."""
        found = {str(each["code"]) for each in self.summary["verdict"]["reasons"]}
        return found - CLIENT_REASONS

    @property
    def notes(self) -> str:
        """What a reader should know."""
        return "\n".join(self.summary["verdict"]["notes"])


def arguments(url: str, folder: Path, *more: str, plots: bool = False) -> list[str]:
    """A command line; what takes time and is not looked at is left out."""
    told = [*COMMAND, "--url", url, "--output", str(folder), "--seed", "7", *more]
    told += [] if "--warmup" in more else ["--warmup", "0.1"]
    return told + ["--no-calibration"] + ([] if plots else ["--no-plots"])


def benchmark(url: str, folder: Path, *more: str, plots: bool = False) -> Result:
    """Run it to its end."""
    return finished(arguments(url, folder, *more, plots=plots), folder)


def finished(command: Sequence[str], folder: Path) -> Result:
    """Run any command line of it."""
    done = subprocess.run(
        command, cwd="/", env=ENVIRON, capture_output=True, text=True, timeout=100, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr, folder)
