"""The only place that touches TensorFlow Lite and libedgetpu; it runs in device processes alone."""

import ctypes
import hashlib
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.devices.link import ModelFile

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    RUNTIME = "ai-edge-litert"
except ImportError:  # armv7 has only the project's older name
    from tflite_runtime.interpreter import Interpreter, load_delegate

    RUNTIME = "tflite-runtime"


def describe() -> str:
    """The runtime and its version: `ai-edge-litert 2.3.0`."""
    return f"{RUNTIME} {version(RUNTIME)}"


class _Listed(ctypes.Structure):
    """`struct edgetpu_device` of edgetpu_c.h."""

    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


class EdgeTpuLibrary:
    """libedgetpu, told to say on stderr what goes wrong: its errors carry no words.

    Raises OSError if it, or what it needs, can't be loaded.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._library = ctypes.CDLL(name)
        self._library.edgetpu_version.restype = ctypes.c_char_p
        self._library.edgetpu_list_devices.restype = ctypes.POINTER(_Listed)
        self._library.edgetpu_list_devices.argtypes = (ctypes.POINTER(ctypes.c_size_t),)
        self._library.edgetpu_free_devices.argtypes = (ctypes.POINTER(_Listed),)
        self._library.edgetpu_verbosity(1)

    @property
    def version(self) -> str:
        """As its build labelled itself."""
        return str(self._library.edgetpu_version().decode(errors="replace"))

    def devices(self) -> list[tuple[str, str]]:
        """Bus (`pci` or `usb`) and node (`apex_0`, `2-1`) of each device, in libedgetpu's order.

        It opens none of them.
        """
        number = ctypes.c_size_t()
        listed = self._library.edgetpu_list_devices(ctypes.byref(number))
        try:
            return [
                (("pci", "usb")[each.type], PurePath(each.path.decode()).name)
                for each in listed[: number.value]
            ]
        finally:
            if number.value:
                self._library.edgetpu_free_devices(listed)

    def open(self, bus: str, node: str, performance: str = "default") -> Any:
        """Open a device; returns the delegate that runs models on it. It may take seconds, during
        which the GIL is held.

        A device is named by its place among those of its bus, which changes when a stick gets its
        firmware: nobody else may open a device of that bus meanwhile. Raises ValueError: if it is
        not listed, and, without saying why, if it can't be opened.
        """
        places = [each for of_bus, each in self.devices() if of_bus == bus]
        if node not in places:
            raise ValueError(f"libedgetpu lists {places or 'nothing'} on {bus}, not {node}")
        options = {"device": f"{bus}:{places.index(node)}"}
        if bus == "usb" and performance != "default":
            options["Performance"] = performance.capitalize()
        return load_delegate(self._name, options)


class Engine:
    """One model as a device process has it: in an interpreter with all threads, for a picture that
    comes alone, and, for several at a time, in one per thread. Two inferences with one thread each
    take a quarter less CPU time than with two each: none waits for its other half.

    Raises ValueError if the file has changed, and what LoadedModel raises.
    """

    def __init__(self, file: ModelFile, threads: int, delegate: Any = None) -> None:
        with open(file.path, "rb") as model:
            if hashlib.file_digest(model, "sha256").hexdigest() != file.sha256:
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

    def __init__(self, model: ModelFile, threads: int, delegate: Any = None) -> None:
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
        self._interpreter.invoke()
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
