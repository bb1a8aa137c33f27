"""What a device must show before it is trusted."""

import math
from pathlib import Path

import numpy as np
import pytest

from app import models, selftest
from app.detection import Outputs
from app.models import Model, SelfTestPicture
from app.selftest import SelfTestError
from tests import colour_model
from tests.support import CAT, make_settings

SOUND = [[0.1, 0.1, 0.9, 0.9]], [0.0], [0.9], 1


def outputs(boxes: object, classes: object, scores: object, count: float) -> Outputs:
    """Outputs for one detection."""
    return Outputs(
        np.array(boxes, np.float32), np.array(classes, np.float32), np.array(scores, np.float32),
        count,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    """The default model, which is tested with a picture of a person."""
    return models.load(make_settings()).default


def test_a_person_found_in_the_picture_of_a_person_passes(model: Model) -> None:
    test = selftest.prepare(model, model.variants["cpu"])
    assert test.tensor.shape == (1, 320, 320, 3)
    test.check(outputs(*SOUND))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (([[0.1, 0.1, 0.9, 0.9]], [1.0], [0.9], 1), "found bicycle 0.90 .*, not a person"),
        (([[0.1, 0.1, 0.9, 0.9]], [0.0], [0.39], 1), "found nothing .*, not a person"),
        (([[0.1, 0.1, 0.9, 0.9]], [0.0], [0.9], 0), "found nothing .*, not a person"),
    ],
)
def test_a_person_not_found_fails(
    raw: tuple[object, object, object, float], words: str, model: Model
) -> None:
    test = selftest.prepare(model, model.variants["cpu"])
    with pytest.raises(SelfTestError, match=words):
        test.check(outputs(*raw))


INSANE = [
    (([[math.nan, 0, 1, 1]], [0], [0.5], 1), "no numbers"),
    (([[0, 0, math.inf, 1]], [0], [0.5], 1), "no numbers"),
    (([[0, 0, 1, 1]], [math.nan], [0.5], 1), "no numbers"),
    (([[0, 0, 1, 1]], [0], [math.nan], 1), "not between 0 and 1"),
    (([[0, 0, 1, 1]], [0], [1.5], 1), "not between 0 and 1"),
    (([[0, 0, 1, 1]], [0], [-0.1], 1), "not between 0 and 1"),
    (([[0, 0, 1, 1]], [0], [0.5], 2), "as the number of its detections"),
    (([[0, 0, 1, 1]], [0], [0.5], -1), "as the number of its detections"),
    (([[0, 0, 1, 1]], [0], [0.5], math.nan), "as the number of its detections"),
]


@pytest.mark.parametrize(("raw", "words"), INSANE)
def test_outputs_that_no_sound_device_gives_fail(
    raw: tuple[object, object, object, float], words: str
) -> None:
    with pytest.raises(SelfTestError, match=words):
        selftest.check_sane(outputs(*raw))


def test_a_model_without_a_test_picture_gets_a_grey_one_and_must_be_sane(tmp_path: Path) -> None:
    path = colour_model.write(tmp_path / "colour.tflite", width=48, height=24)
    model = models.load(make_settings(model=str(path))).default
    test = selftest.prepare(model, model.variants["cpu"])
    assert test.tensor.shape == (1, 24, 48, 3)
    test.check(outputs(*SOUND))
    with pytest.raises(SelfTestError):
        test.check(outputs(*INSANE[0][0]))


def test_the_expected_object_is_the_manifests(model: Model) -> None:
    cat = Model(model.name, model.variants, SelfTestPicture(CAT, frozenset({"cat"})))
    test = selftest.prepare(cat, model.variants["cpu"])
    with pytest.raises(SelfTestError, match="not a cat"):
        test.check(outputs(*SOUND))
