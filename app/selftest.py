"""What a device must show before it is trusted with a request: a known picture, rightly read."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app import detection, imaging
from app.detection import Outputs
from app.errors import ModelError, RequestError
from app.models import Model, Variant

# The embedded model finds its object with 0.8; a compiled twin's scores differ by a few hundredths.
MIN_SCORE = 0.4
MAX_PIXELS = 25_000_000
SAME = 1e-3  # for what float32 leaves open after the chip: dequantisation, decoded boxes


class SelfTestError(Exception):
    """The device answered, but not as a sound device would."""


@dataclass(frozen=True)
class SelfTest:
    """A tensor and what to make of the answer."""

    tensor: NDArray[np.uint8]
    check: Callable[[Outputs], None]
    """Raises SelfTestError if these can't be the right outputs."""


def prepare(model: Model, variant: Variant) -> SelfTest:
    """The self-test of one variant.

    Where the manifest names a picture, the expected object must be found in it; otherwise the
    outputs for a grey picture must be numbers in their ranges. Raises ModelError if the picture
    can't be read.
    """
    layout = variant.layout
    if model.selftest is None:
        grey = np.full((1, layout.height, layout.width, 3), 128, np.uint8)
        return SelfTest(grey, check_sane)
    expect = model.selftest.expect
    path = model.selftest.path
    try:
        picture = imaging.decode(path.read_bytes(), (layout.width, layout.height), MAX_PIXELS)
    except (OSError, RequestError) as error:
        raise ModelError(f"{path}: is no picture for a self-test ({error}); restore it") from error
    tensor, fit = imaging.fit(picture, layout)

    def check(outputs: Outputs) -> None:
        check_sane(outputs)
        found = detection.read(outputs, fit, variant, min_score=MIN_SCORE)
        if expect.isdisjoint(each.label for each in found):
            seen = ", ".join(f"{each.label} {each.score:.2f}" for each in found) or "nothing"
            raise SelfTestError(
                f"found {seen} in the test picture, not a {' or a '.join(sorted(expect))}"
            )

    return SelfTest(tensor, check)


def check_sane(outputs: Outputs) -> None:
    """Raise SelfTestError unless the outputs are finite and the scores lie between 0 and 1."""
    if not 0 <= outputs.count <= len(outputs.scores):
        raise SelfTestError(f"gave {outputs.count} as the number of its detections")
    rows = outputs.rows
    scores = outputs.scores[rows]
    if not (np.isfinite(outputs.boxes[rows]).all() and np.isfinite(outputs.classes[rows]).all()):
        raise SelfTestError("gave boxes or classes that are no numbers")
    if not ((scores >= 0) & (scores <= 1 + SAME)).all():
        raise SelfTestError("gave scores that are not between 0 and 1")


def check_same(outputs: Outputs, first: Outputs) -> None:
    """Raise SelfTestError unless an Edge TPU's answer is the one that it gave at first: it
    computes with integers, so the same picture has the same answer. An old answer has not."""
    rows = first.rows
    pairs = (
        (outputs.boxes, first.boxes), (outputs.classes, first.classes),
        (outputs.scores, first.scores),
    )  # fmt: skip
    if outputs.count != first.count or not all(
        np.allclose(now[rows], before[rows], atol=SAME) for now, before in pairs
    ):
        raise SelfTestError("gave another answer for the test picture than when it was started")
