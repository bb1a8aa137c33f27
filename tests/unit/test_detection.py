"""Raw outputs → detections, whatever a broken model or device puts into them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app import detection, models
from app.detection import Outputs
from app.imaging import Fit
from tests.support import make_settings

NAN, INFINITE = math.nan, math.inf
WHOLE = (0.0, 0.0, 1.0, 1.0)
PICTURE = Fit(200, 100)

Row = tuple[tuple[float, float, float, float], float, float]
"""[ymin, xmin, ymax, xmax], class and score."""


VARIANT = models.load(make_settings()).default.variants["cpu"]
"""The default model: 90 classes, `person` the first, no name for class 11."""


def outputs(*rows: Row, count: float | None = None) -> Outputs:
    """Outputs as a device returns them: one array."""
    boxes = [corner for box, _, _ in rows for corner in box]
    classes, scores = [row[1] for row in rows], [row[2] for row in rows]
    values = np.array([*boxes, *classes, *scores, len(rows) if count is None else count])
    with np.errstate(over="ignore"):
        return Outputs.unpack(values.astype(np.float32), len(rows))


def test_boxes_are_in_pixels_with_x_before_y() -> None:
    raw = outputs(((0.1, 0.2, 0.5, 0.75), 0, 0.9))
    (found,) = detection.read(raw, PICTURE, VARIANT)
    assert (found.label, round(found.score, 6)) == ("person", 0.9)
    assert found.box == pytest.approx((40, 10, 150, 50), abs=1e-4)


def test_detections_are_sorted_by_score_and_ties_keep_the_models_order() -> None:
    scores = [0.5, 0.9, 0.7] * 30
    raw = outputs(*((WHOLE, number, score) for number, score in enumerate(scores)))
    found = [each.label for each in detection.read(raw, PICTURE, VARIANT)]
    best_first = sorted(range(90), key=lambda number: -scores[number])
    assert found == [VARIANT.label(number) for number in best_first]


@pytest.mark.parametrize(
    ("min_score", "kept"), [(0.0, 4), (0.25, 3), (0.250001, 2), (0.75, 1), (1.0, 0)]
)
def test_min_score_is_inclusive(min_score: float, kept: int) -> None:
    raw = outputs(*((WHOLE, 0, score) for score in (0.75, 0.5, 0.25, 0.0)))
    assert len(detection.read(raw, PICTURE, VARIANT, min_score=min_score)) == kept


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_max_results_keeps_the_best(most: int) -> None:
    raw = outputs(*((WHOLE, number, 0.1 + number / 10) for number in range(3)))
    found = detection.read(raw, PICTURE, VARIANT, max_results=most)
    assert [each.label for each in found] == ["car", "bicycle", "person"][:most]


def test_only_the_labels_that_are_wanted_count_towards_max_results() -> None:
    raw = outputs((WHOLE, 2, 0.9), (WHOLE, 2, 0.8), (WHOLE, 0, 0.7), (WHOLE, 1, 0.6))
    found = detection.read(raw, PICTURE, VARIANT, max_results=2, only={"person", "bicycle"})
    assert [each.label for each in found] == ["person", "bicycle"]


def test_an_empty_choice_of_labels_means_all() -> None:
    assert len(detection.read(outputs((WHOLE, 2, 0.9)), PICTURE, VARIANT, only=frozenset())) == 1


def test_nothing_found_is_an_empty_list() -> None:
    assert detection.read(outputs((WHOLE, 0, 0.9), count=0), PICTURE, VARIANT) == []


BROKEN = [
    ((NAN, 0.0, 1.0, 1.0), 0.0, 0.9),
    ((0.0, 0.0, 1.0, INFINITE), 0.0, 0.9),
    ((0.0, -INFINITE, 1.0, 1.0), 0.0, 0.9),
    (WHOLE, NAN, 0.9),
    (WHOLE, INFINITE, 0.9),
    (WHOLE, 0.0, NAN),
    (WHOLE, 0.0, -INFINITE),
]


@pytest.mark.parametrize("row", BROKEN)
def test_a_row_that_holds_no_number_is_left_out(row: Row) -> None:
    raw = outputs(row, (WHOLE, 1, 0.5), row)
    assert [found.label for found in detection.read(raw, PICTURE, VARIANT)] == ["bicycle"]


@pytest.mark.parametrize(
    ("count", "kept"),
    [(0, 0), (1, 1), (2, 2), (1.9, 1), (3, 2), (1e9, 2), (INFINITE, 0), (-1, 0), (-1e9, 0),
     (-INFINITE, 0), (NAN, 0)],
)  # fmt: skip
def test_only_count_rows_mean_anything_and_never_more_than_there_are(
    count: float, kept: int
) -> None:
    raw = outputs((WHOLE, 0, 0.9), (WHOLE, 1, 0.8), count=count)
    assert len(detection.read(raw, PICTURE, VARIANT)) == kept


@pytest.mark.parametrize(
    ("number", "label"),
    [(0, "person"), (89, "toothbrush"), (11, "class_11"), (90, "class_90"), (91, "class_91"),
     (1e6, "class_1000000"), (-1, "class_-1")],
)  # fmt: skip
def test_a_class_without_a_label_is_called_by_its_number(number: float, label: str) -> None:
    (found,) = detection.read(outputs((WHOLE, number, 0.9)), PICTURE, VARIANT)
    assert found.label == label


@pytest.mark.parametrize(
    ("box", "clamped"),
    [
        ((-0.5, -0.5, 1.5, 1.5), (0, 0, 200, 100)),
        ((0.5, 0.5, 9e9, 9e9), (100, 50, 200, 100)),
        ((-3e38, -3e38, 3e38, 3e38), (0, 0, 200, 100)),
    ],
)
def test_a_box_is_clamped_to_the_picture(
    box: tuple[float, float, float, float], clamped: tuple[float, float, float, float]
) -> None:
    (found,) = detection.read(outputs((box, 0, 0.9)), PICTURE, VARIANT)
    assert found.box == clamped


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 1.1, 1.0, 1.2),
        (-0.2, 0.0, -0.1, 1.0),
        (0.5, 0.5, 0.5, 0.9),
        (0.9, 0.1, 0.1, 0.9),
        (0.0, 0.0, 1.0, 0.0002),
    ],
)
def test_a_box_outside_the_picture_or_without_area_is_left_out(
    box: tuple[float, float, float, float],
) -> None:
    assert detection.read(outputs((box, 0, 0.9)), PICTURE, VARIANT) == []


def test_a_score_above_one_is_one() -> None:
    (found,) = detection.read(outputs((WHOLE, 0, 1.0000001)), PICTURE, VARIANT)
    assert found.score == 1.0


def test_a_box_in_a_letterboxed_tensor_is_mapped_to_the_picture() -> None:
    lies = Fit(200, 100, top=0.25, down=0.5)
    (found,) = detection.read(outputs(((0.25, 0.0, 0.5, 0.5), 0, 0.9)), lies, VARIANT)
    assert found.box == (0, 0, 100, 50)


def test_the_padding_of_a_letterboxed_tensor_is_not_the_picture() -> None:
    lies = Fit(200, 100, top=0.25, down=0.5)
    assert detection.read(outputs(((0.0, 0.0, 0.25, 1.0), 0, 0.9)), lies, VARIANT) == []


numbers = st.floats(width=32) | st.sampled_from([0.0, 1.0, 0.5, 3e38, -3e38])
rows = st.tuples(st.tuples(numbers, numbers, numbers, numbers), numbers, numbers)


@given(st.lists(rows, min_size=1, max_size=8), numbers)
def test_whatever_a_device_says_the_answer_is_sound(raw: list[Row], count: float) -> None:
    found = detection.read(outputs(*raw, count=count), PICTURE, VARIANT, max_results=5)
    json.dumps([(each.label, each.score, each.box) for each in found], allow_nan=False)
    assert len(found) <= 5
    assert found == sorted(found, key=lambda each: -each.score)
    for each in found:
        x1, y1, x2, y2 = each.box
        assert 0 <= each.score <= 1
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100


def test_outputs_are_unpacked_without_a_copy() -> None:
    values: NDArray[np.float32] = np.arange(13, dtype=np.float32)
    raw = Outputs.unpack(values, 2)
    assert raw.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (raw.classes.tolist(), raw.scores.tolist(), raw.count) == ([8, 9], [10, 11], 12)
    assert np.shares_memory(raw.boxes, values)
