"""Keys are compared whole, a client is its address, and each gets its share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access import ALWAYS_OPEN, BUCKETS, KEPT_FOR_NEWCOMERS, Admission, Keys, Rate, client_of
from app.errors import Busy, TooManyRequests, Unauthorized
from tests.support import make_settings

KEY, OTHER = "correct-horse-battery", "staple-correct-horse"
KEYED = Keys((KEY, OTHER))
PROXIES = make_settings(proxies="10.0.0.0/8,::1").proxies


# ---------------------------------------------------------------------------- keys


@pytest.mark.parametrize("candidates", [[KEY], [OTHER], ["of-a-proxy", KEY]])
def test_each_key_opens(candidates: list[str]) -> None:
    KEYED.check(candidates)


@pytest.mark.parametrize(
    "candidates",
    [
        [],
        [f"{KEY}x"],
        [KEY[:-1]],
        [f"{KEY} {OTHER}"],
        [KEY.upper()],
        [f"{KEY}\n{OTHER}"],
        ["\udcff" * 20],
        ["", "x"],
    ],
)
def test_anything_else_does_not(candidates: list[str]) -> None:
    with pytest.raises(Unauthorized) as refusal:
        KEYED.check(candidates)
    assert KEY not in str(refusal.value)
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer")


@given(st.lists(st.text()))
def test_no_other_text_opens(candidates: list[str]) -> None:
    with pytest.raises(Unauthorized):
        KEYED.check(candidates)


@pytest.mark.parametrize("route", sorted(ALWAYS_OPEN))
def test_probes_and_the_description_need_no_key(route: str) -> None:
    assert KEYED.opens(route)


def test_a_route_may_be_opened() -> None:
    keys = Keys((KEY,), frozenset({"/metrics"}))
    assert keys.opens("/metrics")
    assert not any(map(keys.opens, ("/devices", "/predict", None)))


def test_without_keys_everything_is_open() -> None:
    assert Keys().opens("/predict")
    assert Keys().opens(None)


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(KEYED)


# ---------------------------------------------------------------------------- clients


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # who is no proxy is not believed
        ("10.1.2.3", "198.51.100.7", "198.51.100.7"),
        ("10.1.2.3", "203.0.113.9, 198.51.100.7", "198.51.100.7"),  # a proxy adds at the end
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "unknown", "10.1.2.3"),
        ("10.1.2.3", "\r\nforged", "10.1.2.3"),
        ("::ffff:10.1.2.3", "198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3::4", "", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "", "2001:db8:1:2::/64"),
        ("", "", ""),
        ("a socket", "", "a socket"),
    ],
)
def test_a_client_is_its_address(peer: str, forwarded: str, client: str) -> None:
    assert client_of(peer, forwarded, PROXIES) == client


@given(st.text())
def test_whatever_a_proxy_says_is_an_address_or_not_believed(said: str) -> None:
    assert " " not in client_of("10.0.0.1", said, PROXIES)


# ---------------------------------------------------------------------------- shares


def fill(admission: Admission, client: str) -> int:
    """How many requests of a client are let in at once."""
    count = 0
    try:
        while True:
            admission.enter(client)
            count += 1
    except (Busy, TooManyRequests):
        return count


def test_one_client_leaves_room_for_those_that_have_nothing_here() -> None:
    admission = Admission(10)
    assert fill(admission, "greedy") == 10 - KEPT_FOR_NEWCOMERS
    for newcomer in range(KEPT_FOR_NEWCOMERS):
        assert fill(admission, str(newcomer)) == 1
    with pytest.raises(Busy):
        admission.enter("one more")


def test_who_leaves_makes_room() -> None:
    admission = Admission(10)
    fill(admission, "greedy")
    admission.leave("greedy")
    assert fill(admission, "greedy") == 1


def test_a_client_may_be_held_to_less() -> None:
    admission = Admission(10, most_each=2)
    assert fill(admission, "one") == fill(admission, "another") == 2
    with pytest.raises(TooManyRequests, match="2 requests"):
        admission.enter("one")


def test_a_single_place_is_for_anybody() -> None:
    assert fill(Admission(1), "one") == 1


def test_clients_that_left_are_forgotten() -> None:
    admission = Admission(4)
    for number in range(1000):
        admission.enter(str(number))
        admission.leave(str(number))
    assert not admission._here


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def taken(rate: Rate, client: str) -> int:
    """How many pictures a client may send at this moment."""
    count = 0
    try:
        while count < 1000:
            rate.take(client)
            count += 1
    except TooManyRequests:
        pass
    return count


def test_after_a_burst_a_client_has_its_rate() -> None:
    clock = Clock()
    rate = Rate(5, clock)
    assert taken(rate, "one") == 10
    assert taken(rate, "another") == 10
    clock.now += 1
    assert taken(rate, "one") == 5
    clock.now += 3600
    assert taken(rate, "one") == 10


def test_who_must_wait_is_told_how_long() -> None:
    clock = Clock()
    rate = Rate(0.1, clock)
    rate.take("one")
    with pytest.raises(TooManyRequests) as refusal:
        rate.take("one")
    assert refusal.value.headers["Retry-After"] == "10"
    clock.now += 10
    rate.take("one")


def test_to_be_refused_costs_nothing() -> None:
    clock = Clock()
    rate = Rate(1, clock)
    taken(rate, "one")
    for _ in range(100):
        assert taken(rate, "one") == 0
    clock.now += 1
    assert taken(rate, "one") == 1


def test_no_rate_is_no_limit() -> None:
    assert taken(Rate(0), "one") == 1000


def test_a_million_clients_do_not_fill_the_memory() -> None:
    clock = Clock()
    rate = Rate(1, clock)
    for number in range(3 * BUCKETS):
        rate.take(str(number))
    assert len(rate._full_at) <= BUCKETS
