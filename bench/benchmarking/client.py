"""An HTTP/1.1 client that costs little and times exactly: one connection, one request at a time.

aiohttp and httpx take several times the CPU for a request, which a load generator would add to
what it measures (docs/benchmarking.md has the figures). So the connection is asyncio's own, and
answers are read by llhttp, through httptools.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import httptools

from bench.benchmarking.errors import WrongUsage

SEND_BUFFER = 1 << 20  # bytes: a picture leaves in one piece

Failure = Literal["connect", "reset", "timeout", "parse"]

now = time.monotonic
"""The clock of asyncio's loop, in seconds: everything is timed with this one."""


class RequestFailed(Exception):
    """There is no answer. `kind` says what happened, the text what the system said of it."""

    def __init__(self, kind: Failure, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    url: str
    host: str
    port: int
    path: str
    """What stands before each route; mostly nothing."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request, the API key among them."""
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(
        cls, url: str, headers: Mapping[str, str] | None = None, *, insecure: bool = False
    ) -> "Target":
        """Read a URL. Raises WrongUsage when it is not one."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise WrongUsage(f"--url: {error}: {url!r}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise WrongUsage(f"--url takes an address like http://192.168.1.5:5000, not {url!r}")
        tls = None
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            if insecure:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
        path = parts.path.rstrip("/")
        return cls(url.rstrip("/"), parts.hostname, port, path, headers or {}, tls)

    def head(self, method: str, route: str, headers: Mapping[str, str]) -> bytes:
        """A request's first lines, to the empty one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{route} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **self.headers}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", errors="replace")


@dataclass
class Reply:
    """What came back. Times are those of `now`."""

    status: int
    headers: dict[bytes, bytes]
    """Their names in small letters."""
    body: bytes
    connect_s: float | None
    """How long the connection took, when it was made for this request."""
    sent_at: float
    done_at: float
    received: int
    """Bytes of the answer, its head too."""


class Connection(asyncio.Protocol):
    """A connection that is opened when it is needed and stays open if the server lets it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: RequestFailed | None = None

    async def ask(self, request: bytes, timeout_s: float) -> Reply:
        """Send a request and wait for its answer. Raises RequestFailed when there is none."""
        loop = asyncio.get_running_loop()
        began = now()
        connect_s = None
        if self._transport is None or self._transport.is_closing():
            await self._connect(timeout_s)
            connect_s = now() - began
        assert self._transport
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._received = 0
        self._heads_done = False
        self._failure = None
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(timeout_s - (now() - began), self._time_out)
        sent_at = now()
        try:
            self._transport.write(request)
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
            if not waiter.done() or waiter.cancelled():
                self.close()
        if failure := self._failed():
            self.close()
            raise failure
        if not self._keep:
            self.close()
        return Reply(
            self._status,
            self._headers,
            b"".join(self._body),
            connect_s,
            sent_at,
            self._done_at,
            self._received,
        )

    def close(self) -> None:
        """Hang up; the next request opens another connection."""
        if self._transport:
            self._transport.abort()
            self._transport = None

    async def _connect(self, timeout_s: float) -> None:
        target = self._target
        try:
            async with asyncio.timeout(timeout_s):
                self._transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: self, target.host, target.port, ssl=target.tls
                )
        except TimeoutError as error:
            raise RequestFailed("timeout", f"no connection within {timeout_s:g} s") from error
        except OSError as error:
            raise RequestFailed("connect", str(error)) from error
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    # ------------------------------------------------------------ called by asyncio

    def data_received(self, data: bytes) -> None:
        """More of the answer."""
        self._received += len(data)
        if self._waiter is None:  # nobody asked: the next request needs a new connection
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(RequestFailed("parse", f"no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """The server hung up, or the network did."""
        self._transport = None
        if self._waiter is None or self._waiter.done():
            return
        if error is None and self._heads_done and self._ends_with_connection():
            self._keep = False
            self._end()
            return
        text = str(error) if error else f"the server hung up after {self._received} bytes"
        self._end(RequestFailed("reset", text))

    # ------------------------------------------------------------ called by llhttp

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._heads_done = True
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A part of the body, without what chunks add."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._keep = self._parser.should_keep_alive()
        self._end()

    # ------------------------------------------------------------

    def _failed(self) -> RequestFailed | None:
        return self._failure

    def _ends_with_connection(self) -> bool:
        return not {b"content-length", b"transfer-encoding"} & set(self._headers)

    def _time_out(self) -> None:
        self._end(RequestFailed("timeout", "no answer in time"))

    def _end(self, failure: RequestFailed | None = None) -> None:
        self._done_at = now()
        if self._waiter and not self._waiter.done():
            self._failure = failure
            self._waiter.set_result(None)
