"""What a `.tflite` file declares is read right, and damage is a ValueError and nothing else."""

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from app import tflite
from app.settings import EMBEDDED_MODELS
from app.tflite import Tensor
from tests import colour_model

SMALL = colour_model.build()
BARE = colour_model.build(labels=None)
DEFAULT = EMBEDDED_MODELS / "efficientdet_lite0.tflite"

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\x80", b"\0")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_the_input_is_read(dtype: Any) -> None:
    file = tflite.read(colour_model.build(48, 24, dtype))
    assert file.inputs == (Tensor("picture", (1, 24, 48, 3), dtype),)


def test_the_outputs_are_read() -> None:
    names = colour_model.OUTPUTS
    assert tflite.read(SMALL).outputs == (
        Tensor(names[0], (1, 3, 4), "float32"),
        Tensor(names[1], (1, 3), "float32"),
        Tensor(names[2], (1, 3), "float32"),
        Tensor(names[3], (1,), "float32"),
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_order_of_outputs_is_read_from_the_operator_and_not_from_names(
    order: tuple[int, ...],
) -> None:
    file = tflite.read(colour_model.build(names=("a", "b", "c", "d"), order=order))
    assert file.post_process is not None
    assert [file.outputs[position].name for position in file.post_process] == ["a", "b", "c", "d"]


def test_classes_and_detections_are_read_from_the_operator() -> None:
    file = tflite.read(SMALL)
    assert (file.classes, file.detections) == (3, 3)


def test_the_way_to_suppress_overlaps_is_read_from_the_operator() -> None:
    assert tflite.read(SMALL).regular_nms


def test_labels_are_read_from_the_zip_at_the_end() -> None:
    assert tflite.read(SMALL).texts == {"labels.txt": "\n".join(colour_model.LABELS).encode()}
    assert tflite.read(BARE).texts == {}


def test_the_file_that_the_metadata_call_labels_is_read() -> None:
    files = [("notes.txt", 1), ("names", 3), ("axis.txt", 2)]
    data = _with_metadata(mean=0, deviation=1, files=files)
    assert tflite.read(data).label_files == ("names", "axis.txt")
    packed = data + colour_model.pack({"names": b"red", "other": b"x", "README.TXT": b"y"})
    assert tflite.read(packed).texts == {"names": b"red", "README.TXT": b"y"}
    assert tflite.read(SMALL).label_files == ()


def test_what_macos_adds_to_a_zip_is_no_text() -> None:
    packed = colour_model.pack({"__MACOSX/._labels.txt": b"\0\5", "labels.txt": b"red"})
    assert tflite.read(BARE + packed).texts == {"labels.txt": b"red"}


def test_a_damaged_zip_is_none() -> None:
    damaged = bytearray(SMALL)
    damaged[damaged.rindex(b"red")] ^= 0x20
    assert tflite.read(bytes(damaged)).texts == {}


def test_a_model_compiled_for_the_edge_tpu_is_told_by_its_operator() -> None:
    assert tflite.read(colour_model.build(for_edgetpu=True)).for_edgetpu
    assert not tflite.read(SMALL).for_edgetpu


def test_the_default_model_is_read() -> None:
    file = tflite.read(DEFAULT.read_bytes())
    assert [(tensor.shape, tensor.dtype) for tensor in file.inputs] == [((1, 320, 320, 3), "uint8")]
    assert (file.classes, file.detections, file.for_edgetpu) == (90, 100, False)
    assert file.post_process == (0, 1, 2, 3)


def test_the_normalisation_of_a_float_input_is_read_from_the_metadata() -> None:
    file = tflite.read(_with_metadata(mean=127.5, deviation=64.0))
    assert file.normalisation == (127.5, 64.0)
    assert tflite.read(SMALL).normalisation is None


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\0\0\0\0TFL", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(10_000)]
)
def test_what_is_no_model_is_called_that(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not a TensorFlow Lite model"):
        tflite.read(data)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_every_truncation_is_refused(dtype: Any) -> None:
    data = colour_model.build(dtype=dtype, labels=None)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"not a TensorFlow Lite model|cut short"):
            tflite.read(data[:length])


def test_a_truncation_within_the_labels_loses_the_labels_only() -> None:
    for length in range(len(BARE), len(SMALL)):
        assert tflite.read(SMALL[:length]) == tflite.read(BARE)


def test_every_truncation_of_the_default_model_is_refused() -> None:
    data = DEFAULT.read_bytes()
    for length in (*range(0, len(data), 49_999), len(data) - 1):
        with pytest.raises(ValueError, match=r"not a TensorFlow Lite model|cut short"):
            tflite.read(data[:length])


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SMALL) - 4), st.sampled_from(EXTREMES) | st.binary(min_size=1)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_corruption_is_a_value_error_or_harmless(edits: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(SMALL)
    for position, content in edits:
        damaged[position : position + len(content)] = content
    read_or_refuse(bytes(damaged))


def test_thousands_of_damaged_files_are_refused_or_read() -> None:
    chance = random.Random(2024)
    for _ in range(2000):
        damaged = bytearray(SMALL)
        for _ in range(chance.choice((1, 1, 2, 8))):
            content = chance.choice((*EXTREMES, chance.randbytes(1)))
            position = chance.randrange(len(damaged))
            damaged[position : position + len(content)] = content
        read_or_refuse(bytes(damaged))


def read_or_refuse(data: bytes) -> None:
    """Anything but a ValueError fails the test."""
    with contextlib.suppress(ValueError):
        tflite.read(data)


def _with_metadata(mean: float, deviation: float, files: Sequence[tuple[str, int]] = ()) -> bytes:
    """A model with the metadata that TensorFlow's tools add: how to normalise the input, and the
    names and types of the files that belong to its output."""
    import flatbuffers

    builder = flatbuffers.Builder(256)

    def floats(value: float) -> int:
        builder.StartVector(4, 1, 4)
        builder.PrependFloat32(value)
        return int(builder.EndVector())

    def table(*fields: tuple[int, str, Any]) -> int:
        builder.StartObject(7)
        for slot, kind, value in fields:
            if kind == "uint8":
                builder.PrependUint8Slot(slot, value, 0)
            else:
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(builder.EndObject())

    def tables(*items: int) -> int:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    means, deviations = floats(mean), floats(deviation)
    options = table((0, "", means), (1, "", deviations))
    unit = table((0, "uint8", 1), (1, "", options))
    tensor = table((4, "", tables(unit)))
    named = [(builder.CreateString(name), kind) for name, kind in files]
    associated = [table((0, "", name), (2, "uint8", kind)) for name, kind in named]
    output = table((6, "", tables(*associated)))
    graph = table((2, "", tables(tensor)), (3, "", tables(output)))
    builder.Finish(table((3, "", tables(graph))), file_identifier=b"M001")
    metadata = bytes(builder.Output())

    model = schema.ModelT.InitFromPackedBuf(BARE, 0)
    buffer = schema.BufferT()
    buffer.data = list(metadata)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers) - 1
    model.metadata = [entry]
    packer = flatbuffers.Builder(4096)
    packer.Finish(model.Pack(packer), file_identifier=b"TFL3")
    return bytes(packer.Output())
