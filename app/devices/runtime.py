"""The only place that touches TensorFlow Lite and libedgetpu; it runs in device processes alone."""

import ctypes
import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.devices.link import ModelFile

try:
    from ai_edge_litert.interpreter import Interpreter

    RUNTIME = "ai-edge-litert"
except ImportError:  # armv7 has only the project's older name
    from tflite_runtime.interpreter import Interpreter

    RUNTIME = "tflite-runtime"


def describe() -> str:
    """The runtime and its version: `ai-edge-litert 2.3.0`."""
    return f"{RUNTIME} {version(RUNTIME)}"


BUSES = ("pci", "usb")  # `enum edgetpu_device_type` of edgetpu_c.h
QUIET, TALKATIVE, TELLS_PERFORMANCE = 0, 1, 2
"""Verbosities. Errors come at each. From 1 on it says why it can't list or open a device, and
prints a line for every KiB that a stick gives; at 2 it says how fast a stick will run."""


class _Listed(ctypes.Structure):
    """`struct edgetpu_device` of edgetpu_c.h."""

    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


class _Option(ctypes.Structure):
    """`struct edgetpu_option` of edgetpu_c.h."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


class EdgeTpuLibrary:
    """libedgetpu, told to say on stderr what goes wrong: its errors carry no words.

    Raises OSError if it, or what it needs, can't be loaded.
    """

    def __init__(self, name: str) -> None:
        self._library = ctypes.CDLL(name)
        self._library.edgetpu_version.restype = ctypes.c_char_p
        self._library.edgetpu_list_devices.restype = ctypes.POINTER(_Listed)
        self._library.edgetpu_list_devices.argtypes = (ctypes.POINTER(ctypes.c_size_t),)
        self._library.edgetpu_free_devices.argtypes = (ctypes.POINTER(_Listed),)
        self._library.edgetpu_create_delegate.restype = ctypes.c_void_p
        self._library.edgetpu_create_delegate.argtypes = (
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(_Option),
            ctypes.c_size_t,
        )
        self._library.edgetpu_free_delegate.argtypes = (ctypes.c_void_p,)

    @property
    def version(self) -> str:
        """As its build labelled itself."""
        return str(self._library.edgetpu_version().decode(errors="replace"))

    def paths(self) -> list[tuple[str, str]]:
        """Bus (`pci` or `usb`) and path (`/dev/apex_0`, `/sys/bus/usb/devices/2-1`) of each device,
        in libedgetpu's order, which is none.

        It opens none of them.
        """
        self._library.edgetpu_verbosity(TALKATIVE)
        number = ctypes.c_size_t()
        listed = self._library.edgetpu_list_devices(ctypes.byref(number))
        try:
            return [(BUSES[each.type], each.path.decode()) for each in listed[: number.value]]
        finally:
            if number.value:
                self._library.edgetpu_free_devices(listed)
            self._library.edgetpu_verbosity(QUIET)

    def open(self, bus: str, node: str, performance: str = "default") -> "EdgeTpuDelegate":
        """Open a device, `apex_0` or `2-1`; returns the delegate that runs models on it. It may
        take half a minute. `performance` is for sticks: `low`, `medium`, `high`, `max`.

        Raises ValueError: if it is not listed, and, without saying why, if it can't be opened.
        """
        paths = [path for of_bus, path in self.paths() if of_bus == bus]
        path = next((each for each in paths if PurePath(each).name == node), None)
        if path is None:
            raise ValueError(f"libedgetpu lists {paths or 'nothing'} on {bus}, not {node}")
        told: list[_Option] = []
        if bus == "usb" and performance != "default":
            told = [_Option(b"Performance", performance.capitalize().encode())]
        options = (_Option * len(told))(*told)
        self._library.edgetpu_verbosity(TELLS_PERFORMANCE if told else TALKATIVE)
        pointer = self._library.edgetpu_create_delegate(
            BUSES.index(bus), path.encode(), options, len(told)
        )
        self._library.edgetpu_verbosity(QUIET)
        if pointer is None:
            raise ValueError(f"libedgetpu can't open {path}")
        return EdgeTpuDelegate(pointer, self._library.edgetpu_free_delegate)


class EdgeTpuDelegate:
    """An open device, as TensorFlow Lite's Interpreter takes it: in place of what its own
    `load_delegate` returns, which can't open a device by its path.

    It is closed with the last interpreter that has it.
    """

    def __init__(self, pointer: int, free: Callable[[int], None]) -> None:
        self._pointer = pointer
        self._free = free

    def __del__(self) -> None:
        self._free(self._pointer)

    def _get_native_delegate_pointer(self) -> int:
        return self._pointer


class Engine:
    """One model as a device process has it: in an interpreter with all threads, for a picture that
    comes alone, and, for several at a time, in one per thread. Two inferences with one thread each
    take a quarter less CPU time than with two each: none waits for its other half.

    Raises ValueError if the file has changed or can't be read, and what LoadedModel raises.
    """

    def __init__(
        self, file: ModelFile, threads: int, delegate: EdgeTpuDelegate | None = None
    ) -> None:
        try:
            with open(file.path, "rb") as model:
                digest = hashlib.file_digest(model, "sha256").hexdigest()
        except OSError as error:
            why = f"{file.path} can't be read any more ({error.strerror}); put it back"
            raise ValueError(why) from error
        if digest != file.sha256:
            raise ValueError(f"{file.path} has changed since Reef started; restart Reef")
        self.file = file
        self.on_all_threads = LoadedModel(file, threads, delegate)
        self.on_one_thread = [self.on_all_threads]
        if threads > 1:
            self.on_one_thread = [LoadedModel(file, 1) for _ in range(threads)]


class LoadedModel:
    """One model in one interpreter, on the CPU or on the device of a delegate.

    Raises ValueError or RuntimeError, in TensorFlow Lite's words, if it can't be loaded or its
    tensors are not those that its file declares.
    """

    def __init__(
        self, model: ModelFile, threads: int, delegate: EdgeTpuDelegate | None = None
    ) -> None:
        self._failures = ""
        self._interpreter: Any = Interpreter(
            model.path,
            num_threads=threads,
            experimental_delegates=None if delegate is None else [delegate],
        )
        self._interpreter.allocate_tensors()
        if model.regular_nms:
            # TensorFlow Lite's regular non-maximum suppression shares the classes out to its
            # threads and forgets one (NonMaxSuppressionWorkerTask in detection_postprocess.cc
            # goes on at `++next_col`): with two threads class 2, so every car. XNNPACK keeps the
            # threads that it was made with; only operators outside it are left with one.
            self._interpreter._interpreter.SetNumThreads(1)
        entry = self._interpreter.get_input_details()[0]
        self._input = entry["index"]
        self._convert = _CONVERSIONS[np.dtype(entry["dtype"]).name]
        self._normalisation = model.normalisation
        details = self._interpreter.get_output_details()
        n = model.detections
        self._outputs = [
            (details[position]["index"], size)
            for position, size in zip(model.outputs, (4 * n, n, n, 1), strict=True)
        ]

    def invoke(self, tensor: NDArray[np.uint8], outputs: NDArray[np.float32]) -> None:
        """Run the model on `tensor`, uint8 RGB; write boxes, classes, scores, count to `outputs`.

        Raises RuntimeError, in TensorFlow Lite's words, if the inference fails.
        """
        converted = self._convert(tensor, *self._normalisation)
        self._interpreter.set_tensor(self._input, converted)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:  # its text begins with those of all failures before
            before, self._failures = self._failures, str(error)
            raise RuntimeError(self._failures.removeprefix(before)) from None
        start = 0
        for index, size in self._outputs:
            outputs[start : start + size] = self._interpreter.get_tensor(index).reshape(size)
            start += size


def _uint8(tensor: NDArray[np.uint8], _mean: float, _deviation: float) -> NDArray[Any]:
    return tensor


def _int8(tensor: NDArray[np.uint8], _mean: float, _deviation: float) -> NDArray[Any]:
    """Whatever real range an int8 tensor stands for, its 256 steps are the pixel's 256."""
    return (tensor ^ 0x80).view(np.int8)


def _float32(tensor: NDArray[np.uint8], mean: float, deviation: float) -> NDArray[Any]:
    return (tensor.astype(np.float32) - np.float32(mean)) / np.float32(deviation)


_CONVERSIONS = {"uint8": _uint8, "int8": _int8, "float32": _float32}
