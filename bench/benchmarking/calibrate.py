"""How much this client can ask at all: against a stub on this computer that answers at once."""

import asyncio
import subprocess
import sys
from pathlib import Path

from bench.benchmarking.answers import Answers
from bench.benchmarking.client import Target
from bench.benchmarking.corpus import Picture, prepare
from bench.benchmarking.loops import Gauge, Runner, Setup
from bench.benchmarking.plan import Closed, Goal, Step
from bench.benchmarking.rows import Row, Writer

ROOT = Path(__file__).parents[2]
CLIENTS = 8
SECONDS = 1.0
PATIENCE_S = 10.0
ASKED = 1500.0
"""Requests per second that a quiet computer with two cores must reach."""


def told(rate: float, kilobytes: float) -> str:
    """The ceiling in words, and what bounds it where it is low."""
    low = "" if rate >= ASKED else f"; below {ASKED:.0f}/s: slow cores, or busy with other things"
    return f"this client's own ceiling: {rate:.0f} requests/s of {kilobytes:.0f} kB{low}"


async def ceiling(picture_bytes: int, scratch: Path, seconds: float = SECONDS) -> float:
    """Requests per second with bodies of this size: rows are made, judged and written as ever."""
    stub = subprocess.Popen(
        [sys.executable, "-m", "bench.benchmarking.stub"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    path = scratch / "ceiling.part"
    try:
        assert stub.stdin
        assert stub.stdout
        line = await asyncio.get_running_loop().run_in_executor(None, stub.stdout.readline)
        target = Target.parse(f"http://127.0.0.1:{int(line)}")
        pictures = prepare(
            target, [Picture("blank", "jpeg", bytes(picture_bytes))], {}, salted=False
        )
        writer = Writer(path, Row)
        setup = Setup("ceiling", target, pictures, None, PATIENCE_S, 0)
        runner = Runner(setup, Answers(), Gauge(), writer.write)
        await runner.run(Step("warmup", Closed(CLIENTS), Goal(0, seconds / 4)))
        tally = await runner.run(Step("measure", Closed(CLIENTS), Goal(0, seconds)))
        runner.close()
        writer.close()
        return tally.rate
    finally:
        path.unlink(missing_ok=True)
        stub.communicate()
