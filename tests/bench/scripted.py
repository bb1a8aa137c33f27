"""A server whose behaviour is known to the millisecond, for the benchmark to be tried against."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

PREDICTIONS = [
    {"bbox": [6.1, 7.3, 363.9, 504.7], "class": "person", "score": 0.8555},
    {"bbox": [1.0, 2.0, 30.0, 40.0], "class": "cat", "score": 0.5},
]
CHUNK = 7  # bytes


@dataclass(frozen=True)
class Reply:
    """What one request gets. The default is a good answer at once."""

    delay_s: float = 0.0
    status: int = 200
    predictions: list[dict[str, Any]] = field(default_factory=lambda: PREDICTIONS)
    body: bytes | None = None
    """Instead of a prediction."""
    chunked: bool = False
    reset: bool = False
    """Hang up after half of the answer."""
    stall_s: float = 0.0
    """Everything stands still for so long from this request on."""
    hang: bool = False
    """Never answer."""


Script = Callable[[int], Reply]
"""From a prediction's number, from 0, to what it gets."""

GOOD = Reply(delay_s=0.02)


@dataclass
class Scripted:
    """The server, and what it saw."""

    script: Script
    port: int = 0
    asked: int = 0
    bodies: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    keep_bodies: bool = False
    stands_still_until: float = 0.0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = await reader.readexactly(_length(head))
                    if not await self._answer(head, body, writer):
                        break
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        route = head.split()[1].split(b"?")[0].decode()
        if route != "/predict":
            found = ROUTES.get(route)
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            writer.write(_whole(200 if found is not None else 404, content))
            return True
        number, self.asked = self.asked, self.asked + 1
        self.heads.append(head)
        if self.keep_bodies:
            self.bodies.append(body)
        reply = self.script(number)
        loop = asyncio.get_running_loop()
        if reply.stall_s:
            self.stands_still_until = loop.time() + reply.stall_s
        if reply.hang:
            await asyncio.sleep(3600)
        await asyncio.sleep(max(reply.delay_s, self.stands_still_until - loop.time()))
        answer = _prediction(reply)
        if reply.reset:
            writer.write(answer[: len(answer) // 2])
            return False
        writer.write(answer)
        await writer.drain()
        return True


@contextmanager
def scripted(script: Script | Reply = GOOD, *, keep_bodies: bool = False) -> Iterator[Scripted]:
    """A server on a free port, in a thread, until the block ends."""
    told = script if callable(script) else lambda _number: replace(script)
    server = Scripted(told, keep_bodies=keep_bodies)
    loop = asyncio.new_event_loop()
    up = threading.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(server.serve_one, "127.0.0.1", 0, backlog=512)
        server.port = listening.sockets[0].getsockname()[1]
        up.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        listening.close()
        await asyncio.sleep(0.05)  # what was accepted this moment becomes a connection
        for task in asyncio.all_tasks() - {main}:
            task.cancel()
        await asyncio.sleep(0.05)  # and is hung up on

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main)
        loop.close()

    main = loop.create_task(serve())
    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(main.cancel)
        thread.join(10)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _prediction(reply: Reply) -> bytes:
    inference = 1000 * reply.delay_s
    body = reply.body
    if body is None:
        content: dict[str, Any] = {"predictions": reply.predictions}
        content |= {"model": "scripted", "device": "cpu"}
        content |= {"inference_time": inference, "degraded": False}
        if reply.status != 200:
            content = {"error": "scripted", "code": "busy", "request_id": "1"}
        body = json.dumps(content).encode()
    timing = f"read;dur=0.1, decode;dur=0.2, queue;dur=0.3, inference;dur={inference:g}, "
    timing += f"post;dur=0.1, total;dur={inference + 0.8:g}"
    if not reply.chunked:
        return _whole(reply.status, body, f"Server-Timing: {timing}\r\n".encode())
    head = f"HTTP/1.1 {reply.status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    parts = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head + chunks + b"0\r\n\r\n"


def _whole(status: int, body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


ROUTES: dict[str, Any] = {
    "/ready": {"ready": True, "reason": "", "devices": [], "notes": []},
    "/health": {"status": "ok"},
    "/models": {"default": "scripted", "models": []},
    "/devices": {"devices": [{"id": "cpu", "kind": "cpu", "about": "scripted", "state": "ready"}]},
    "/openapi.json": {"info": {"version": "0.0.0"}},
    "/metrics": b'reef_queue_depth 0.0\nreef_process_resident_bytes{process="http"} 5e+07\n',
}
