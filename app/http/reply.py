"""What answers of every dialect are made of."""

import json

from flask import Response

from app.service import Answer


def json_response(body: object, status: int = 200) -> Response:
    """A JSON answer. It has a Content-Length and is never chunked: some clients can't take that."""
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return Response(text, status, mimetype="application/json")


def degraded(answer: Answer) -> dict[str, str]:
    """The header of an answer that the CPU gave in an Edge TPU's place."""
    return {"X-Reef-Degraded": answer.device} if answer.degraded else {}


def server_timing(timings: dict[str, float]) -> str:
    """The `Server-Timing` header (W3C), which browsers and the benchmark read."""
    return ", ".join(f"{stage};dur={milliseconds:g}" for stage, milliseconds in timings.items())
