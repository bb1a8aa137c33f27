"""What a `.tflite` file declares, read without an interpreter.

The HTTP process must know a model's tensors before any device has loaded it, and must never load
an interpreter itself. Field numbers are those of TensorFlow Lite's `schema.fbs` (v3) and, for
the metadata, of `metadata_schema.fbs`; flatbuffers never renumber a field.
"""

import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import flatbuffers.number_types as numbers
from flatbuffers import flexbuffers
from flatbuffers.table import Table

IDENTIFIER = b"TFL3"
EDGETPU_OPERATOR = "edgetpu-custom-op"
POST_PROCESS_OPERATOR = "TFLite_Detection_PostProcess"
METADATA_BUFFER = "TFLITE_METADATA"
CUSTOM = 32  # BuiltinOperator.CUSTOM
LABELS_OF = (2, 3)  # AssociatedFileType: TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS
MOST_TEXT_BYTES = 4 * 1024 * 1024

DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 9: "int8"}

# What flatbuffers, flexbuffers and zipfile raise for damaged data.
DAMAGED = (
    struct.error, LookupError, ValueError, TypeError, StopIteration, EOFError, RuntimeError,
    AssertionError,
    zlib.error,
)  # fmt: skip

# (mean, standard deviation) of a pixel: a float tensor holds (pixel - mean) / deviation.
Normalisation = tuple[float, float]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model: `shape` as declared, `dtype` as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class TFLiteFile:
    """A model's inputs and outputs, and what its operators say about them."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    for_edgetpu: bool
    """It has the Edge TPU's custom operator, so it runs on nothing else."""
    post_process: tuple[int, ...] | None
    """Positions in `outputs` of boxes, classes, scores and count, where
    TFLite_Detection_PostProcess makes them; None without that operator."""
    classes: int | None
    """Classes that TFLite_Detection_PostProcess tells apart."""
    detections: int | None
    """Detections that TFLite_Detection_PostProcess makes room for; the shapes that the file
    declares for its outputs may be empty."""
    regular_nms: bool
    """TFLite_Detection_PostProcess suppresses overlaps within each class, and not across."""
    normalisation: Normalisation | None
    """Of a float input, where the metadata tells it."""
    texts: Mapping[str, bytes]
    """Text files by name, from the zip at the end of the file; empty where there is none that can
    be read."""
    label_files: tuple[str, ...]
    """Which of them have labels, as far as the metadata tell."""


def read(data: bytes) -> TFLiteFile:
    """Read the model in `data`.

    Raises ValueError if it is not a TensorFlow Lite model or is cut short.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ValueError("is not a TensorFlow Lite model")
    try:
        return _read(data)
    except DAMAGED as error:
        raise ValueError("is cut short or damaged") from error


def _read(data: bytes) -> TFLiteFile:
    model = Node(data, int.from_bytes(data[:4], "little"))
    buffers = list(model.tables(4))  # Model.buffers
    for buffer in buffers:
        buffer.raw(0)  # Buffer.data; raises where the weights are missing
    graph = next(model.tables(2))  # Model.subgraphs
    tensors = [_tensor(table) for table in graph.tables(0)]  # SubGraph.tensors
    outputs = graph.ints(2)  # SubGraph.outputs
    operators = [_operator_name(code) for code in model.tables(1)]  # Model.operator_codes
    metadata = _metadata(model, buffers)
    label_files = tuple(_label_files(metadata))
    post_process = classes = detections = None
    regular_nms = False
    for operator in graph.tables(3):  # SubGraph.operators
        if operators[operator.uint32(0)] == POST_PROCESS_OPERATOR:  # Operator.opcode_index
            made = operator.ints(2)  # Operator.outputs
            if len(made) == 4 and set(made) <= set(outputs):
                post_process = tuple(outputs.index(tensor) for tensor in made)
            options = flexbuffers.Loads(bytearray(operator.raw(5)))  # .custom_options
            classes, detections = options["num_classes"], options["max_detections"]
            regular_nms = bool(options.get("use_regular_nms", False))
    return TFLiteFile(
        inputs=tuple(tensors[i] for i in graph.ints(1)),  # SubGraph.inputs
        outputs=tuple(tensors[i] for i in outputs),
        for_edgetpu=EDGETPU_OPERATOR in operators,
        post_process=post_process,
        classes=classes,
        detections=detections,
        regular_nms=regular_nms,
        normalisation=_normalisation(metadata),
        texts=_packed_texts(data, label_files),
        label_files=label_files,
    )


def _tensor(table: "Node") -> Tensor:
    kind = table.uint8(1)  # Tensor.type; 0 is its shape, 3 its name
    return Tensor(table.text(3) or "", tuple(table.ints(0)), DTYPES.get(kind, f"TensorType {kind}"))


def _operator_name(code: "Node") -> str:
    # deprecated_builtin_code and builtin_code: codes above 126 don't fit the older one.
    builtin = max(code.uint8(0), code.int32(3))
    return (code.text(1) or "") if builtin == CUSTOM else f"builtin {builtin}"


def _metadata(model: "Node", buffers: list["Node"]) -> "Node | None":
    """The root of the file's metadata."""
    for entry in model.tables(6):  # Model.metadata
        if entry.text(0) == METADATA_BUFFER:  # Metadata.name
            metadata = buffers[entry.uint32(1)].raw(0)  # Metadata.buffer
            return Node(metadata, int.from_bytes(metadata[:4], "little"))
    return None


def _normalisation(metadata: "Node | None") -> Normalisation | None:
    """Mean and deviation of the first input."""
    for graph in metadata.tables(3) if metadata else ():  # ModelMetadata.subgraph_metadata
        for tensor in graph.tables(2):  # SubGraphMetadata.input_tensor_metadata
            for unit in tensor.tables(4):  # TensorMetadata.process_units
                if unit.uint8(0) == 1:  # ProcessUnitOptions.NormalizationOptions
                    options = unit.union(1)
                    mean, deviation = options.floats(0), options.floats(1)  # .mean, .std
                    if mean and deviation and deviation[0]:
                        return mean[0], deviation[0]
            return None
    return None


def _label_files(metadata: "Node | None") -> Iterator[str]:
    """The files that the metadata call the labels of an output."""
    for graph in metadata.tables(3) if metadata else ():  # ModelMetadata.subgraph_metadata
        for tensor in graph.tables(3):  # SubGraphMetadata.output_tensor_metadata
            for file in tensor.tables(6):  # TensorMetadata.associated_files
                name = file.text(0)  # AssociatedFile.name
                if name and file.uint8(2) in LABELS_OF:  # AssociatedFile.type
                    yield name


def _packed_texts(data: bytes, others: Collection[str]) -> dict[str, bytes]:
    """The text files in the zip behind the model, and `others`."""
    texts: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(BytesIO(data)) as packed:
            for name in packed.namelist():
                # What begins with a dot is none: macOS adds such files, of the same name.
                hidden = name.rpartition("/")[2].startswith(".")
                if name in others or (name.lower().endswith(".txt") and not hidden):
                    with packed.open(name) as file:
                        texts[name] = file.read(MOST_TEXT_BYTES)
    except (zipfile.BadZipFile, *DAMAGED):
        return {}
    return texts


class Node:
    """One flatbuffers table, its fields addressed by number.

    Raises ValueError for a vector that does not lie within the data.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._table: Any = Table(data, position)

    def _offset(self, field: int) -> int:
        return int(self._table.Offset(4 + 2 * field))

    def _scalar(self, field: int, flags: Any) -> int:
        offset = self._offset(field)
        return int(self._table.Get(flags, offset + self._table.Pos)) if offset else 0

    def uint8(self, field: int) -> int:
        return self._scalar(field, numbers.Uint8Flags)

    def int32(self, field: int) -> int:
        return self._scalar(field, numbers.Int32Flags)

    def uint32(self, field: int) -> int:
        return self._scalar(field, numbers.Uint32Flags)

    def text(self, field: int) -> str | None:
        raw = self.raw(field)
        return raw.decode() if raw else None

    def raw(self, field: int) -> bytes:
        start, length = self._vector(field, 1)
        return self._data[start : start + length]

    def ints(self, field: int) -> list[int]:
        start, length = self._vector(field, 4)
        return list(struct.unpack_from(f"<{length}i", self._data, start))

    def floats(self, field: int) -> list[float]:
        start, length = self._vector(field, 4)
        return list(struct.unpack_from(f"<{length}f", self._data, start))

    def tables(self, field: int) -> Iterator["Node"]:
        start, length = self._vector(field, 4)
        for i in range(length):
            yield Node(self._data, int(self._table.Indirect(start + 4 * i)))

    def union(self, field: int) -> "Node":
        return Node(self._data, int(self._table.Indirect(self._table.Pos + self._offset(field))))

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        offset = self._offset(field)
        if not offset:
            return 0, 0
        start, length = int(self._table.Vector(offset)), int(self._table.VectorLen(offset))
        if start + size * length > len(self._data):
            raise ValueError("a vector ends beyond the file")
        return start, length
