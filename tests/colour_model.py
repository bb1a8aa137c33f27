"""A detector small enough to make in a test: it finds the picture's own colour.

Its one box is the middle half of the picture, and the scores of its classes `red`, `green` and
`blue` are the means of those channels, from 0 to 1. So an answer tells which picture it is for, and
an inference takes microseconds. The file is a real TensorFlow Lite model, run by the real runtime.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from numpy.typing import NDArray

LABELS = ("red", "green", "blue")
BOX = (0.25, 0.25, 0.75, 0.75)
"""[ymin, xmin, ymax, xmax], as fractions of the picture."""

POST_PROCESS = "TFLite_Detection_PostProcess"
OUTPUTS = (POST_PROCESS, f"{POST_PROCESS}:1", f"{POST_PROCESS}:2", f"{POST_PROCESS}:3")

# (TensorType, scale, zero point) of the input; a float input takes pixels from -1 to 1.
INPUTS: dict[str, tuple[int, float, int]] = {
    "uint8": (schema.TensorType.UINT8, 1 / 255, 0),
    "int8": (schema.TensorType.INT8, 1 / 255, -128),
    "float32": (schema.TensorType.FLOAT32, 0.0, 0),
}


class Graph:
    """A TensorFlow Lite graph under construction."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int = schema.TensorType.FLOAT32,
        constant: NDArray[Any] | None = None,
        scale: float = 0.0,
        zero: int = 0,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), kind
        if scale:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero]
        if constant is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(constant.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self,
        builtin: int,
        inputs: list[int],
        outputs: list[int],
        options: tuple[int, object] | None = None,
        custom: tuple[str, bytes] | None = None,
    ) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, 1
        code.deprecatedBuiltinCode = min(builtin, 127)
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = inputs, outputs
        if options:
            operator.builtinOptionsType, operator.builtinOptions = options
        if custom:
            code.customCode, operator.customOptions = custom[0], list(custom[1])
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        self.graph.operators.append(operator)

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(4096)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def build(
    width: int = 32,
    height: int = 32,
    dtype: Literal["uint8", "int8", "float32"] = "uint8",
    *,
    names: tuple[str, ...] = OUTPUTS,
    order: tuple[int, ...] = (0, 1, 2, 3),
    labels: tuple[str, ...] | None = LABELS,
    for_edgetpu: bool = False,
) -> bytes:
    """The model's file.

    `names` are the outputs' names, `order` the order in which the graph lists them, `labels` what
    its zip holds (None: no zip). `for_edgetpu` adds the operator of a compiled model, behind
    which the CPU can't run it.
    """
    graph = Graph()
    kind, scale, zero = INPUTS[dtype]
    picture = graph.tensor("picture", (1, height, width, 3), kind, scale=scale, zero=zero)
    inputs = [picture]
    if for_edgetpu:
        compiled = graph.tensor("compiled", (1, height, width, 3), kind, scale=scale, zero=zero)
        custom = schema.BuiltinOperator.CUSTOM
        graph.operator(custom, [picture], [compiled], custom=("edgetpu-custom-op", b""))
        picture = compiled
    means = graph.tensor("means", (1, 3), kind, scale=scale, zero=zero)
    axes = graph.tensor("axes", (2,), schema.TensorType.INT32, np.array([1, 2], np.int32))
    reduce = (schema.BuiltinOptions.ReducerOptions, schema.ReducerOptionsT())
    graph.operator(schema.BuiltinOperator.MEAN, [picture, axes], [means], reduce)
    scores = graph.tensor("mean scores", (1, 3))
    if dtype == "float32":
        halved, half = graph.tensor("halved", (1, 3)), np.array([0.5], np.float32)
        constant = graph.tensor("half", (1,), constant=half)
        multiply = (schema.BuiltinOptions.MulOptions, schema.MulOptionsT())
        graph.operator(schema.BuiltinOperator.MUL, [means, constant], [halved], multiply)
        add = (schema.BuiltinOptions.AddOptions, schema.AddOptionsT())
        graph.operator(schema.BuiltinOperator.ADD, [halved, constant], [scores], add)
    else:
        graph.operator(schema.BuiltinOperator.DEQUANTIZE, [means], [scores])
    shaped = graph.tensor("class scores", (1, 1, 3))
    shape = graph.tensor("shape", (3,), schema.TensorType.INT32, np.array([1, 1, 3], np.int32))
    graph.operator(schema.BuiltinOperator.RESHAPE, [scores, shape], [shaped])
    outputs = _post_process(graph, shaped, names)
    data = graph.finish(inputs, [outputs[position] for position in order])
    return data + pack_labels(labels) if labels else data


def _post_process(graph: Graph, scores: int, names: tuple[str, ...]) -> list[int]:
    """One anchor, so one box, which each of the three classes may claim."""
    ymin, xmin, ymax, xmax = BOX
    centre = [(ymin + ymax) / 2, (xmin + xmax) / 2, ymax - ymin, xmax - xmin]
    anchors = graph.tensor("anchors", (1, 4), constant=np.array([centre], np.float32))
    boxes = graph.tensor("raw boxes", (1, 1, 4), constant=np.zeros((1, 1, 4), np.float32))
    shapes = ((1, 3, 4), (1, 3), (1, 3), (1,))
    outputs = [graph.tensor(name, shape) for name, shape in zip(names, shapes, strict=True)]
    options = flexbuffers.Dumps(
        {
            "max_detections": 3,
            "max_classes_per_detection": 1,
            "detections_per_class": 3,
            "num_classes": 3,
            "nms_iou_threshold": 0.5,
            "nms_score_threshold": 0.0,
            "use_regular_nms": True,
            "y_scale": 1.0,
            "x_scale": 1.0,
            "h_scale": 1.0,
            "w_scale": 1.0,
        }
    )
    custom = schema.BuiltinOperator.CUSTOM
    graph.operator(custom, [boxes, scores, anchors], outputs, custom=(POST_PROCESS, options))
    return outputs


def pack_labels(labels: tuple[str, ...]) -> bytes:
    """A zip with labels, as it stands at the end of a model file."""
    return pack({"labels.txt": "\n".join(labels).encode()})


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip of any files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in files.items():
            # Without the time of day, so that the same model is the same file.
            packed.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def write(path: Path, **options: Any) -> Path:
    """Write the model that `build` makes of `options`; returns `path`."""
    path.write_bytes(build(**options))
    return path
