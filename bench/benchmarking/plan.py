"""What will be done: modes, loads, and the steps of a run. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.benchmarking.percentiles import GATES

Phase = Literal["warmup", "measure", "baseline", "recovery"]

SWEEP_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SWEEP_SHARES = (0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.5)
"""Of the server's capacity: a sweep of rates crosses its knee."""
CAPACITY_CLIENTS = 8
LEVEL_S = 5.0
LEVEL_WARMUP_S = 1.0
RECOVERY_S = 10.0  # the server must be itself again within it
BASELINE_REQUESTS = 30
DEFAULT_ITERATIONS = 100
WINDOW_S = 60.0  # of an endurance run


@dataclass(frozen=True)
class Mode:
    """A preset. `iterations` and `clients` are those of the first version of this tool."""

    iterations: int
    clients: int
    least: str
    """The percentile that it must be able to tell."""
    seconds: float
    warmup_s: float
    about: str

    @property
    def requests(self) -> int:
        """What was promised, or what its percentile needs."""
        return max(self.iterations, GATES[self.least][1])


MODES = {
    "quick": Mode(10, 1, "p90", 10, 3, "does it work, and how fast roughly?"),
    "normal": Mode(100, 1, "p99", 60, 10, "what one client gets; for comparing"),
    "stress": Mode(1000, 10, "p99", 60, 5, "what happens under load, and afterwards"),
    "endurance": Mode(10000, 2, "p99_9", 1800, 10, "does it hold: memory, heat, drift?"),
}


@dataclass(frozen=True)
class Closed:
    """Each client asks, waits for its answer, thinks, and asks again."""

    clients: int
    think_s: float = 0.0

    @property
    def kind(self) -> str:
        """For the CSV."""
        return "closed"

    @property
    def level(self) -> str:
        """Its name in every table."""
        return f"{self.clients} client{'s' if self.clients > 1 else ''}"

    def __str__(self) -> str:
        return f"closed loop, {self.level}, think time {1000 * self.think_s:g} ms"


@dataclass(frozen=True)
class Open:
    """Requests are sent when they are due, whether or not earlier ones were answered."""

    rate: float
    arrivals: str = "poisson"

    @property
    def kind(self) -> str:
        """For the CSV."""
        return "open"

    @property
    def level(self) -> str:
        """Its name in every table."""
        return f"{self.rate:g}/s"

    def __str__(self) -> str:
        how = "Poisson arrivals" if self.arrivals == "poisson" else "evenly spaced"
        return f"open loop, {self.level}, {how}"


Load = Closed | Open


@dataclass(frozen=True)
class Goal:
    """When a step ends: both are reached."""

    requests: int
    seconds: float

    def __str__(self) -> str:
        texts = [f"{self.requests} requests"] if self.requests else []
        texts += [f"{self.seconds:g} s"] if self.seconds else []
        return " and ".join(texts)


@dataclass(frozen=True)
class Step:
    """A load, for as long as its goal says."""

    phase: Phase
    load: Load
    goal: Goal

    @property
    def level(self) -> str:
        """Its name in every table."""
        return self.load.level


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; None is left to the mode."""

    mode: str | None = None
    iterations: int | None = None
    clients: tuple[int, ...] | None = None
    rates: tuple[float, ...] | None = None
    arrivals: str = "poisson"
    duration_s: float | None = None
    warmup_s: float | None = None
    think_s: float = 0.0
    sweep: str | None = None
    """clients or rate: levels that the tool chooses itself"""


def steps(asked: Request) -> list[Step]:
    """The steps of a run; of a sweep, its longest course: it ends early once the knee is passed.

    A sweep of rates has only its first step here: `rate_steps` makes the rest from what it finds.
    """
    warmup_s = asked.warmup_s
    if asked.sweep == "rate":
        load: Load = Closed(CAPACITY_CLIENTS)
        return _pair(load, _or(warmup_s, LEVEL_WARMUP_S), _goal(asked, True), "baseline")
    loads = _loads(asked)
    many = len(loads) > 1
    mode = MODES.get(asked.mode or "")
    default = LEVEL_WARMUP_S if many else mode.warmup_s if mode else 2.0
    found = [
        step for load in loads for step in _pair(load, _or(warmup_s, default), _goal(asked, many))
    ]
    if asked.mode == "stress" and not many:
        alone = Closed(1, asked.think_s)
        found = [
            *_pair(alone, _or(warmup_s, default), Goal(BASELINE_REQUESTS, 2.0), "baseline"),
            *found,
            Step("recovery", alone, Goal(BASELINE_REQUESTS, RECOVERY_S)),
        ]
    return found


def described(chosen: Sequence[Step]) -> list[str]:
    """A line for each load, with its warm-up."""
    lines, before = [], ""
    for step in chosen:
        if step.phase == "warmup":
            before = f"{step.goal} of warm-up, then "
            continue
        what = "" if step.phase == "measure" else f"{step.phase}: "
        lines.append(f"{what}{step.load}: {before}{step.goal}")
        before = ""
    return lines


def rate_steps(asked: Request, capacity: float) -> list[Step]:
    """A sweep of rates around what the server can do, in requests per second."""
    rates = [round(share * capacity, 1) or 0.1 for share in SWEEP_SHARES]
    warmup_s = _or(asked.warmup_s, LEVEL_WARMUP_S)
    loads = [Open(rate, asked.arrivals) for rate in rates]
    return [step for load in loads for step in _pair(load, warmup_s, _goal(asked, True))]


def is_sweep(asked: Request) -> bool:
    """Whether there is more than one level."""
    return bool(asked.sweep) or max(len(asked.clients or ()), len(asked.rates or ())) > 1


def _loads(asked: Request) -> Sequence[Load]:
    if asked.rates:
        return [Open(rate, asked.arrivals) for rate in asked.rates]
    mode = MODES.get(asked.mode or "")
    clients = asked.clients or ((mode.clients,) if mode else (1,))
    if asked.sweep == "clients":
        clients = asked.clients or SWEEP_CLIENTS
    return [Closed(each, asked.think_s) for each in clients]


def _goal(asked: Request, many: bool) -> Goal:
    """One of --iterations and --duration alone holds exactly; both together are both minimums."""
    if asked.iterations is not None or asked.duration_s is not None:
        return Goal(asked.iterations or 0, asked.duration_s or 0.0)
    if mode := MODES.get(asked.mode or ""):
        return Goal(mode.requests, mode.seconds)
    return Goal(GATES["p95"][1], LEVEL_S) if many else Goal(DEFAULT_ITERATIONS, 0.0)


def _pair(load: Load, warmup_s: float, goal: Goal, phase: Phase = "measure") -> list[Step]:
    warm = [Step("warmup", load, Goal(0, warmup_s))] if warmup_s else []
    return [*warm, Step(phase, load, goal)]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
