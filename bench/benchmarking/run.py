"""A run, from its first request to its files: what wires the parts together."""

import asyncio
import contextlib
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.benchmarking import console, corpus, environment, plan, server, summary, thumbnails
from bench.benchmarking.answers import Answers, golden, load_golden
from bench.benchmarking.calibrate import ceiling
from bench.benchmarking.client import Target
from bench.benchmarking.errors import WrongUsage
from bench.benchmarking.loops import Gauge, Runner, Setup, Tally, event_loop
from bench.benchmarking.options import URL_VARIABLE, Options
from bench.benchmarking.plan import Step
from bench.benchmarking.rows import Row, Sample, Writer, read
from bench.benchmarking.statistics import LEAST_GAIN, Figures, gain
from bench.benchmarking.system import Sampler

TICK_S = 0.25
SWITCH_S = 0.0005
"""How long the sampler's thread may keep the GIL from the loop; 5 ms is Python's default."""

STAMP = "%Y%m%d_%H%M%S"


@dataclass(frozen=True)
class Files:
    """Where a run's results are."""

    stamp: str
    folder: Path

    @classmethod
    def of(cls, results: Path) -> "Files":
        """Those beside a benchmark_results CSV. Raises WrongUsage for a file of another name."""
        name = results.stem
        if not name.startswith("benchmark_results_") or results.suffix != ".csv":
            raise WrongUsage(
                f"--report takes a benchmark_results_TIMESTAMP.csv, not {results.name}"
            )
        return cls(name.removeprefix("benchmark_results_"), results.parent)

    @classmethod
    def new(cls, folder: Path) -> "Files":
        """For a run that begins now. Raises WrongUsage when the folder can't be written to."""
        stamp = datetime.now(UTC).strftime(STAMP)
        number = 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = cls(stamp, folder)
            while files.results.exists():
                number += 1
                files = cls(f"{stamp}_{number}", folder)
            files.results.touch()
        except OSError as error:
            raise WrongUsage(f"--output: {error}") from error
        return files

    @property
    def results(self) -> Path:
        """A row for each request."""
        return self.folder / f"benchmark_results_{self.stamp}.csv"

    @property
    def system(self) -> Path:
        """A row for each second."""
        return self.folder / f"system_metrics_{self.stamp}.csv"

    @property
    def summary(self) -> Path:
        """Every figure."""
        return self.folder / f"benchmark_summary_{self.stamp}.json"

    @property
    def report(self) -> Path:
        """For people."""
        return self.folder / f"benchmark_report_{self.stamp}.html"

    def plot(self, name: str) -> Path:
        """One of the plots."""
        return self.folder / f"benchmark_{name}_{self.stamp}.png"


@dataclass
class _State:
    """What a run has come to so far."""

    interrupted: bool = False
    gave_up: str = ""
    plan: list[str] = field(default_factory=list)
    tallies: list[tuple[Step, Tally]] = field(default_factory=list)
    requests: int = 0


def run(options: Options) -> tuple[Files, Figures]:
    """Measure. Raises BenchmarkError when it can't begin; an interruption is in the summary."""
    target = Target.parse(options.url, options.headers, insecure=options.insecure)
    known = load_golden(options.golden) if options.golden else None
    pictures = (
        corpus.from_files(options.images)
        if options.images
        else corpus.built_in(options.size, options.formats)
    )
    requests = corpus.prepare(target, pictures, options.query, salted=options.unique)
    about = server.find_out(target, options.wait_s)
    if options.save_golden:
        _touch(options.save_golden)
    files = Files.new(options.output)
    mean_bytes = int(statistics.mean(len(each.content) for each in pictures))
    state = _State(plan=plan.described(plan.steps(options.plan)))
    if options.plan.sweep == "rate":
        state.plan.append("then an open loop, at seven rates around what that shows")
    answers = Answers(known)
    loop = event_loop()
    sys.setswitchinterval(SWITCH_S)
    try:
        most = (
            _interruptible(loop, ceiling(mean_bytes, options.output), state)
            if options.calibrate and not state.interrupted
            else None
        )
        facts: Figures = {
            "tool": environment.tool(),
            "run": {
                "id": files.stamp,
                "started": _utc(),
                "ended": "",
                "argv": list(options.argv),
                "mode": options.plan.mode,
                "seed": options.seed,
                "sweep": plan.is_sweep(options.plan),
                "plan": state.plan,
                "interrupted": True,
                "gave_up": "",
                "slo": [{"percentile": name, "most_ms": most_ms} for name, most_ms in options.slo],
            },
            "target": environment.target(
                target.url, about, local=server.is_local(target.host) or _beside(options)
            ),
            "host": environment.host(),
            "client": {"ceiling_per_s": most, "request_kb": mean_bytes / 1000},
            "pictures": thumbnails.described(pictures),
            "answers": [],
        }
        # If this program is killed now, `--report` finds here what no row tells.
        summary.write(files.summary, summary.summarise(facts, [], []))
        if not options.json:
            print(console.header(facts), flush=True)
        salts = corpus.salts(options.seed) if options.unique else None
        setup = Setup(files.stamp, target, requests, salts, options.timeout_s, options.seed)
        local = bool(facts["target"]["local"])
        with (
            contextlib.closing(Writer(files.results, Row)) as rows,
            contextlib.closing(Writer(files.system, Sample)) as samples,
        ):
            if not state.interrupted:
                body = _measure(options, setup, answers, rows, samples, state, local=local)
                _interruptible(loop, body, state)
    finally:
        loop.close()
    facts["run"] |= {"ended": _utc(), "interrupted": state.interrupted, "gave_up": state.gave_up}
    facts["run"]["plan"] = state.plan
    facts["answers"] = answers.first()
    if options.save_golden:
        options.save_golden.write_text(golden(answers.first()))
    found = summary.summarise(facts, read(files.results, Row), read(files.system, Sample))
    summary.write(files.summary, found)
    return files, found


def again(path: Path) -> tuple[Files, Figures]:
    """The summary from the rows of an earlier run; what no row tells is in the JSON beside them."""
    files = Files.of(path)
    rows = read(path, Row)
    samples = read(files.system, Sample) if files.system.exists() else []
    facts: Mapping[str, Any] = (
        summary.read(files.summary) if files.summary.exists() else summary.unknown_facts(path)
    )
    facts = {**facts, "run": {**facts["run"], "slo": _asked(facts["run"]["slo"])}}
    found = summary.summarise(facts, rows, samples)
    summary.write(files.summary, found)
    return files, found


async def _measure(
    options: Options,
    setup: Setup,
    answers: Answers,
    rows: Writer[Row],
    samples: Writer[Sample],
    state: _State,
    *,
    local: bool,
) -> None:
    gauge = Gauge()
    progress = console.Progress(not options.json)

    def on_row(row: Row) -> None:
        rows.write(row)
        state.requests += 1

    runner = Runner(setup, answers, gauge, on_row)
    sampler = Sampler(setup.run_id, setup.target, gauge, runner.began, samples.write, local=local)

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            rows.flush()
            samples.flush()
            progress.show(runner.progress(), state.requests)

    sampler.start()
    beside = [asyncio.create_task(tick()), asyncio.create_task(runner.watch_lag())]
    try:
        await _steps(options, runner, progress, state)
    finally:
        for task in beside:
            task.cancel()
        runner.close()
        progress.end()
        sampler.stop()


async def _steps(
    options: Options, runner: Runner, progress: console.Progress, state: _State
) -> None:
    left = plan.steps(options.plan)
    while left:
        step = left.pop(0)
        progress.begin(step)
        tally = await runner.run(step)
        state.tallies.append((step, tally))
        if tally.gave_up:
            state.gave_up = tally.gave_up
            return
        if options.plan.sweep == "rate" and step.phase == "baseline":
            left = plan.rate_steps(options.plan, tally.rate)
            state.plan[-1:] = plan.described(left)
        if options.plan.sweep == "clients" and _knee_passed(state.tallies):
            return


def _knee_passed(tallies: Sequence[tuple[Step, Tally]]) -> bool:
    """Whether the last doubling brought next to nothing."""
    measured = [(step, tally) for step, tally in tallies if step.phase == "measure"][-2:]
    if len(measured) < 2:
        return False
    before, after = (
        {"level": step.level, "ok_per_s": {"value": tally.rate}} for step, tally in measured
    )
    return gain(before, after) < LEAST_GAIN


def _interruptible(loop: asyncio.AbstractEventLoop, body: Any, state: _State) -> Any:
    """Run a coroutine until it ends, or until Ctrl-C or SIGTERM ends it."""
    task = loop.create_task(body)

    def interrupt() -> None:
        state.interrupted = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        return None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _touch(path: Path) -> None:
    """Find out now, and not after the run, that a file can't be written."""
    try:
        path.touch()
    except OSError as error:
        raise WrongUsage(f"--save-golden: {error}") from error


def _asked(slo: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was asked for, once for all levels."""
    pairs = dict.fromkeys((each["percentile"], each["most_ms"]) for each in slo)
    return [{"percentile": name, "most_ms": most_ms} for name, most_ms in pairs]


def _beside(options: Options) -> bool:
    """Whether the server is the container beside this one's, which compose.yaml names."""
    return options.url == os.environ.get(URL_VARIABLE)


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
