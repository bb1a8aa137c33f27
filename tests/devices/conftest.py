"""Real device processes on the colour model, which infers in microseconds."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app import models, settings
from app.devices import link
from app.devices.discovery import Device
from app.devices.job import Inference
from app.devices.link import Link, Setup
from app.devices.pool import Pool
from app.devices.status import DeviceStatus
from app.models import Catalogue, Layout
from tests import colour_model
from tests.devices import edgetpu
from tests.devices.edgetpu import MakeRig, Rig
from tests.standin.host import Host
from tests.support import wait_for

LAYOUT = Layout(32, 32, "stretch")
CPU = Device("cpu", "cpu", "a test's CPU", "cpu-test")
TWO_CORES = replace(CPU, threads=2)


class Bench:
    """A pool with one CPU device, the pictures to try it with, and the faults to give it."""

    def __init__(
        self, catalogue: Catalogue, folder: Path, device: Device = CPU, **options: object
    ) -> None:
        self.catalogue = catalogue
        self.fault = folder / "fault"
        self.behave("")
        defaults: dict[str, object] = {
            "queue_limit": 32,
            "backoff_max_s": 0.0,
            "run_dir": folder,
            "start_process": self._start,
        }
        self.pool = Pool([device], catalogue, **defaults | options)  # type: ignore[arg-type]

    def _start(self, setup: Setup) -> Link:
        command = [sys.executable, "-m", "tests.devices.faulty_worker"]
        return Link(setup, command, {**link.environment(), "FAULT_FILE": str(self.fault)})

    def start(self) -> "Bench":
        """Start the device, and wait until it is ready."""
        self.pool.start()
        self.wait_ready()
        return self

    @property
    def status(self) -> DeviceStatus:
        """The device."""
        return self.pool.status()[0]

    @property
    def pid(self) -> int:
        """The device process's."""
        pid = self.status.pid
        assert pid is not None
        return pid

    def wait_ready(self) -> None:
        """Wait until the device is ready."""
        wait_for(lambda: self.status.state == "ready")

    def behave(self, fault: str) -> None:
        """What the device does from its next inference on; see faulty_worker."""
        written = self.fault.with_suffix(".new")
        written.write_text(fault)
        written.replace(self.fault)

    def kill(self, signal: int) -> int:
        """Send a signal to the device process; returns its pid."""
        pid = self.pid
        os.kill(pid, signal)
        return pid

    def infer(self, red: int = 255, within_s: float = 20.0, client: str = "") -> int:
        """One inference on a tensor that is as red as said; returns how red the answer says."""
        picture = np.zeros((1, LAYOUT.height, LAYOUT.width, 3), np.uint8)
        picture[..., 0] = red
        tensors: dict[Layout, NDArray[np.uint8]] = {LAYOUT: picture}
        deadline = time.monotonic() + within_s
        return redness(self.pool.infer(self.catalogue.default, tensors, deadline, client))


def redness(answer: Inference) -> int:
    """How red, from 0 to 255, the tensor was that an answer is for."""
    outputs = answer.outputs
    red = outputs.scores[outputs.classes == 0].max()
    return round(255 * float(red))


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The colour model, checked and described."""
    path = colour_model.write(tmp_path_factory.mktemp("models") / "colour.tflite")
    return models.load(settings.load({"REEF_MODEL": str(path)}))


@pytest.fixture
def make_bench(catalogue: Catalogue, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches, and ends their device processes after the test."""
    made: list[Bench] = []

    def make(serving: Catalogue = catalogue, device: Device = CPU, **options: object) -> Bench:
        made.append(Bench(serving, tmp_path, device, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.pool.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """A bench whose device is ready."""
    return make_bench().start()


# ---------------------------------------------------------------------------- Edge TPUs


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The compiled model with its CPU counterpart."""
    return edgetpu.catalogue(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served_alone(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The compiled model, which the CPU can't stand in for."""
    return edgetpu.catalogue(tmp_path_factory.mktemp("alone"), with_cpu=False)


@pytest.fixture
def make_rig(host: Host, edgetpu_library: Path, served: Catalogue) -> Iterator[MakeRig]:
    """Makes rigs, and ends their device processes after the test."""
    made: list[Rig] = []

    def make(
        serving: Catalogue = served, *, library: Path = edgetpu_library, **more: object
    ) -> Rig:
        made.append(Rig(host, library, serving, **more))
        return made[-1]

    yield make
    for rig in made:
        rig.pool.close()
    assert host.happened("double-open") == []
