"""Whether an answer is one, and the same as before: fast but wrong is worth nothing.

A detector is deterministic: the same picture, model and kind of device give the same answer to the
last digit. Another device may differ in digits, so each is compared with its own first answer; a
golden file, which may come from another computer, is compared within tolerances.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.benchmarking.errors import WrongUsage

Predictions = list[dict[str, Any]]

PIXELS = 3.0  # that a box's edges may differ from a golden file's
SCORE = 0.03  # that a score may


class Malformed(Exception):
    """The body is no prediction; the text says what is amiss."""


@dataclass(frozen=True)
class Judged:
    """What an answer is worth."""

    outcome: str
    """ok, malformed or different"""
    error: str = ""
    model: str = ""
    device: str = ""
    degraded: int | None = None
    detections: int | None = None
    classes: str = ""
    mean_score: float | None = None
    digest: str = ""


class Answers:
    """The first answer to each picture, model and device; later ones are held against it."""

    def __init__(self, golden: Mapping[str, Predictions] | None = None) -> None:
        self._golden = golden
        self._first: dict[tuple[str, str, str], tuple[str, str, Predictions]] = {}

    def judge(self, picture: str, body: bytes) -> Judged:
        """Judge an answer with status 200."""
        try:
            answer = read(body)
        except Malformed as error:
            return Judged("malformed", str(error))
        found: Predictions = answer["predictions"]
        model, device = str(answer.get("model", "")), str(answer.get("device", ""))
        digest = hashlib.blake2s(json.dumps(found).encode(), digest_size=6).hexdigest()
        first = self._first.get((picture, model, device))
        if first is None:
            first = self._first[picture, model, device] = (
                digest,
                self._amiss(picture, found),
                found,
            )
        amiss = "" if digest == first[0] else difference(first[2], found)
        amiss = amiss or (first[1] if digest == first[0] else self._amiss(picture, found))
        return Judged(
            "different" if amiss else "ok",
            amiss,
            model,
            device,
            int(bool(answer.get("degraded", False))),
            len(found),
            ";".join(each["class"] for each in found),
            sum(each["score"] for each in found) / len(found) if found else None,
            digest,
        )

    def first(self) -> list[dict[str, Any]]:
        """The first answer of each picture, model and device, for the summary."""
        return [
            {"image": picture, "model": model, "device": device, "predictions": found}
            for (picture, model, device), (_, _, found) in sorted(
                self._first.items(), key=lambda each: each[0]
            )
        ]

    def _amiss(self, picture: str, found: Predictions) -> str:
        if self._golden is None:
            return ""
        if picture not in self._golden:
            return "the golden file does not have this picture"
        amiss = difference(self._golden[picture], found, PIXELS, SCORE)
        return f"not as in the golden file: {amiss}" if amiss else ""


def read(body: bytes) -> dict[str, Any]:
    """The JSON of a prediction. Raises Malformed."""
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise Malformed("the answer is no JSON") from error
    found = answer.get("predictions") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise Malformed("the answer has no list 'predictions'")
    for each in found:
        if not (
            isinstance(each, dict)
            and isinstance(each.get("class"), str)
            and _number(each.get("score"))
            and isinstance(box := each.get("bbox"), list)
            and len(box) == 4
            and all(_number(edge) for edge in box)
        ):
            raise Malformed("a prediction lacks its class, its score or its bbox")
    return dict(answer)


def difference(
    first: Predictions, second: Predictions, pixels: float = 0.0, score: float = 0.0
) -> str:
    """How two answers differ, in words; nothing when they don't, within the tolerances.

    Objects may come in another order when their scores are within the tolerance.
    """
    if len(first) != len(second):
        return f"{len(second)} objects instead of {len(first)}"
    left = list(second)
    for wanted in first:
        match = next((each for each in left if _alike(wanted, each, pixels, score)), None)
        if match is None:
            return f"no {wanted['class']} with score {wanted['score']:g} at {wanted['bbox']}"
        left.remove(match)
    if not pixels and first != second:
        return "the same objects in another order"
    return ""


def load_golden(path: Path) -> dict[str, Predictions]:
    """A golden file, as `--save-golden` writes it. Raises WrongUsage."""
    try:
        content = json.loads(path.read_text())
        return {
            name: read(json.dumps(each).encode())["predictions"] for name, each in content.items()
        }
    except (OSError, ValueError, AttributeError, Malformed) as error:
        raise WrongUsage(f"--golden: {path}: {error}") from error


def golden(first: list[dict[str, Any]]) -> str:
    """What `--save-golden` writes: the predictions of each picture."""
    content = {each["image"]: {"predictions": each["predictions"]} for each in first}
    return json.dumps(content, indent=1) + "\n"


def _alike(one: dict[str, Any], other: dict[str, Any], pixels: float, score: float) -> bool:
    return (
        one["class"] == other["class"]
        and abs(one["score"] - other["score"]) <= score
        and all(abs(a - b) <= pixels for a, b in zip(one["bbox"], other["bbox"], strict=True))
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
