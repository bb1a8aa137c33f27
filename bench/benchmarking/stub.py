"""A server that answers at once, to show how much this tool itself can ask: its own ceiling.

`python -m bench.benchmarking.stub` prints its port and serves until its stdin ends.
"""

import asyncio
import json
import sys

BODY = json.dumps(
    {
        "predictions": [{"bbox": [6.1, 7.3, 363.9, 504.7], "class": "person", "score": 0.8555}],
        "inference_time": 0.01,
        "model": "stub",
        "device": "stub",
        "degraded": False,
        "image": {"width": 512, "height": 512},
        "timings": {
            "read": 0,
            "decode": 0,
            "queue": 0,
            "inference": 0.01,
            "post": 0,
            "total": 0.01,
        },
        "request_id": "0",
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Server-Timing: read;dur=0, decode;dur=0, queue;dur=0, inference;dur=0.01, post;dur=0, "
    b"total;dur=0.01\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
LENGTH = b"Content-Length: "


class AtOnce(asyncio.Protocol):
    """Counts a request's bytes, looks at none of them, and answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        """The head comes in one piece from this tool's client, and one request at a time."""
        if not self._missing:
            end = data.index(b"\r\n\r\n") + 4
            length = data.partition(LENGTH)[2].partition(b"\r")[0]
            self._missing = end + int(length or 0)
        self._missing -= len(data)
        if not self._missing:
            self._transport.write(ANSWER)


async def serve() -> None:
    """Listen on a free port, and say which."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(AtOnce, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
