"""Raw model outputs → detections. Pure."""

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.imaging import Fit
from app.models import Variant

DECIMALS = 1  # of a pixel; a box that is thinner shows nothing


@dataclass(frozen=True, eq=False)
class Outputs:
    """The four outputs of TFLite_Detection_PostProcess, for n detections, all float32.

    `boxes` (n, 4) are [ymin, xmin, ymax, xmax] as fractions of the tensor; `classes` (n) are class
    ids and `scores` (n) from 0 to 1; only the first `count` detections mean anything.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.float32]
    scores: NDArray[np.float32]
    count: float

    @property
    def rows(self) -> slice:
        """The rows that mean something."""
        count = int(self.count) if math.isfinite(self.count) else 0
        return slice(0, min(max(count, 0), len(self.scores)))

    @classmethod
    def unpack(cls, values: NDArray[np.float32], detections: int) -> "Outputs":
        """The outputs from one array: boxes, classes, scores and count, one behind the other."""
        n = detections
        return cls(
            values[: 4 * n].reshape(n, 4),
            values[4 * n : 5 * n],
            values[5 * n : 6 * n],
            float(values[6 * n]),
        )


@dataclass(frozen=True)
class Detection:
    """One object found. `box` is (x1, y1, x2, y2) in pixels of the upright picture as sent."""

    label: str
    score: float
    box: tuple[float, float, float, float]


def read(
    outputs: Outputs,
    fit: Fit,
    variant: Variant,
    *,
    min_score: float = 0.0,
    max_results: int = 100,
    only: Set[str] = frozenset(),
) -> list[Detection]:
    """The detections of at least `min_score`, best first, at most `max_results`.

    `only` names the labels wanted; empty means all. Rows that hold no number are left out, boxes
    are clamped to the picture, and boxes outside it, or with no width or height, are left out.
    """
    rows = outputs.rows
    kept = np.flatnonzero(outputs.scores[rows] >= min_score)
    kept = kept[np.argsort(-outputs.scores[kept], kind="stable")]
    columns = (outputs.scores, outputs.classes, outputs.boxes)
    found: list[Detection] = []
    for score, number, box in zip(*(column[kept].tolist() for column in columns), strict=True):
        if not all(map(math.isfinite, (*box, number))):
            continue
        label = variant.label(int(number))
        if only and label not in only:
            continue
        x1, y1, x2, y2 = (round(corner, DECIMALS) for corner in fit.to_picture(*box))
        if x2 <= x1 or y2 <= y1:
            continue
        found.append(Detection(label, min(score, 1.0), (x1, y1, x2, y2)))
        if len(found) == max_results:
            break
    return found
