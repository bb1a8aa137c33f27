"""What of one, two and four Edge TPUs' speed reaches clients: on stand-ins, which only sleep. And
whether a stick is held up by what libedgetpu prints about large outputs."""

import statistics
from dataclasses import dataclass, field

from app import imaging
from app.devices.discovery import available_cores
from app.models import Layout
from bench import load, standin, usage
from bench.figures import Figure, Grid, Section
from bench.helpers import Helpers
from bench.load import Block
from bench.pictures import camera_pictures
from bench.rounds import rounds
from bench.server import Server
from tests.standin import compiled_model

CAMERA = (640, 480)
CLIENTS_PER_CARD = 4
ROUNDS = 8
BLOCK_S = 3.0
LARGE_KIB = 190  # the outputs of a 90-class SSD


@dataclass
class Case:
    """So many cards, or sticks, each of which takes so long for an inference."""

    cards: int
    latency_ms: float
    sticks: bool = False
    more: str = ""
    """What else the stand-in does."""
    turns: list["Turn"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        what = f"{self.cards} {'stick of' if self.sticks else 'of'}"
        return f"{what} {self.latency_ms:g} ms {self.more}".strip()

    @property
    def rate(self) -> float:
        """Requests per second."""
        return statistics.median(turn.block.rate for turn in self.turns)

    @property
    def possible(self) -> float:
        """Inferences per second, if the cards never waited."""
        return 1000 * self.cards / self.latency_ms

    @property
    def seconds(self) -> float:
        """How long it was measured."""
        return sum(turn.block.seconds + load.RUN_IN_S for turn in self.turns)

    @property
    def busy_percent(self) -> float:
        """How much of the time the cards were at work."""
        return 100 * sum(turn.busy_s for turn in self.turns) / self.cards / self.seconds

    def cpu_percent(self, process: str) -> float:
        """What processes whose names begin so took, in percent of one core."""
        taken = (turn.cpu_s for turn in self.turns)
        every = sum(s for each in taken for name, s in each.items() if name.startswith(process))
        return 100 * every / self.seconds

    def stage_ms(self, stage: str) -> float:
        """Median of a stage."""
        timings = [each for turn in self.turns for each in turn.block.timings]
        return statistics.median(each[stage] for each in timings)


@dataclass(frozen=True)
class Turn:
    """What one block of requests took."""

    block: Block
    cpu_s: dict[str, float]
    busy_s: float
    """Time that the cards were at work, summed over them."""


def devices(helpers: Helpers) -> Section:
    """Throughput at saturation."""
    cases = [Case(1, 7.0), Case(2, 7.0), Case(4, 7.0), Case(1, 2.5)]
    outputs = (
        "output_kib=0",
        f"output_kib={LARGE_KIB}",
        f"output_kib={LARGE_KIB} chunk_bytes=256",
        f"warnings={LARGE_KIB}",
    )
    sticks = [Case(1, 7.0, sticks=True, more=more) for more in outputs]
    section = Section(
        "devices",
        "640x480 JPEGs to stand-in Edge TPUs, each client as soon as it is answered",
        f"{ROUNDS} blocks of {BLOCK_S:g} s, {CLIENTS_PER_CARD} clients per card on the same "
        f"{available_cores()} cores; a stand-in sleeps for the time of its inference; medians of "
        "the quieter half of the blocks",
    )
    for case in (*cases, *sticks):
        numbers = (0, case.cards) if case.sticks else (case.cards, 0)
        how = f"latency_us={1000 * case.latency_ms:.0f} {case.more}"
        with standin.edgetpus(*numbers, how) as (_, server):
            _measure(helpers, server, case, section)
    one, two, four, fast = cases
    silent, usb3, usb2, warning = sticks
    section.figures = [
        _share("one card of 7 ms: share of its 143/s", one, 95),
        Figure("two cards of 7 ms: times one", two.rate / one.rate, "x", None, 1.85, True),
        Figure("four cards of 7 ms: times one", four.rate / one.rate, "x"),
        _share("one card of 2.5 ms: share of its 400/s", fast, 90),
        _beside(f"a stick with {LARGE_KIB} KiB of outputs: share of a silent one's", usb3, silent),
        _beside("the same in chunks of 256 bytes, as on USB 2", usb2, silent),
        _beside("a library that prints as much at every level", warning, silent),
    ]
    section.grids = [
        Grid(
            "requests per second, and medians of their stages in ms",
            ("cards", "/s", "possible", "cards busy %", "decode", "queue", "inference", "total"),
            [
                (
                    case.name,
                    case.rate,
                    case.possible,
                    case.busy_percent,
                    *(case.stage_ms(stage) for stage in ("decode", "queue", "inference", "total")),
                )
                for case in (*cases, *sticks)
            ],
        ),
        Grid(
            "CPU in % of one core",
            ("cards", "HTTP process", "device processes", "clients", "of all cores"),
            [_cpu_row(case) for case in (*cases, *sticks)],
        ),
        Grid("what bounds it", ("cards", "bound"), [(case.name, _bound(case)) for case in cases]),
    ]
    return section


def _measure(helpers: Helpers, server: Server, case: Case, section: Section) -> None:
    pictures = camera_pictures(CAMERA)
    requests = [load.post(picture) for picture in pictures]
    _check(server, pictures)
    processes = server.processes()
    clients = CLIENTS_PER_CARD * case.cards
    helpers.clients.call(load.run, server.port, requests, clients, 1.0)  # warms up

    def turn(_number: int) -> Turn:
        before, busy = usage.cpu(processes), _busy_s(server)
        block = helpers.clients.call(load.run, server.port, requests, clients, BLOCK_S)
        after = usage.cpu(processes)
        cpu_s = {name: after[name] - before[name] for name in processes}
        return Turn(block, {**cpu_s, "clients": block.cpu_s}, _busy_s(server) - busy)

    kept = rounds(f"devices, {case.name}", ROUNDS, turn)
    case.turns = kept.results
    section.disturbances.append(kept.disturbance)


def _check(server: Server, pictures: list[bytes]) -> None:
    """The answers are those of the pictures: the hash is computed here, from the tensor."""
    layout = Layout(standin.SIDE, standin.SIDE, "stretch")
    client = load.Client(server.port)
    for picture in pictures:
        decoded = imaging.decode(picture, (layout.width, layout.height), 25_000_000)
        tensor, _ = imaging.fit(decoded, layout)
        expected = standin.Picture(load.post(picture), compiled_model.hash_of(tensor), 0)
        expected.ask(client)
    client.close()


def _busy_s(server: Server) -> float:
    edgetpus = [each for each in standin.devices(server) if each["kind"] == "edgetpu"]
    return sum(float(each["busy_s"]) for each in edgetpus)


def _share(name: str, case: Case, least: float) -> Figure:
    return Figure(name, 100 * case.rate / case.possible, "%", None, least, True)


def _beside(name: str, case: Case, silent: Case) -> Figure:
    return Figure(name, 100 * case.rate / silent.rate, "%", None, 95, True)


def _cpu_row(case: Case) -> tuple[str | float, ...]:
    names = ("http", "device", "clients")
    every = case.cpu_percent("") / available_cores()
    return (case.name, *map(case.cpu_percent, names), every)


def _bound(case: Case) -> str:
    busy, http = case.busy_percent, case.cpu_percent("http")
    every = case.cpu_percent("") / available_cores()
    if busy >= 95:
        return f"the cards: {busy:.0f} % busy"
    if every >= 90:
        return f"the CPU: its cores are {every:.0f} % busy, the cards {busy:.0f} %"
    if http >= 85:
        return f"the HTTP process: {http:.0f} % of a core, the cards {busy:.0f} % busy"
    return f"none is full: the cards {busy:.0f} %, the cores {every:.0f} % by this"
