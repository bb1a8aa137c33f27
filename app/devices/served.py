"""A model as one device serves it."""

from dataclasses import dataclass
from functools import cached_property

from app.devices.link import ModelFile
from app.models import Variant
from app.selftest import SelfTest


@dataclass(frozen=True)
class Served:
    """The variant for a device's kind, and what proves that the device runs it."""

    variant: Variant
    selftest: SelfTest

    @cached_property
    def file(self) -> ModelFile:
        """What the device process must know."""
        variant = self.variant
        return ModelFile(
            name=variant.name,
            path=str(variant.path),
            width=variant.layout.width,
            height=variant.layout.height,
            outputs=variant.outputs,
            detections=variant.detections,
            normalisation=variant.normalisation,
            regular_nms=variant.regular_nms,
            sha256=variant.sha256,
        )
