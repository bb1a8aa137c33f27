"""A compiled detector for the stand-in libedgetpu: what it finds is a hash of the picture's tensor.

The file is a real TensorFlow Lite model in the form of Coral's: the operator `edgetpu-custom-op`,
which only a delegate can run, and TFLite_Detection_PostProcess behind it on the CPU. It has eight
anchors that don't overlap and eight classes; at anchor k, class k has the score 0.5 + byte k of
the hash / 512. So an answer tells which tensor it is for, through every layer in between.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from numpy.typing import NDArray

from tests.colour_model import OUTPUTS, POST_PROCESS, Graph, pack_labels

BYTES = 8
LABELS = tuple(f"byte{number}" for number in range(BYTES))
BASE = np.uint64(0x9E3779B97F4A7C15)


def build(size: int = 32, *, finished: bool = False) -> bytes:
    """The model's file, for pictures of `size` by `size` pixels.

    `finished`: the Edge TPU gives detections, and nothing comes behind it on the CPU.
    """
    graph = Graph()
    shape = (1, size, size, 3)
    custom = schema.BuiltinOperator.CUSTOM
    picture = graph.tensor("picture", shape, schema.TensorType.UINT8, scale=1 / 255)
    shapes = ((1, BYTES, 4), (1, BYTES), (1, BYTES), (1,))
    outputs = [graph.tensor(name, shape) for name, shape in zip(OUTPUTS, shapes, strict=True)]
    if finished:
        graph.operator(custom, [picture], outputs, custom=("edgetpu-custom-op", b"compiled"))
        return graph.finish([picture], outputs) + pack_labels(LABELS)
    boxes = graph.tensor("raw boxes", (1, BYTES, 4))
    scores = graph.tensor("class scores", (1, BYTES, BYTES))
    graph.operator(custom, [picture], [boxes, scores], custom=("edgetpu-custom-op", b"compiled"))
    anchors = graph.tensor("anchors", (BYTES, 4), constant=_anchors())
    options = flexbuffers.Dumps(
        {
            "max_detections": BYTES,
            "max_classes_per_detection": 1,
            "detections_per_class": BYTES,
            "num_classes": BYTES,
            "nms_iou_threshold": 0.5,
            "nms_score_threshold": 0.1,
            "use_regular_nms": False,
            "y_scale": 1.0,
            "x_scale": 1.0,
            "h_scale": 1.0,
            "w_scale": 1.0,
        }
    )
    graph.operator(custom, [boxes, scores, anchors], outputs, custom=(POST_PROCESS, options))
    return graph.finish([picture], outputs) + pack_labels(LABELS)


def write(path: Path, size: int = 32, *, finished: bool = False) -> Path:
    """Write the model that `build` makes; returns `path`."""
    path.write_bytes(build(size, finished=finished))
    return path


def hash_of(tensor: NDArray[np.uint8]) -> int:
    """The hash of a tensor: its 64-bit words, as a polynomial in BASE modulo 2⁶⁴."""
    raw = np.ascontiguousarray(tensor).tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 8), "<u8")
    powers = np.full(len(words), BASE, np.uint64)
    powers[0] = 1
    with np.errstate(over="ignore"):
        return int((words[::-1] * np.cumprod(powers)).sum())


def hash_in(body: Mapping[str, Any]) -> int:
    """The hash that an answer of `/predict` carries; fails if it is not a whole one."""
    scores = {found["class"]: found["score"] for found in body["predictions"]}
    assert set(scores) == set(LABELS), body
    return sum(round((scores[label] - 0.5) * 512) << 8 * k for k, label in enumerate(LABELS))


def _anchors() -> NDArray[np.float32]:
    """[ycenter, xcenter, h, w] of eight boxes, four across and two down."""
    places = [(0.25 + 0.5 * row, 0.125 + 0.25 * column) for row in range(2) for column in range(4)]
    return np.array([(y, x, 0.4, 0.2) for y, x in places], np.float32)
