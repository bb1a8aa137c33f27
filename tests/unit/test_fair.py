"""Who waits with much doesn't keep those waiting who want little."""

import threading
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from app.fair import FairSlots, ThreadShares, ranked, to_give_way
from tests.support import wait_for


@dataclass(frozen=True)
class Job:
    """Something that a client waits with."""

    client: str
    number: int


def jobs(clients: str) -> list[Job]:
    """One job a letter, in this order."""
    return [Job(client, number) for number, client in enumerate(clients)]


def in_turn(waiting: list[Job]) -> list[Job]:
    """The jobs in the order of their turns."""
    return [job for _, job in ranked(waiting)]


def order(clients: str) -> str:
    """Whose turns they are."""
    return "".join(job.client for job in in_turn(jobs(clients)))


def test_clients_take_turns() -> None:
    assert order("aaaab") == "abaaa"
    assert order("aaabbc") == "abcaba"


def test_the_number_of_a_turn_is_how_many_the_client_had_before() -> None:
    assert [(turn, job.client) for turn, job in ranked(jobs("aab"))] == [
        (0, "a"),
        (0, "b"),
        (1, "a"),
    ]


def test_of_one_client_the_oldest_is_first() -> None:
    assert in_turn(jobs("aaa")) == jobs("aaa")


@given(st.text("abc"))
def test_nobody_is_lost(clients: str) -> None:
    assert sorted(order(clients)) == sorted(clients)
    for client in "abc":
        numbers = [each.number for each in in_turn(jobs(clients)) if each.client == client]
        assert numbers == sorted(numbers)


def test_in_a_full_queue_the_newest_of_the_greediest_gives_way() -> None:
    assert to_give_way(jobs("aaab"), "c") == Job("a", 2)
    assert to_give_way(jobs("aaab"), "b") == Job("a", 2)


def test_among_equals_the_newcomer_goes() -> None:
    assert to_give_way(jobs("abc"), "d") is None
    assert to_give_way(jobs("aabb"), "b") is None
    assert to_give_way(jobs("aaab"), "a") is None
    assert to_give_way([], "a") is None


# ---------------------------------------------------------------------------- slots


def test_slots_are_handed_on_in_turn() -> None:
    slots = FairSlots(1)
    assert slots.acquire("greedy", 0)
    got: list[str] = []

    def wait(client: str) -> None:
        assert slots.acquire(client, 30)
        got.append(client)
        slots.release()

    threads = []
    for number, client in enumerate(("greedy", "greedy", "greedy", "modest")):
        threads.append(threading.Thread(target=wait, args=(client,)))
        threads[-1].start()
        wait_for(lambda n=number: sum(map(len, slots._waiting.values())) == n + 1)  # type: ignore[misc]
    slots.release()
    for thread in threads:
        thread.join()
    assert got == ["greedy", "modest", "greedy", "greedy"]


def test_who_gives_up_is_forgotten_and_takes_no_slot() -> None:
    slots = FairSlots(1)
    assert slots.acquire("one", 0)
    assert not slots.acquire("another", 0.01)
    assert not slots._waiting
    slots.release()
    assert slots.acquire("another", 0)


def test_no_more_than_the_slots_are_out_and_none_is_lost() -> None:
    slots = FairSlots(3)
    out = most = 0
    lock = threading.Lock()

    def work(client: str) -> None:
        nonlocal out, most
        for _ in range(200):
            if not slots.acquire(client, 0.001):
                continue
            with lock:
                out += 1
                most = max(most, out)
            with lock:
                out -= 1
            slots.release()

    threads = [threading.Thread(target=work, args=(str(number % 4),)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert all(slots.acquire("x", 0) for _ in range(3))
    assert not slots.acquire("x", 0)


# ---------------------------------------------------------------------------- lanes


def test_a_client_has_so_many_threads_and_the_next_request_goes_when_one_is_done() -> None:
    shares = ThreadShares(2)
    assert shares.enter("a", 1)
    assert shares.enter("a", 2)
    assert not shares.enter("a", 3)
    assert shares.enter("b", 4)
    assert shares.leave("a") == 3
    assert shares.leave("a") is None
    assert shares.leave("a") is None
    assert shares.leave("b") is None
    assert not shares._going
    assert not shares._parked
