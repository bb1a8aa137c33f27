"""The native dialect: answers as JSON."""

import json
from typing import Any

from flask import Response

from app.service import Answer


def json_response(body: object, status: int = 200) -> Response:
    """A JSON answer. It has a Content-Length and is never chunked: some clients can't take that."""
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return Response(text, status, mimetype="application/json")


def prediction(answer: Answer, timings: dict[str, float], request_id: str) -> dict[str, Any]:
    """The body of `/predict`. `predictions` and `inference_time` were promised and stay."""
    return {
        "predictions": [
            {
                "bbox": list(found.box),
                "class": found.label,
                "score": round(found.score, 4),
            }
            for found in answer.detections
        ],
        "inference_time": timings["inference"],
        "model": answer.model,
        "device": answer.device,
        "degraded": answer.degraded,
        "image": {"width": answer.width, "height": answer.height},
        "timings": timings,
        "request_id": request_id,
    }


def degraded(answer: Answer) -> dict[str, str]:
    """The header of an answer that the CPU gave in an Edge TPU's place; of any dialect."""
    return {"X-Reef-Degraded": answer.device} if answer.degraded else {}


def server_timing(timings: dict[str, float]) -> str:
    """The `Server-Timing` header (W3C), which browsers and the benchmark read."""
    return ", ".join(f"{stage};dur={milliseconds:g}" for stage, milliseconds in timings.items())
