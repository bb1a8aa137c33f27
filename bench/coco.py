"""Score detections as COCO does: average precision over IoU 0.50 to 0.95, by pycocotools.

The accuracy set is a directory with `images/` and an `instances.json` in COCO's form.
"""

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MISSING = (
    "measurements need the accuracy set: a directory with images/ and instances.json in COCO's "
    "form, and {path} is not there"
)
IOU_50 = 0  # the first of COCO's IoU thresholds: 0.50, 0.55 … 0.95
ALL_AREAS = 0
HUNDRED_BOXES = 2  # COCO keeps at most 1, 10 or 100 detections of a picture


@dataclass(frozen=True)
class Photo:
    """A photo of the accuracy set."""

    id: int
    path: Path


@dataclass(frozen=True)
class Detection:
    """A box found in a photo: [x1, y1, x2, y2] in its pixels; `class_name` as COCO names it."""

    photo: Photo
    class_name: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Scores:
    """Average precisions in percent: over IoU 0.50 to 0.95, and at 0.50."""

    map: float
    ap50: float
    person: float
    person50: float


class AccuracySet:
    """The photos and their true boxes. FileNotFoundError says what is missing."""

    def __init__(self, directory: Path) -> None:
        instances, images = directory / "instances.json", directory / "images"
        for path in (instances, images):
            if not path.exists():
                raise FileNotFoundError(MISSING.format(path=path))
        self._truth = COCO()
        self._truth.dataset = json.loads(instances.read_text())
        with _quiet():
            self._truth.createIndex()
        self.photos = [
            Photo(image["id"], images / image["file_name"])
            for image in self._truth.dataset["images"]
        ]
        self._category_ids = {
            category["name"]: category["id"] for category in self._truth.dataset["categories"]
        }

    def score(self, detections: Iterable[Detection]) -> Scores:
        """Score what was found in all photos; classes that COCO does not know are left out."""
        results = [
            {
                "image_id": found.photo.id,
                "category_id": self._category_ids[found.class_name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": found.score,
            }
            for found in detections
            for x1, y1, x2, y2 in [found.box]
            if found.class_name in self._category_ids
        ]
        if not results:
            return Scores(0.0, 0.0, 0.0, 0.0)
        with _quiet():
            evaluation = COCOeval(self._truth, self._truth.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        # By IoU threshold, recall, class, area, number of boxes; -1 where a class has no boxes.
        precision = evaluation.eval["precision"][..., ALL_AREAS, HUNDRED_BOXES]
        person = evaluation.params.catIds.index(self._category_ids["person"])

        def percent(part: np.ndarray) -> float:
            return float(100 * part[part > -1].mean())

        return Scores(
            map=percent(precision),
            ap50=percent(precision[IOU_50]),
            person=percent(precision[:, :, person]),
            person50=percent(precision[IOU_50, :, person]),
        )


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """pycocotools tells its progress on stdout, and has no switch for it."""
    return contextlib.redirect_stdout(io.StringIO())
