"""What is detected without HTTP: a tensor that somebody else has fitted."""

import time

import numpy as np
import pytest
from prometheus_client import generate_latest

from app.errors import BadParameter
from app.imaging import Fit, Fitted
from app.service import Query, Service
from app.stages import Stages


def fitted(service: Service, fit: Fit, width: int | None = None) -> Fitted:
    """A blue tensor for the default model, or one of another width."""
    (layout,) = service.catalogue.default.layouts
    tensor = np.zeros((1, layout.height, width or layout.width, 3), np.uint8)
    tensor[..., 2] = 255
    return Fitted(tensor, fit)


def query(service: Service) -> Query:
    """All detections."""
    return Query(service.catalogue.default, 0.5, 10, frozenset())


def test_a_ready_tensor_is_detected_and_counted(service: Service) -> None:
    own = Service(service.settings, service.catalogue, service.pool)
    stages = Stages()
    answer = own.detect(fitted(own, Fit(1, 1)), query(own), stages, time.monotonic() + 30)
    (blue,) = answer.detections
    assert (blue.label, answer.width, answer.height) == ("blue", 1, 1)
    assert blue.box == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.06)
    assert stages.seconds["decode"] == 0 < stages.seconds["inference"]
    shown = generate_latest(own.metrics.registry).decode()
    assert 'reef_stage_seconds_count{device="cpu",stage="inference"} 1.0' in shown


def test_a_region_has_its_place_in_the_picture(service: Service) -> None:
    region = Fit(200, 100, x=400, y=50)
    answer = service.detect(
        fitted(service, region), query(service), Stages(), time.monotonic() + 30
    )
    assert answer.detections[0].box == pytest.approx((450, 75, 550, 125))


def test_a_tensor_of_another_shape_is_refused(service: Service) -> None:
    with pytest.raises(BadParameter, match=r"takes a uint8 tensor of shape \(1, \d+, \d+, 3\)"):
        service.detect(fitted(service, Fit(1, 1), 7), query(service), Stages(), time.monotonic())
