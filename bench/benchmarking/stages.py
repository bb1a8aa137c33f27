"""The parts of a request's time: what they are called, and which are worth a place. Pure."""

from collections.abc import Mapping, Sequence

from bench.benchmarking.statistics import Figures

NIL_SHARE = 0.005  # of a request: it could not be seen

ABOUT: Mapping[str, str] = {
    "waiting to be sent": "the client was late, or all its connections waited for answers",
    "outside": "the network, the HTTP server before the request is read, and this client",
    "read": "the server reads the body",
    "decode": "from a JPEG's bytes to the model's input",
    "queue": "the picture waits for a device",
    "inference": "the device works",
    "post": "from the model's output to the answer",
    "between": "the server waits for its turn between these steps",
}
"""In the order of a request."""


def drawn_stages(levels: Sequence[Figures]) -> list[str]:
    """The stages that are no less than 0.5 % of a request at some level."""
    return [stage for stage in ABOUT if any(_share(level, stage) >= NIL_SHARE for level in levels)]


def nil_stages(levels: Sequence[Figures]) -> list[str]:
    """The others."""
    drawn = drawn_stages(levels)
    return [stage for stage in ABOUT if stage not in drawn]


def _share(level: Figures, stage: str) -> float:
    whole = sum(float(part["mean"]) for part in level["stages_ms"].values())
    return float(level["stages_ms"][stage]["mean"]) / whole if whole else 0.0
