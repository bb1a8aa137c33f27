"""Who may ask, and how much: API keys, the client behind a request, and its share.

A client is an address; of IPv6 its /64, which one computer has to itself. What a proxy says of its
client is believed only of a proxy that the settings name.
"""

import hashlib
import hmac
import ipaddress
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.errors import Busy, TooManyRequests, Unauthorized

ALWAYS_OPEN = frozenset({"/health", "/ready", "/openapi.json"})
"""Probes must work without a secret, and the API's description is no secret."""

KEPT_FOR_NEWCOMERS = 4
"""Of the requests let in, those that only a client may have that has none here yet."""

BURST_S = 2.0  # a client that was silent may send so many seconds' worth at once
BUCKETS = 10_000  # clients remembered; more than these would be an attack on our memory

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Keys:
    """The API keys, any of which opens every route; with none, every route is open."""

    texts: Sequence[str] = field(default=(), repr=False)
    open_routes: frozenset[str] = frozenset()

    def opens(self, route: str | None) -> bool:
        """Whether a route is open without a key. One that is not there is not told from others."""
        return not self.texts or route in ALWAYS_OPEN or route in self.open_routes

    def check(self, candidates: Sequence[str]) -> None:
        """Raise Unauthorized unless one of the keys that a request brought is one of these."""
        if not candidates:
            raise Unauthorized(
                "this server wants its API key; send it as 'Authorization: Bearer KEY' or as "
                "'X-API-Key: KEY'"
            )
        if not any(self._is_one(candidate) for candidate in candidates):
            raise Unauthorized("the API key is not one of this server's; see its REEF_API_KEY")

    def _is_one(self, candidate: str) -> bool:
        """In a time that tells nothing of the keys: every hash is as long, and all are compared."""
        digest = _digest(candidate)
        return sum(hmac.compare_digest(digest, _digest(key)) for key in self.texts) > 0


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def client_of(peer: str, forwarded: str = "", proxies: Sequence[Network] = ()) -> str:
    """The client of a request that came from the address `peer`.

    `forwarded` is the header `X-Forwarded-For`, whose last entry a proxy has written itself: it is
    believed where `peer` is one of `proxies`.
    """
    address = _address(peer)
    if address is not None and any(address in network for network in proxies):
        said = _address(forwarded.rpartition(",")[2].strip())
        address = said if said is not None else address
    if address is None:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 client of an IPv6 socket
    return mapped or address


class Admission:
    """How many requests may be between their first body byte and their answer, in all and each.

    Memory is bounded by it. The last few places are for clients that have no request here yet, so
    that one client alone can't keep the others out.
    """

    def __init__(self, most: int, most_each: int = 0) -> None:
        """`most_each` 0: as many as there is room for."""
        self._most = most
        self._most_each = most_each
        self._here: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, client: str) -> None:
        """Let a request in. Raises TooManyRequests or Busy."""
        with self._lock:
            here, total = self._here[client], self._here.total()
            if self._most_each and here >= self._most_each:
                raise TooManyRequests(
                    f"you have {here} requests here already; send fewer at once", retry_after_s=1
                )
            kept = min(KEPT_FOR_NEWCOMERS, self._most - 1) if here else 0
            if total >= self._most - kept:
                raise Busy("too many requests at once; try again in a second")
            self._here[client] += 1

    def leave(self, client: str) -> None:
        """A request that was let in has been answered."""
        with self._lock:
            self._here[client] -= 1
            if not self._here[client]:
                del self._here[client]


class Rate:
    """How often each client may send a picture: a bucket of tokens for each."""

    def __init__(self, per_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """`per_s` 0: as often as it likes. `now` in seconds."""
        self._per_s = per_s
        self._burst = max(1.0, per_s * BURST_S)
        self._now = now
        self._full_at: dict[str, float] = {}  # when each bucket is full again; others are full
        self._lock = threading.Lock()

    def take(self, client: str) -> None:
        """Count a picture. Raises TooManyRequests with the time to wait."""
        if not self._per_s:
            return
        now = self._now()
        with self._lock:
            full_at = max(self._full_at.get(client, now), now)
            wait_s = full_at + 1 / self._per_s - now - self._burst / self._per_s
            if wait_s > 1e-9:
                raise TooManyRequests(
                    f"you may send {self._per_s:g} pictures a second; wait a moment",
                    retry_after_s=math.ceil(wait_s),
                )
            self._full_at[client] = full_at + 1 / self._per_s
            if len(self._full_at) > BUCKETS:
                self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop the full buckets, and if that is not enough, those that are full soonest."""
        left = sorted(
            ((at, client) for client, at in self._full_at.items() if at > now), reverse=True
        )
        self._full_at = {client: at for at, client in left[: BUCKETS // 2]}
