"""What is measured against: the default model in a bare loop, without any server around it.

The functions keep one interpreter per process, so they belong in a process of their own.
"""

import time
from functools import cache
from typing import Any

from app import imaging, models
from app.devices.discovery import MAX_USEFUL_THREADS, available_cores
from app.devices.runtime import LoadedModel
from app.devices.served import Served
from app.selftest import MAX_PIXELS, SelfTest, check_sane
from app.settings import Settings
from bench.pictures import TILE, camera_pictures

WARM_UP = 20


def threads() -> int:
    """How many threads the server gives to an inference on the CPU, when not told otherwise."""
    return min(available_cores(), MAX_USEFUL_THREADS)


def count(number: int) -> list[float]:
    """The seconds of so many bare `invoke()`s, one behind the other, for pictures in turn."""
    interpreter, index, tensors = _loaded()
    seconds = []
    for turn in range(number):
        interpreter.set_tensor(index, tensors[turn % len(tensors)])
        began = time.perf_counter()
        interpreter.invoke()
        seconds.append(time.perf_counter() - began)
    return seconds


def run(duration_s: float) -> float:
    """How many inferences a second the bare loop reaches."""
    interpreter, index, tensors = _loaded()
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < duration_s:
        interpreter.set_tensor(index, tensors[done % len(tensors)])
        interpreter.invoke()
        done += 1
    return done / passed


@cache
def _loaded() -> tuple[Any, int, list[Any]]:
    """The interpreter, the index of its input, and tensors for it; warmed up."""
    variant = models.load(Settings.model_validate({})).default.variants["cpu"]
    layout = variant.layout
    at_least = (layout.width, layout.height)
    pictures = [imaging.decode(data, at_least, MAX_PIXELS) for data in camera_pictures(TILE)]
    tensors = [imaging.fit(picture, layout)[0] for picture in pictures]
    # The interpreter as the server sets it up, without what the server puts around its `invoke`.
    file = Served(variant, SelfTest(tensors[0], check_sane)).file
    interpreter = LoadedModel(file, threads())._interpreter
    index = interpreter.get_input_details()[0]["index"]
    for turn in range(WARM_UP):
        interpreter.set_tensor(index, tensors[turn % len(tensors)])
        interpreter.invoke()
    return interpreter, index, tensors
