"""gunicorn's worker with threads, made safe against slow clients and made to stop without loss.

A thread is given to a request only when its header has arrived, which the main loop waits for. So
clients that send nothing, or a little, hold a descriptor and nothing else. Bodies are read in
threads, of which `Service.admit` leaves some to `/health` and its kind. What has not arrived by
its deadline is cut off, and connections are closed softly in the main loop, not in a thread.
"""

import contextlib
import logging
import math
import select
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from types import FrameType
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import TConn, ThreadWorker

from app.access import client_of
from app.fair import ThreadShares
from app.service import Service

log = logging.getLogger(__name__)

SERVICE = "reef.service"
THREADS_FOR_OTHERS = 8  # of all threads, those that no single client can have
CONNECTIONS_FOR_OTHERS = 1 / 8  # of all connections, those that no single client can have
HEADER_END = b"\r\n\r\n"
LINE_FEEDS = b"\n\n"  # what ends the header of a program that was written by hand
TLS_HANDSHAKE = b"\x16\x03"  # RFC 8446, 5.1
RECEIVE_BYTES = 64 * 1024  # most pictures of 640x480 arrive in one piece with their header
MAX_HEADER_BYTES = 16 * 1024  # as in Node.js; every open connection may hold so much
HANDSHAKE_S = 0.1  # for connections that are being made when the listener is closed
IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73  # of Linux; Python has no names for them
ANY_TTL, LARGEST_TTL = 0, 255
CUT_OFF_S = 0.5  # after a request's own deadline, so that its reader knows why the body ended
LINGER_S = 1.0  # of silence, before a connection that was answered is closed

Closed = Callable[["Connection"], None]


class NoHeader(Exception):
    """What has come will never be the header of a request."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Connection(TConn):  # type: ignore[misc]
    """A connection that counts as its client's until it is closed."""

    def __init__(self, cfg: Any, sock: socket.socket, address: Any, closed: Closed) -> None:
        """`closed` is called once, with the connection."""
        super().__init__(cfg, sock, address, sock.getsockname())
        self.owner = client_of(address[0])
        self._closed: Closed | None = closed

    def close(self, graceful: bool = False) -> None:
        """Close it; of no effect when it is closed already."""
        if self._closed:
            self._closed(self)
            self._closed = None
        super().close(graceful)


def require_ttl(sock: socket.socket, least: int) -> None:
    """Let the kernel drop every packet whose time to live (IPv6: hop limit) is less than `least`.

    With `LARGEST_TTL` on a listener it drops the first packet of nearly every new connection, as
    systems begin at 64 or 128 and routers, Docker's bridge among them, count down. What belongs to
    a handshake that has begun is not looked at, and no privilege is needed, as it is for a packet
    filter. Connections inherit it.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, least)
        if sock.family == socket.AF_INET6:  # it takes clients of IPv4 too
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, least)


def _takes_an_answer(conn: Connection) -> bool:
    """Whether there is room to answer; a client that sends and never reads must hold no thread."""
    poll = select.poll()
    poll.register(conn.sock, select.POLLOUT)
    return bool(poll.poll(0))


class Worker(ThreadWorker):  # type: ignore[misc]
    """gthread's worker, in which a request gets a thread only once its header has arrived."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving: dict[Connection, float] = {}  # when each request must have arrived
        self._closing: dict[Connection, float] = {}  # when each must be closed at the latest
        self._shares = ThreadShares(self.cfg.threads - THREADS_FOR_OTHERS)
        self._owned: Counter[str] = Counter()  # connections by client
        self._most_owned = math.ceil(self.worker_connections * (1 - CONNECTIONS_FOR_OTHERS))

    @property
    def service(self) -> Service:
        """What this worker serves with."""
        service: Service = self.wsgi.extensions[SERVICE]
        return service

    # ------------------------------------------------------------ the stop

    def init_signals(self) -> None:
        """The terminal's SIGINT reaches the worker too, but the master decides."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, super().handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: go on serving for the drain delay, then stop."""
        if not self.booted:
            super().handle_exit(sig, frame)
        elif not self.service.draining:
            self.service.draining = True
            self.max_keepalived = 0  # every answer from now on closes its connection
            # A timer and not a thread: a signal handler must take no lock.
            signal.setitimer(signal.ITIMER_REAL, max(self.service.settings.drain_s, 0.001))

    def set_accept_enabled(self, enabled: bool) -> None:
        """At the stop, let nobody else in, then take what the kernel has accepted already.

        To close a listener resets what is connected but not yet accepted, and that can never be
        empty for sure while clients come. One whose first packet was dropped sends it again after
        a second, and then is refused.
        """
        if enabled and not self._accepting:
            for listener in self.sockets:  # of a worker before this one, that was stopped alone
                require_ttl(listener, ANY_TTL)
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            listeners = list(self.sockets)
            self.sockets: list[Any] = []  # or a second call would meet them closed
            for listener in listeners:
                require_ttl(listener, LARGEST_TTL)
            time.sleep(HANDSHAKE_S)
            for listener in listeners:
                while self.accept(listener):
                    pass
                listener.close()

    # ------------------------------------------------------------ a request arrives

    def accept(self, listener: socket.socket) -> bool:
        """Accept a connection, unless its client has its share; whether there may be more.

        To be out of descriptors for a moment is no reason to die.
        """
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            log.warning("A connection can't be accepted: %s", error.strerror)
            time.sleep(0.1)
            return False
        require_ttl(sock, ANY_TTL)
        conn = Connection(self.cfg, sock, address, self._disown)
        self.nr_conns += 1
        self._owned[conn.owner] += 1
        if self._owned[conn.owner] > self._most_owned:
            self.log.warning(
                "A client has all the connections that one may have: ip=%s", conn.owner
            )
            self._close(conn)
        else:
            self.enqueue_req(conn)
        return True

    def _disown(self, conn: Connection) -> None:
        self._owned[conn.owner] -= 1
        if not self._owned[conn.owner]:
            del self._owned[conn.owner]

    def enqueue_req(self, conn: Connection) -> None:
        """Give a thread to a request whose header is here; wait for the others in the main loop."""
        now = time.monotonic()
        deadline = self._arriving.setdefault(conn, now + self.service.settings.deadline_s)
        try:
            arrived = now < deadline and self._header_arrived(conn)
        except OSError:
            arrived = True  # a thread will meet the same error, and close
        except NoHeader as why:
            self._refuse(conn, why)
            return
        if arrived and not _takes_an_answer(conn):
            self._wait(conn, selectors.EVENT_WRITE)
        elif arrived:
            if self._shares.enter(conn.owner, conn):
                super().enqueue_req(conn)
        elif now >= deadline:
            self._close(conn)
        else:
            self._wait(conn, selectors.EVENT_READ)

    def _wait(self, conn: Connection, event: int) -> None:
        """Look at a connection again when it can be read, or written; close it if it never can."""
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(
            conn.sock, event, lambda sock: self.on_pending_socket_readable(conn, sock)
        )

    def handle(self, conn: Connection) -> object:
        """Handle one request, in a thread; from here on its body must arrive."""
        deadline_s = self.service.settings.deadline_s
        self._arriving[conn] = time.monotonic() + deadline_s + CUT_OFF_S
        return super().handle(conn)

    def _header_arrived(self, conn: Connection) -> bool:
        """Take what has come; whether it is a whole header, or the end.

        Raises NoHeader where none can come of it.
        """
        conn.init()  # makes the parser
        conn.sock.setblocking(False)
        unreader = conn.parser.unreader
        buffered: bytes = unreader.take_buffered()
        came: bytes | None = None
        with contextlib.suppress(BlockingIOError):
            came = conn.sock.recv(RECEIVE_BYTES)
        buffered += came or b""
        unreader.unread(buffered)
        end = buffered.find(HEADER_END)
        if (len(buffered) if end < 0 else end) > MAX_HEADER_BYTES:
            raise NoHeader(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"The header has more than {MAX_HEADER_BYTES} bytes",
            )
        if end >= 0 or came == b"":
            return True
        if LINE_FEEDS in buffered:
            raise NoHeader(
                HTTPStatus.BAD_REQUEST, "The lines of a header end with CR LF, not with LF alone"
            )
        if buffered.startswith(TLS_HANDSHAKE):
            raise NoHeader(HTTPStatus.BAD_REQUEST, "This port speaks HTTP, not HTTPS")
        return False

    def _refuse(self, conn: Connection, why: NoHeader) -> None:
        """Answer what the parser would wait for in vain, as it answers other malformed HTTP."""
        self.log.warning("Invalid request from ip=%s: %s", conn.client[0], why)
        with contextlib.suppress(OSError):
            util.write_error(conn.sock, why.status.value, why.status.phrase, str(why))
        self._arriving.pop(conn, None)
        self._close_softly(conn)

    def murder_pending(self) -> None:
        """Called every second at least: cut off what has not arrived by its deadline."""
        super().murder_pending()
        now = time.monotonic()
        for conn, deadline in list(self._arriving.items()):
            if conn.sock.fileno() < 0:
                del self._arriving[conn]
            elif now > deadline:
                with contextlib.suppress(OSError):  # its reader sees the end, and can still answer
                    conn.sock.shutdown(socket.SHUT_RD)
        for conn, latest in list(self._closing.items()):
            if now > min(conn.timeout, latest):
                self._close(conn)

    # ------------------------------------------------------------ a request has been answered

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """Whether the connection can be used again. A body that nobody read ends it: to wait for
        the rest would hold a thread."""
        conn.sock.setblocking(False)
        try:
            return keepalive and bool(conn.parser.finish_body(max_bytes=RECEIVE_BYTES))
        except BlockingIOError:
            return False

    def finish_request(self, conn: Connection, answered: Future[bool]) -> None:
        """Called in the main loop when a thread is done with a request."""
        self._arriving.pop(conn, None)
        if (following := self._shares.leave(conn.owner)) is not None:
            super().enqueue_req(following)
        if not answered.cancelled() and not answered.exception() and answered.result() is False:
            self._close_softly(conn)
        else:
            super().finish_request(conn, answered)

    def _close_softly(self, conn: Connection) -> None:
        """Let the client send to its end and read its answer: to close with unread input would
        reset the connection, and many a client reads only when it has sent all."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
        except OSError:
            self._close(conn)
            return
        now = time.monotonic()
        conn.timeout = now + LINGER_S
        self._closing[conn] = now + self.service.settings.deadline_s
        self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._discard(conn))

    def _discard(self, conn: Connection) -> None:
        try:
            sending = bool(conn.sock.recv(RECEIVE_BYTES))
        except BlockingIOError:
            return
        except OSError:  # reset, or out of reach
            sending = False
        if sending:
            conn.timeout = time.monotonic() + LINGER_S
        else:
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        self._arriving.pop(conn, None)
        self._closing.pop(conn, None)
        with contextlib.suppress(KeyError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()
