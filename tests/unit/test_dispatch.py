"""Which device gets which waiting picture: fast devices first, in turn, and nobody is lost."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.devices import dispatch
from app.devices.dispatch import KEEP_TOGETHER, Plan
from app.devices.job import Job
from app.manifest import Kind
from app.models import Model

NOW = 1000.0
Kinds = tuple[Kind, ...]
BOTH: Kinds = ("cpu", "edgetpu")


def model(name: str = "finder", kinds: Kinds = BOTH) -> Model:
    """A model with a variant for each of these kinds; only names matter here."""
    variants: Any = {kind: SimpleNamespace(name=f"{name}_{kind}") for kind in kinds}
    return Model(name, variants, None)


FINDER, FACES = model("finder"), model("faces")
ONLY_CPU = model("only_cpu", ("cpu",))


@dataclass(eq=False)
class Machine:
    """A device of a test: it has done nothing yet, and takes `slots` pictures."""

    id: str
    kind: Kind = "edgetpu"
    free_slots: int = 2
    busy_with: int = 0
    one_s: float = 0.01
    loaded: str = ""
    reload: float = 0.0
    usable: bool = True
    ready_at: float = math.inf
    jobs: list[Job] = field(default_factory=list)

    def expected_s(self, model: Model, ahead: int) -> float:
        """In its turn."""
        return (self.busy_with + ahead + 1) * self.one_s

    def reload_s(self, model: Model) -> float:
        """The same for every model."""
        return self.reload

    def ready_by(self) -> float:
        """As the test says."""
        return NOW if self.usable else self.ready_at


def job(client: str = "a", of: Model = FINDER, *, within_s: float = 10.0, **more: Any) -> Job:
    """A picture that waits."""
    return Job(of, {}, NOW + within_s, client, **more)


def plan(queue: Sequence[Job], *machines: Machine) -> Plan[Machine]:
    """What is decided; each device can run the models that have a variant for its kind."""
    return dispatch.plan(
        queue, lambda of: [each for each in machines if each.kind in of.variants], NOW
    )


def clients(of: Plan[Machine], machine: Machine) -> str:
    """Whose pictures a device is given, in order."""
    return "".join(granted.client for granted, to in of.grants if to is machine)


# ---------------------------------------------------------------------------- who gets what


def test_the_device_that_is_done_first_gets_the_picture() -> None:
    slow, fast = Machine("slow", one_s=0.05), Machine("fast")
    assert clients(plan([job()], slow, fast), fast) == "a"


def test_a_picture_waits_for_a_busy_device_that_is_still_done_first() -> None:
    slow, fast = Machine("slow", one_s=0.5), Machine("fast", free_slots=0, busy_with=2)
    decided = plan([job()], slow, fast)
    assert (decided.grants, len(decided.waiting)) == ([], 1)


def test_a_free_edge_tpu_comes_before_a_faster_cpu() -> None:
    card, cpu = Machine("card", one_s=0.4), Machine("cpu", "cpu", one_s=0.003)
    assert clients(plan([job()], card, cpu), card) == "a"


def test_a_picture_is_given_to_another_device_than_it_failed_on() -> None:
    one, two, cpu = Machine("one"), Machine("two", one_s=1.0), Machine("cpu", "cpu")
    failed = job(failures=1, failed_on={"one"})
    assert clients(plan([failed], one, two, cpu), two) == "a"
    assert clients(plan([failed], one, cpu), cpu) == "a"
    assert clients(plan([failed], one), one) == "a"


def test_what_two_edge_tpus_failed_at_is_given_to_the_cpu_alone() -> None:
    cards = [Machine("one"), Machine("two"), Machine("three")]
    cpu = Machine("cpu", "cpu")
    failed = job(failures=2, failed_on={"one", "two"})
    assert clients(plan([failed], *cards, cpu), cpu) == "a"
    assert plan([failed], *cards).grants == []


def test_a_picture_for_the_idle_cpu_does_not_wait_behind_those_for_a_busy_edge_tpu() -> None:
    card, cpu = Machine("card", free_slots=0, busy_with=2), Machine("cpu", "cpu")
    queue = [*(job("a") for _ in range(30)), job("a", ONLY_CPU)]
    decided = plan(queue, card, cpu)
    assert [(granted.model.name, to.id) for granted, to in decided.grants] == [("only_cpu", "cpu")]
    assert len(decided.waiting) == 30


def test_clients_take_turns() -> None:
    card = Machine("card", free_slots=3)
    assert clients(plan([job("a"), job("a"), job("a"), job("b")], card), card) == "aba"


# ---------------------------------------------------------------------------- late, hopeless


def test_a_picture_that_is_late_is_given_to_nobody() -> None:
    late = job(within_s=-0.1)
    decided = plan([late], Machine("card"))
    assert (decided.late, decided.grants) == ([late], [])


@pytest.mark.parametrize(("ready_at", "hopeless"), [(NOW + 5, 0), (NOW + 11, 1), (math.inf, 1)])
def test_without_hope_in_time_a_picture_is_refused(ready_at: float, hopeless: int) -> None:
    resting = Machine("card", usable=False, ready_at=ready_at)
    decided = plan([job()], resting)
    assert (len(decided.hopeless), len(decided.waiting)) == (hopeless, 1 - hopeless)


def test_without_any_device_for_its_model_a_picture_is_refused() -> None:
    assert len(plan([job(of=ONLY_CPU)], Machine("card")).hopeless) == 1


# ---------------------------------------------------------------------------- the idle CPU


def test_the_cpu_takes_what_the_edge_tpu_would_come_to_too_late() -> None:
    card = Machine("card", free_slots=0, busy_with=2, one_s=0.49)
    cpu = Machine("cpu", "cpu", free_slots=8, one_s=0.003)
    queue = [job(str(number), within_s=4.0) for number in range(9)]
    decided = plan(queue, card, cpu)
    # Two before them, so that the card is done with the sixth after 8 x 0.49 s.
    assert clients(decided, cpu) == "678"
    assert len(decided.waiting) == 6


def test_a_full_queue_has_the_idle_cpu_for_the_next() -> None:
    card, cpu = Machine("card", free_slots=0), Machine("cpu", "cpu")
    assert dispatch.spare(job(), [card, cpu]) is cpu
    assert dispatch.spare(job(failed_on={"cpu"}, failures=1), [card, cpu]) is None
    cpu.free_slots = 0
    assert dispatch.spare(job(), [card, cpu]) is None


# ---------------------------------------------------------------------------- a change of model


def models_given(of: Plan[Machine], machine: Machine) -> str:
    """The initials of the models that a device is given, in order."""
    return "".join(granted.model.name[1] for granted, to in of.grants if to is machine)


def test_each_device_keeps_to_the_model_that_it_has_loaded() -> None:
    one = Machine("one", loaded="finder_edgetpu", reload=0.02)
    two = Machine("two", loaded="faces_edgetpu", reload=0.02)
    decided = plan([job("a", FACES), job("b", FINDER), job("c", FACES)], one, two)
    assert (clients(decided, one), clients(decided, two)) == ("b", "ac")


def test_pictures_of_the_loaded_model_go_together() -> None:
    card = Machine("card", free_slots=6, loaded="finder_edgetpu", reload=0.02)
    queue = [job(str(number), (FACES, FINDER)[number % 2]) for number in range(6)]
    decided = plan(queue, card)
    assert models_given(decided, card) == "iiiaaa"
    assert Counter(decided.passed_over) == {queue[0]: 3}


def test_but_none_is_passed_for_ever() -> None:
    card = Machine("card", free_slots=20, loaded="finder_edgetpu", reload=0.02)
    queue = [job("a", FACES), *(job("a", FINDER) for _ in range(10))]
    decided = plan(queue, card)
    assert models_given(decided, card) == "i" * KEEP_TOGETHER + "a" + "i" * (10 - KEEP_TOGETHER)
    queue[0].passed_over = KEEP_TOGETHER
    assert models_given(plan(queue, card), card)[0] == "a"


def test_nobody_loses_a_turn_to_a_client_who_had_one() -> None:
    card = Machine("card", free_slots=1, loaded="finder_edgetpu", reload=0.02)
    queue = [job("greedy", FINDER), job("modest", FACES), job("greedy", FINDER)]
    decided = plan(queue[1:], card)
    assert decided.grants[0][0].client == "greedy"  # the first of both: the same turn
    decided = plan([job("greedy", FACES), job("modest", FACES), queue[0]], card)
    assert decided.grants[0][0].client == "greedy"
    second = [job("greedy", FACES), queue[0]]
    modest_first = [job("modest", FACES), *second]
    assert [granted.model for granted, _ in plan(modest_first, card).grants] == [FACES]


@pytest.mark.parametrize("reload", [0.0, 0.001])
def test_where_a_reload_costs_nothing_everybody_keeps_the_turn(reload: float) -> None:
    card = Machine("card", free_slots=4, loaded="finder_edgetpu", reload=reload)
    queue = [job(str(number), (FACES, FINDER)[number % 2]) for number in range(4)]
    assert models_given(plan(queue, card), card) == "aiai"


# ---------------------------------------------------------------------------- always


MACHINES = st.lists(
    st.builds(
        Machine,
        id=st.uuids().map(str),
        kind=st.sampled_from(BOTH),
        free_slots=st.integers(0, 3),
        busy_with=st.integers(0, 3),
        one_s=st.floats(0, 1),
        loaded=st.sampled_from(["", "finder_edgetpu", "faces_edgetpu"]),
        reload=st.floats(0, 0.1),
        usable=st.booleans(),
        ready_at=st.sampled_from([NOW + 1, math.inf]),
    ),
    max_size=4,
)
JOBS = st.lists(
    st.builds(
        job,
        client=st.sampled_from("abc"),
        of=st.sampled_from([FINDER, FACES, ONLY_CPU]),
        within_s=st.floats(-1, 10),
        failures=st.integers(0, 2),
        passed_over=st.integers(0, KEEP_TOGETHER),
    ),
    max_size=12,
)


@given(JOBS, MACHINES)
def test_every_job_has_one_fate_and_no_device_more_than_it_takes(
    queue: list[Job], machines: list[Machine]
) -> None:
    decided = plan(queue, *machines)
    granted = [each for each, _ in decided.grants]
    fates = [*granted, *decided.waiting, *decided.late, *decided.hopeless]
    assert Counter(fates) == Counter(queue)
    taken = Counter(to.id for _, to in decided.grants)
    for machine in machines:
        assert taken[machine.id] <= (machine.free_slots if machine.usable else 0)
    for one, to in decided.grants:
        assert to.kind in one.model.variants
        assert one.deadline > NOW
    for passed, times in Counter(decided.passed_over).items():
        assert passed.passed_over + times <= KEEP_TOGETHER


@given(JOBS, MACHINES)
def test_who_waits_waits_for_a_busy_device_or_one_that_is_coming(
    queue: list[Job], machines: list[Machine]
) -> None:
    decided = plan(queue, *machines)
    taken = Counter(to.id for _, to in decided.grants)
    for waiting in decided.waiting:
        able = [each for each in machines if each.kind in waiting.model.variants]
        group = dispatch.preferred(waiting, [each for each in able if each.usable])
        busy = any(taken[each.id] == each.free_slots for each in group)
        coming = any(each.ready_by() <= waiting.deadline for each in able)
        assert busy or (not group and coming)
