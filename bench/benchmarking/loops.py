"""The load: closed loops and open loops, and a row for every request."""

import asyncio
import random
import re
import selectors
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.benchmarking.answers import Answers, Judged
from bench.benchmarking.client import Connection, Reply, RequestFailed, Target, now
from bench.benchmarking.corpus import Prepared
from bench.benchmarking.percentiles import rank
from bench.benchmarking.plan import Closed, Goal, Open, Step
from bench.benchmarking.rows import OK, REJECTED, STAGES, Row

MOST_OPEN = 256
"""Connections of an open loop. What is due while all are taken waits: `send_delay_ms` tells."""

GIVE_UP_AFTER = 20
"""Requests in a row that got no answer: the server is gone, and asking on tells nothing."""

REFUSALS = {429, 503}
LAG_PERIOD_S = 0.01
TIMING = re.compile(rb"([a-z]+);dur=([0-9.]+)")


def event_loop() -> asyncio.AbstractEventLoop:
    """A loop that wakes on time: epoll, asyncio's own choice, counts whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@dataclass
class Gauge:
    """What goes on this moment; the loop writes it, the sampler reads it from its thread."""

    phase: str = ""
    level: str = ""
    in_flight: int = 0
    lags_s: list[float] = field(default_factory=list)

    def lag_ms(self) -> float | None:
        """How late the loop came since the last call, 99th percentile."""
        lags, self.lags_s = self.lags_s, []
        return 1000 * sorted(lags)[rank(len(lags), 990) - 1] if lags else None


@dataclass
class Tally:
    """What a step came to, for the sweeps' decisions; the statistics are made from the rows."""

    ok: int = 0
    all: int = 0
    seconds: float = 0.0
    gave_up: str = ""
    """Why the step was ended early; empty when it was not."""

    @property
    def rate(self) -> float:
        """Successful requests per second."""
        return self.ok / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Setup:
    """What every request of a run has in common."""

    run_id: str
    target: Target
    requests: Sequence[Prepared]
    salts: Iterator[bytes] | None
    timeout_s: float
    seed: int


class Runner:
    """Runs steps and hands on a row for each request as it ends."""

    def __init__(
        self, setup: Setup, answers: Answers, gauge: Gauge, on_row: Callable[[Row], None]
    ) -> None:
        self._setup = setup
        self._answers = answers
        self._gauge = gauge
        self._on_row = on_row
        self._seq = 0
        self._unanswered = 0
        self._current: _Count | None = None
        self._idle: list[tuple[int, Connection]] = []
        self._made = 0
        self.began = now()

    async def run(self, step: Step) -> Tally:
        """Run one step to its end. Cancelled, it leaves no request under way."""
        self._gauge.phase, self._gauge.level = step.phase, step.level
        self._unanswered = 0
        tally = Tally()
        self._current = count = _Count(step.goal)
        if isinstance(step.load, Closed):
            await self._closed(step, step.load, count, tally)
        else:
            await self._open(step, step.load, count, tally)
        tally.seconds = now() - count.began
        return tally

    def progress(self) -> float:
        """How much of the step under way is done, from 0 to 1."""
        return self._current.progress() if self._current else 0.0

    async def watch_lag(self) -> None:
        """Note how late this loop comes, until cancelled."""
        while True:
            due = now() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self._gauge.lags_s.append(max(0.0, now() - due))

    def close(self) -> None:
        """Hang up."""
        for _, connection in self._idle:
            connection.close()

    # ------------------------------------------------------------ the loops

    async def _closed(self, step: Step, load: Closed, count: "_Count", tally: Tally) -> None:
        async def client(number: int) -> None:
            connection = self._connection()
            try:
                due = now()
                while not tally.gave_up and count.take():
                    await self._request(step, connection, due, tally, number)
                    if load.think_s:
                        await asyncio.sleep(load.think_s)
                    due = now()
            finally:
                self._idle.append(connection)

        async with asyncio.TaskGroup() as group:
            for number in range(load.clients):
                group.create_task(client(number))

    async def _open(self, step: Step, load: Open, count: "_Count", tally: Tally) -> None:
        # Seeded by step, so that the same plan sends at the same moments.
        random_ = random.Random(f"{self._setup.seed} {step.phase} {step.level}")
        free = asyncio.Semaphore(MOST_OPEN)

        async def send(due: float) -> None:
            connection = self._connection()
            try:
                await self._request(step, connection, due, tally, connection[0])
            finally:
                self._idle.append(connection)
                free.release()

        due = now()
        async with asyncio.TaskGroup() as group:
            while not tally.gave_up and count.take(due):
                due += (
                    random_.expovariate(load.rate) if load.arrivals == "poisson" else 1 / load.rate
                )
                if (wait := due - now()) > 0:
                    await asyncio.sleep(wait)
                await free.acquire()
                group.create_task(send(due))

    def _connection(self) -> tuple[int, Connection]:
        """The one used last, which is open most likely; or a new one."""
        if self._idle:
            return self._idle.pop()
        self._made += 1
        return self._made - 1, Connection(self._setup.target)

    # ------------------------------------------------------------ one request

    async def _request(
        self,
        step: Step,
        connection: tuple[int, Connection],
        due: float,
        tally: Tally,
        client: int,
    ) -> None:
        setup = self._setup
        seq, self._seq = self._seq, self._seq + 1
        picture = setup.requests[seq % len(setup.requests)]
        request = picture.request(next(setup.salts) if setup.salts else b"")
        began = now()
        reply, failure = None, None
        self._gauge.in_flight += 1
        try:
            reply = await connection[1].ask(request, setup.timeout_s)
            ended = reply.done_at
        except RequestFailed as error:
            failure, ended = error, now()
        finally:
            self._gauge.in_flight -= 1
        judged = self._judge(picture.name, reply, failure)
        # The way to the connection is the client's; making it is the server's and the network's.
        sent = began if reply is None or reply.connect_s is not None else reply.sent_at
        row = self._row(step, seq, client, picture.name, due, sent, ended, judged, reply)
        row.bytes_out = len(request)
        self._on_row(row)
        self._count(row, tally, failure)

    def _count(self, row: Row, tally: Tally, failure: RequestFailed | None) -> None:
        tally.all += 1
        tally.ok += row.outcome == OK
        self._unanswered = self._unanswered + 1 if failure else 0
        if self._unanswered >= max(GIVE_UP_AFTER, 2 * self._gauge.in_flight) and not tally.gave_up:
            tally.gave_up = f"{self._unanswered} requests in a row got no answer ({failure})"

    def _judge(self, name: str, reply: Reply | None, failure: RequestFailed | None) -> Judged:
        if failure:
            return Judged(failure.kind, str(failure))
        assert reply
        if reply.status == 200:
            return self._answers.judge(name, reply.body)
        outcome = REJECTED if reply.status in REFUSALS else "http"
        return Judged(outcome, reply.body[:200].decode(errors="replace").replace("\n", " "))

    def _row(
        self,
        step: Step,
        seq: int,
        client: int,
        picture: str,
        due: float,
        sent: float,
        ended: float,
        judged: Judged,
        reply: Reply | None,
    ) -> Row:
        connect_s = reply.connect_s if reply else None
        stages = _stages(reply)
        return Row(
            self._setup.run_id,
            seq,
            client,
            step.phase,
            step.level,
            step.load.kind,
            picture,
            due - self.began,
            sent - self.began,
            ended - self.began,
            1000 * (ended - due),
            1000 * (ended - sent),
            1000 * (sent - due),
            None if connect_s is None else 1000 * connect_s,
            reply.status if reply else None,
            judged.outcome,
            judged.error,
            0,
            reply.received if reply else 0,
            judged.model,
            judged.device,
            judged.degraded,
            judged.detections,
            judged.classes,
            judged.mean_score,
            judged.digest,
            *(stages.get(stage) for stage in (*STAGES, "total")),
        )


class _Count:
    """Hands out requests until a goal is reached."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._taken = 0
        self.began = now()

    def take(self, at: float | None = None) -> bool:
        """Whether one more is to be sent; of an open loop, when the one before was due."""
        passed = (now() if at is None else at) - self.began
        if self._taken >= self._goal.requests and passed >= self._goal.seconds:
            return False
        self._taken += 1
        return True

    def progress(self) -> float:
        """From 0 to 1."""
        goal, passed = self._goal, now() - self.began
        parts = [self._taken / goal.requests] if goal.requests else []
        parts += [passed / goal.seconds] if goal.seconds else []
        return min([1.0, *parts])


def _stages(reply: Reply | None) -> dict[str, float]:
    """The stages that the server measured itself, in milliseconds, from its Server-Timing."""
    if reply is None or reply.status != 200:
        return {}
    try:
        return {
            name.decode(): float(value)
            for name, value in TIMING.findall(reply.headers.get(b"server-timing", b""))
        }
    except ValueError:
        return {}
