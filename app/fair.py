"""Whose turn it is, when several clients wait for one thing: each in turn, not each request. No
I/O; `FairSlots` blocks."""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Owned(Protocol):
    """Something that a client waits with."""

    @property
    def client(self) -> str:
        """Who waits."""


T = TypeVar("T", bound=Owned)


def ranked(waiting: Iterable[T]) -> list[tuple[int, T]]:
    """Each client's first, oldest first, then each client's second, and so on; with the number of
    the turn, from 0."""
    turns: Counter[str] = Counter()
    ranks: list[tuple[int, T]] = []
    for entry in waiting:
        ranks.append((turns[entry.client], entry))
        turns[entry.client] += 1
    return sorted(ranks, key=lambda rank: rank[0])


def to_give_way(waiting: Sequence[T], newcomer: str) -> T | None:
    """What gives way where `waiting` is full: the newest of the client that has the most.

    None where nobody has clearly more than the newcomer, who then has to go.
    """
    counts = Counter(each.client for each in waiting)
    if not counts:
        return None
    greediest, most = counts.most_common(1)[0]
    if most <= counts[newcomer] + 1:
        return None
    return next(each for each in reversed(waiting) if each.client == greediest)


class FairSlots:
    """A semaphore that clients get in turn, however many requests each waits with."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()

    def acquire(self, client: str, timeout_s: float) -> bool:
        """Take a slot; False when there is none in time."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.setdefault(client, deque()).append(turn)
        if turn.wait(timeout_s):
            return True
        with self._lock:
            if turn.is_set():  # it came this moment
                return True
            self._waiting[client].remove(turn)
            if not self._waiting[client]:
                del self._waiting[client]
        return False

    def release(self) -> None:
        """Give a slot back: to the client whose turn it is, if somebody waits."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            client, turns = self._waiting.popitem(last=False)
            turns.popleft().set()
            if turns:
                self._waiting[client] = turns


class ThreadShares:
    """How many threads each client may have at a time. For one thread's use."""

    def __init__(self, most_each: int) -> None:
        self._most_each = most_each
        self._going: Counter[str] = Counter()
        self._parked: dict[str, deque[object]] = {}

    def enter(self, client: str, request: object) -> bool:
        """Whether a request may go now; else it is parked until `leave` gives it back."""
        if self._going[client] < self._most_each:
            self._going[client] += 1
            return True
        self._parked.setdefault(client, deque()).append(request)
        return False

    def leave(self, client: str) -> object | None:
        """A request of the client is done; the next one that may go now, if any."""
        if parked := self._parked.get(client):
            following = parked.popleft()
            if not parked:
                del self._parked[client]
            return following
        self._going[client] -= 1
        if not self._going[client]:
            del self._going[client]
        return None
