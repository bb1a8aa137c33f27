"""Pools on a host of stand-in Edge TPUs: real device processes, the real runtime, a C library."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import models
from app.devices import discovery, telemetry
from app.devices.job import Inference
from app.devices.pool import Pool
from app.devices.status import DeviceStatus
from app.devices.telemetry import Sighting
from app.models import Catalogue
from tests import colour_model
from tests.standin import compiled_model
from tests.standin.host import Host
from tests.support import make_settings, wait_for

SIZE = 32
PCI, PCI_2, USB = "pci:0000:03:00.0", "pci:0000:04:00.0", "usb:2-1"
APEX, APEX_2, PORT = "apex_0", "apex_1", "2-1"


def catalogue(folder: Path, *, with_cpu: bool = True) -> Catalogue:
    """The compiled model, and the colour model as its counterpart on the CPU."""
    told = {"model": str(compiled_model.write(folder / "finder_edgetpu.tflite", SIZE))}
    if with_cpu:
        told["model_cpu"] = str(colour_model.write(folder / "colour.tflite"))
    return models.load(make_settings(**told))


def picture(number: int) -> NDArray[np.uint8]:
    """A tensor unlike all others; its red says its number modulo 256."""
    seed = int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "little")
    tensor = np.random.default_rng(seed).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    tensor[..., 0] = number % 256
    return tensor


class Rig:
    """A pool on a host, and a watch's eye that opens when a test says so."""

    def __init__(self, host: Host, library: Path, served: Catalogue, **options: Any) -> None:
        self.host = host
        self.served = served
        self.choice = discovery.choose(options.pop("devices", ("auto",)))
        defaults: dict[str, Any] = {
            "queue_limit": 64,
            "run_dir": host.root / "run",
            "backoff_max_s": 0.2,
            "library": str(library),
            "host_root": host.root,
            "expect_edgetpu": self.choice.asks_for_edgetpu,
        }
        self.pool = Pool([], served, **defaults | options)
        self.look()

    def see(self) -> list[Sighting]:
        """What a watch would see."""
        found = discovery.discover("test", 1, self.host.root, self.choice)
        return [telemetry.look(device, self.host.root) for device in found]

    def look(self) -> None:
        """What a watch does, once."""
        self.pool.update(self.see())

    def start(self, *ready: str) -> "Rig":
        """Start the pool and wait until these devices, or all, are ready."""
        self.pool.start()
        for device in ready or [each.id for each in self.pool.status()]:
            self.wait(device, "ready")
        return self

    def status(self, device: str) -> DeviceStatus:
        """How a device is."""
        (found,) = (each for each in self.pool.status() if each.id == device)
        return found

    def state(self, device: str) -> str:
        """A device's state; empty if it isn't known."""
        return next((each.state for each in self.pool.status() if each.id == device), "")

    def wait(self, device: str, state: str, *, looking: bool = False) -> None:
        """Wait until a device is in a state, while looking at the host if told to."""

        def reached() -> bool:
            if looking:
                self.look()
            return self.state(device) == state

        wait_for(reached, 60)

    def kill(self, device: str, signal: int) -> None:
        """Send a signal to a device's process."""
        pid = self.status(device).pid
        assert pid
        os.kill(pid, signal)

    def infer(self, number: int = 0, within_s: float = 30.0, model: str | None = None) -> str:
        """One inference; checks that the answer is the picture's; returns the device."""
        return self.ask(number, within_s, model).device

    def ask(self, number: int = 0, within_s: float = 30.0, name: str | None = None) -> Inference:
        """One inference by a model, the default one unless named; checks that the answer is the
        picture's."""
        tensor = picture(number)
        model = self.served.get(name)
        deadline = time.monotonic() + within_s
        answer = self.pool.infer(model, dict.fromkeys(model.layouts, tensor), deadline)
        outputs = answer.outputs
        by_class = dict(zip(outputs.classes.tolist(), outputs.scores.tolist(), strict=True))
        if answer.variant.kind == "cpu":
            assert round(255 * by_class[0.0]) == number % 256
        else:
            said = sum(round((by_class[float(k)] - 0.5) * 512) << 8 * k for k in range(8))
            assert said == compiled_model.hash_of(tensor)
        return answer


MakeRig = Callable[..., Rig]
