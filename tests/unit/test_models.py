"""A model is checked once, at load; a bad one stops the start in words that name its file."""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import models
from app.advice import HERE
from app.errors import ModelError, SettingsError, StartError, UnknownModel
from app.labels import UNNAMED, parse_labels
from app.manifest import Manifest, read_manifest
from app.models import Catalogue, Layout, Model
from app.settings import EMBEDDED_MODELS
from tests import colour_model
from tests.support import make_settings

DEFAULT = "efficientdet_lite0"
TPU_DEFAULT = "ssdlite_mobiledet"
STARTS_WITHIN_S = 5.0


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a colour model into the test's folder."""

    def write(name: str = "colour.tflite", **options: Any) -> Path:
        return colour_model.write(tmp_path / name, **options)

    return write


def load(**told: Any) -> Catalogue:
    """The catalogue for these settings."""
    return models.load(make_settings(**told))


def refusal(**told: Any) -> str:
    """The line that stops the start, and within the time that is promised."""
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load(**told)
    assert time.monotonic() - began < STARTS_WITHIN_S
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_status == 3
    return line


# ---------------------------------------------------------------------------- the embedded model


def test_the_embedded_model_is_the_default_on_the_cpu() -> None:
    model = load().default
    variant = model.variants["cpu"]
    assert (model.name, set(model.variants)) == (DEFAULT, {"cpu"})
    assert variant.layout == Layout(320, 320, "stretch")
    assert variant.detections == 100
    assert len(variant.labels) == 90
    assert (variant.label(0), variant.label(89)) == ("person", "toothbrush")


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    variant = load().default.variants["cpu"]
    assert variant.labels[11] == UNNAMED
    assert [variant.label(number) for number in (11, 90, 1000, -1)] == [
        "class_11",
        "class_90",
        "class_1000",
        "class_-1",
    ]


def test_every_model_is_loaded_within_five_seconds() -> None:
    began = time.monotonic()
    load()
    assert time.monotonic() - began < STARTS_WITHIN_S


def test_the_manifest_tells_checksum_and_licence_and_place_of_every_file() -> None:
    manifest = read_manifest()
    for model in manifest.models.values():
        assert model.licence
        for file in model.files.values():
            path = EMBEDDED_MODELS / file.path
            assert path.is_file() or file.url
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    assert set(manifest.default.values()) <= set(manifest.models)


# ---------------------------------------------------------------------------- the manifest

MANIFEST = (EMBEDDED_MODELS / "manifest.yaml").read_text()
BAD_MANIFESTS = [
    ("", "Manifest"),
    ("models: [", "expected the node content"),
    ("- a list", "Manifest"),
    (MANIFEST.replace("licence:", "license:", 1), "licence"),
    (MANIFEST.replace("resize: stretch", "resize: crop", 1), "resize"),
    (MANIFEST.replace("width: 320", "width: wide", 1), "width"),
    (MANIFEST.replace("  cpu: efficient", "  gpu: efficient", 1), "gpu"),
    (MANIFEST + "\nextra: 1\n", "extra"),
]


@pytest.mark.parametrize(("text", "word"), BAD_MANIFESTS)
def test_a_bad_manifest_is_named_with_what_is_wrong(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=word) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"manifest\.yaml: No such file .*; restore it"):
        read_manifest(tmp_path)


# ---------------------------------------------------------------------------- models of one's own


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_a_file_of_ones_own_with_labels_inside_simply_works(
    dtype: str, write: Callable[..., Path]
) -> None:
    path = write(width=48, height=24, dtype=dtype)
    model = load(model=str(path)).default
    variant = model.variants["cpu"]
    assert (model.name, variant.layout) == ("colour", Layout(48, 24, "stretch"))
    assert (variant.labels, variant.detections) == (("red", "green", "blue"), 3)
    assert variant.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.selftest is None


def test_a_name_is_looked_up_in_the_models_folder(write: Callable[..., Path]) -> None:
    path = write()
    assert load(model="colour.tflite", models_dir=path.parent).default.variants["cpu"].path == path


def test_labels_come_from_the_file_that_is_named(write: Callable[..., Path]) -> None:
    path = write()
    labels = path.with_name("mine.txt")
    labels.write_text("rot\ngrün\nblau\n", "utf-8")
    catalogue = load(model=str(path), labels=labels)
    assert catalogue.default.variants["cpu"].labels == ("rot", "grün", "blau")


def test_labels_come_from_the_file_beside_the_model(write: Callable[..., Path]) -> None:
    path = write(labels=None)
    path.with_suffix(".txt").write_text("0 rot\n2 blau\n")
    assert load(model=str(path)).default.variants["cpu"].labels == ("rot", "???", "blau")


@pytest.mark.parametrize("text", ["\ufeffred\r\ngreen\r\nblue\r\n", "red\n green \nblue\n\n\n"])
def test_labels_from_any_editor_are_read(text: str, write: Callable[..., Path]) -> None:
    path = write(labels=None)
    path.with_suffix(".txt").write_bytes(text.encode())
    assert load(model=str(path)).default.variants["cpu"].labels == ("red", "green", "blue")


COLOURS = ("rot", "grün", "blau")
TEXT = "rot\ngrün\nblau"
TEXTS = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with its mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, the other way round": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "Windows-1252": TEXT.encode("cp1252"),
    "Windows' line ends": TEXT.replace("\n", "\r\n").encode(),
    "the line ends of an old Mac": TEXT.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("name", TEXTS)
def test_labels_are_read_alike_from_a_file_and_from_within_the_model(
    name: str, write: Callable[..., Path]
) -> None:
    path = write(labels=None)
    labels = path.with_suffix(".txt")
    labels.write_bytes(TEXTS[name])
    assert load(model=str(path)).default.variants["cpu"].labels == COLOURS
    labels.unlink()
    append(path, {"labels.txt": TEXTS[name]})
    assert load(model=str(path)).default.variants["cpu"].labels == COLOURS
    assert load(model=str(path)).default.unknown_label(COLOURS) is None


def append(path: Path, files: dict[str, bytes]) -> None:
    """Pack files into a model."""
    path.write_bytes(path.read_bytes() + colour_model.pack(files))


@pytest.mark.parametrize("text", ["\ngreen\nblue\n", "???\ngreen\nblue", " \r\ngreen\r\nblue\r\n"])
def test_an_empty_line_is_a_class_without_a_name(text: str, write: Callable[..., Path]) -> None:
    path = write(labels=None)
    path.with_suffix(".txt").write_bytes(text.encode())
    assert load(model=str(path)).default.labels == {"class_0", "green", "blue"}


def test_an_empty_first_line_of_the_default_models_labels_is_class_0(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    names = load().default.variants["cpu"].labels
    labels.write_text("\n".join(["", *names[1:], ""]))
    default = load(labels=labels).default
    assert default.variants["cpu"].label(0) == "class_0"
    assert "" not in default.labels


NAMED = TEXT.encode()
PACKED: dict[str, dict[str, bytes]] = {
    "a readme beside": {"README.txt": b"made by hand", "labels.txt": NAMED},
    "in another order": {"labels.txt": NAMED, "README.txt": b"made by hand"},
    "in a folder": {"notes/README.txt": b"a\nb\nc", "data/LabelMap.txt": NAMED},
    "by what fits": {"a.txt": b"made by hand", "b.txt": NAMED},
    "twice the same": {"labels.txt": NAMED, "labels_de.txt": NAMED},
    "as macOS packs it": {"labels.txt": NAMED, "__MACOSX/._labels.txt": b"\0\5\x16\7"},
}


@pytest.mark.parametrize("name", PACKED)
def test_of_several_texts_in_a_model_the_labels_are_told(
    name: str, write: Callable[..., Path]
) -> None:
    path = write(labels=None)
    append(path, PACKED[name])
    assert load(model=str(path)).default.variants["cpu"].labels == COLOURS


def test_texts_in_a_model_that_are_no_labels_do_no_harm(write: Callable[..., Path]) -> None:
    path = write(labels=None)
    append(path, {"README.txt": b"made by hand"})
    path.with_suffix(".txt").write_bytes(NAMED)
    assert load(model=str(path)).default.variants["cpu"].labels == COLOURS


def test_labels_that_are_named_hold_whatever_is_within_the_model(
    write: Callable[..., Path],
) -> None:
    path = write(labels=None)
    append(path, {"labels.txt": b"\0", "a.txt": b"1\n2\n3", "b.txt": b"4\n5\n6"})
    labels = path.with_name("mine.txt")
    labels.write_bytes(NAMED)
    assert load(model=str(path), labels=labels).default.variants["cpu"].labels == COLOURS


def test_labels_of_ones_own_replace_those_of_the_default_model(tmp_path: Path) -> None:
    labels = tmp_path / "numbers.txt"
    labels.write_text("\n".join(f"thing {number}" for number in range(90)))
    default = load(labels=labels).default
    assert default.variants["cpu"].label(0) == "thing 0"
    assert default.selftest
    assert default.selftest.expect == {"thing 0"}  # the person, by the name that it has now


def test_every_label_that_an_answer_may_have_can_be_asked_for() -> None:
    default = load().default
    assert {"person", "class_11"} <= default.labels  # the model has a class 11 without a name
    assert UNNAMED not in default.labels


def test_the_order_of_the_outputs_is_told_by_their_names_without_the_operator(
    write: Callable[..., Path],
) -> None:
    names = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")
    path = write(names=names, order=(2, 0, 3, 1))
    path.write_bytes(_without_post_process(path.read_bytes()))
    path.with_suffix(".txt").write_text("red\ngreen\nblue")
    variant = load(model=str(path)).default.variants["cpu"]
    assert (variant.outputs, variant.detections) == ((1, 3, 0, 2), 3)


ORDERS = [
    (["a:0", "a:1", "a:2", "a:3"], None),
    (["boxes", "classes", "scores"], None),
    (["boxes", "boxes2", "scores", "count"], None),
    ([f"TFLite_Detection_PostProcess{end}" for end in (":3", ":1", "", ":2")], (2, 1, 3, 0)),
    (["location", "category", "scores", "number of detections"], (0, 1, 2, 3)),
    (["StatefulPartitionedCall:1", "scores", "boxes", "count"], None),
]


@pytest.mark.parametrize(("names", "order"), ORDERS)
def test_an_order_that_names_do_not_tell_is_not_guessed(
    names: list[str], order: tuple[int, ...] | None
) -> None:
    assert models._order_by_name(names) == order


# ---------------------------------------------------------------------------- Edge TPU twins


def test_a_compiled_file_alone_runs_on_edge_tpus_only(write: Callable[..., Path]) -> None:
    model = load(model=str(write("colour_edgetpu.tflite", for_edgetpu=True))).default
    assert set(model.variants) == {"edgetpu"}


def test_a_compiled_file_with_its_counterpart_runs_on_both(write: Callable[..., Path]) -> None:
    compiled, twin = write("colour_edgetpu.tflite", for_edgetpu=True), write("colour.tflite")
    catalogue = load(model=str(compiled), model_cpu=str(twin))
    variants = catalogue.default.variants
    assert {kind: variant.path for kind, variant in variants.items()} == {
        "edgetpu": compiled,
        "cpu": twin,
    }
    assert catalogue.get("colour").variants["cpu"].path == twin


def test_the_counterpart_may_come_from_the_manifest(write: Callable[..., Path]) -> None:
    compiled = write("colour_edgetpu.tflite", for_edgetpu=True)
    catalogue = load(model=str(compiled), model_cpu=DEFAULT)
    assert catalogue.default.variants["cpu"].name == DEFAULT
    assert catalogue.default.variants["cpu"].label(0) == "person"


def test_a_counterpart_that_is_compiled_too_is_refused(write: Callable[..., Path]) -> None:
    compiled = write("colour_edgetpu.tflite", for_edgetpu=True)
    line = refusal(model=str(compiled), model_cpu=str(compiled))
    assert f"{compiled}: is compiled for the Edge TPU" in line
    assert "REEF_MODEL_CPU takes one that is not" in line


def test_the_default_of_an_edge_tpu_has_its_own_file_beside_the_default_of_the_cpu(
    write: Callable[..., Path],
) -> None:
    files = {"cpu": write("for_cpu.tflite"), "edgetpu": write("for_tpu.tflite", for_edgetpu=True)}
    files["cpu"].with_name("labels.txt").write_text("red\ngreen\nblue")
    manifest = Manifest.model_validate(
        {
            "default": {kind: path.stem for kind, path in files.items()},
            "models": {
                path.stem: {
                    "about": "a test's",
                    "licence": "none",
                    "input": {"width": 32, "height": 32, "resize": "letterbox"},
                    "labels": "labels.txt",
                    "files": {
                        kind: {
                            "path": path.name,
                            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                        }
                    },
                }
                for kind, path in files.items()
            },
        }
    )
    loader = models._Loader(files["cpu"].parent, manifest)
    default = loader.default(make_settings())
    assert default.name == "for_tpu"
    assert {kind: variant.name for kind, variant in default.variants.items()} == {
        "cpu": "for_cpu",
        "edgetpu": "for_tpu",
    }
    assert default.layouts == {Layout(32, 32, "letterbox")}
    files["edgetpu"].unlink()
    assert loader.default(make_settings()).name == "for_cpu"


# ---------------------------------------------------------------------------- more models


def test_more_models_are_served_beside_the_default(write: Callable[..., Path]) -> None:
    catalogue = load(extra_models=(str(write()),))
    assert [model.name for model in catalogue.all] == [DEFAULT, "colour"]
    assert catalogue.get(None) is catalogue.get("") is catalogue.get(DEFAULT) is catalogue.default
    assert catalogue.get("colour").variants["cpu"].labels == colour_model.LABELS


def test_a_model_named_twice_is_served_once(write: Callable[..., Path]) -> None:
    path = str(write())
    catalogue = load(model=path, extra_models=(path, path, DEFAULT))
    assert [model.name for model in catalogue.all] == ["colour", DEFAULT]


def test_two_files_of_one_name_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = write(), write("other/colour.tflite", width=64)
    line = refusal(model=str(one), extra_models=(str(other),))
    assert line == f"{other}: is called 'colour' like {one}; rename either"


def test_one_file_under_two_paths_is_one_model_unless_its_labels_differ(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    one, other = write(labels=None), write("other/colour.tflite", labels=None)
    for path in (one, other):
        path.with_suffix(".txt").write_text("red\ngreen\nblue\n")
    assert len(load(model=str(one), extra_models=(str(other),)).all) == 1
    other.with_suffix(".txt").write_text("rot\ngrün\nblau\n")
    line = refusal(model=str(one), extra_models=(str(other),))
    assert line == f"{other}: is called 'colour' like {one}; rename either"


def test_an_unknown_model_is_answered_with_those_there_are(write: Callable[..., Path]) -> None:
    catalogue = load(extra_models=(str(write()),))
    with pytest.raises(UnknownModel, match=f"no model 'yolo' .* there is: colour, {DEFAULT}"):
        catalogue.get("yolo")


# ---------------------------------------------------------------------------- what is refused


def damaged(path: Path, data: bytes) -> dict[str, Any]:
    """Settings for a model whose file holds other bytes."""
    path.write_bytes(data)
    return {"model": str(path)}


def with_labels(path: Path, text: bytes) -> dict[str, Any]:
    """Settings for a model with a label file."""
    labels = path.with_name("labels.txt")
    labels.write_bytes(text)
    return {"model": str(path), "labels": labels}


def packed(folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """Settings for a model with these files inside."""
    path = colour_model.write(folder / "m.tflite", labels=None)
    append(path, files)
    return {"model": str(path)}


FIVE_NAMES = ("one", "two", "three", "four", "five")
BAD_MODELS: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    # name: (makes the settings in a folder, the file that is named, what is said of it)
    "missing": (
        lambda folder: {"model": str(folder / "gone.tflite")},
        "gone.tflite",
        "no such file; mount it or correct the path",
    ),
    "missing, by name": (
        lambda folder: {"model": "yolo", "models_dir": folder},
        "yolo",
        f"is neither a file nor in the manifest, which has: {DEFAULT}, ",
    ),
    "missing from the manifest": (
        lambda folder: {"model": TPU_DEFAULT, "models_dir": folder},
        "ssdlite_mobiledet_coco_qat_postprocess.tflite",
        f"missing; `{HERE.pull(TPU_DEFAULT)}` fetches it from https://",
    ),
    "missing among the extra ones": (
        lambda folder: {"extra_models": (str(folder / "gone.tflite"),)},
        "gone.tflite",
        "no such file; mount it or correct the path",
    ),
    "missing counterpart": (
        lambda folder: {
            "model": str(colour_model.write(folder / "tpu.tflite", for_edgetpu=True)),
            "model_cpu": str(folder / "gone.tflite"),
        },
        "gone.tflite",
        "no such file; mount it or correct the path",
    ),
    "a folder": (
        lambda folder: {"model": f"{folder}/"},
        "/",
        "no such file; mount it or correct the path",
    ),
    "empty": (
        lambda folder: damaged(folder / "m.tflite", b""),
        "m.tflite",
        "is not a TensorFlow Lite model; fetch it again",
    ),
    "a web page": (
        lambda folder: damaged(folder / "m.tflite", b"<!doctype html><title>404</title>"),
        "m.tflite",
        "is not a TensorFlow Lite model; fetch it again",
    ),
    "truncated": (
        lambda folder: damaged(folder / "m.tflite", colour_model.build()[:1000]),
        "m.tflite",
        "is cut short or damaged; fetch it again",
    ),
    "wrong checksum": (
        lambda folder: {"models_dir": folder} | damaged(folder / f"{DEFAULT}.tflite", b"x")
        | {"model": DEFAULT},
        f"{DEFAULT}.tflite",
        "has sha256 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881, not ",
    ),
    "outputs whose order nobody tells": (
        lambda folder: damaged(
            folder / "m.tflite",
            _without_post_process(colour_model.build(names=("a", "b", "c", "d"))),
        ),
        "m.tflite",
        "can't be told; export it with TFLite_Detection_PostProcess",
    ),
    "no outputs of a detector": (
        lambda folder: damaged(
            folder / "m.tflite",
            _without_post_process(
                colour_model.build(names=("boxes", "count", "scores", "classes"))
            ),
        ),
        "m.tflite",
        "a detector's are float32 [(1, 3, 4), (1, 3), (1, 3), (1,)]",
    ),
    "a grey input": (
        lambda folder: damaged(folder / "m.tflite", _with_input((1, 32, 32, 1))),
        "m.tflite",
        "Reef feeds one uint8, int8 or float32 tensor of shape (1, height, width, 3)",
    ),
    "an input of open size": (
        lambda folder: damaged(folder / "m.tflite", _with_input((1, -1, -1, 3))),
        "m.tflite",
        "Reef feeds one uint8, int8 or float32 tensor of shape (1, height, width, 3)",
    ),
    "no labels": (
        lambda folder: {"model": str(colour_model.write(folder / "m.tflite", labels=None))},
        "m.tflite",
        "there is no m.txt beside it; put it there (REEF_LABELS can name",
    ),
    "missing labels": (
        lambda folder: {
            "model": str(colour_model.write(folder / "m.tflite")),
            "labels": folder / "gone.txt",
        },
        "gone.txt",
        "No such file or directory; mount it or correct the path",
    ),
    "labels that are no text": (
        lambda folder: with_labels(colour_model.write(folder / "m.tflite"), b"\xff\xfe\x80"),
        "labels.txt",
        "is no text; it takes one label per line",
    ),
    "empty labels": (
        lambda folder: with_labels(colour_model.write(folder / "m.tflite"), b"\n\n"),
        "labels.txt",
        "holds no labels; it takes one per line (for ",
    ),
    "too few labels": (
        lambda folder: with_labels(colour_model.write(folder / "m.tflite"), b"red\ngreen"),
        "labels.txt",
        "has 2 labels, but the model has 3 classes (for ",
    ),
    "too many labels": (
        lambda folder: {"model": str(colour_model.write(folder / "m.tflite", labels=FIVE_NAMES))},
        "m.tflite",
        "labels.txt inside has 5 labels, but the model has 3 classes; REEF_LABELS can name",
    ),
    "several texts inside": (
        lambda folder: packed(folder, {"a.txt": b"a\nb\nc", "b.txt": b"d\ne\nf"}),
        "m.tflite",
        "which text file inside has its labels can't be told: a.txt, b.txt; REEF_LABELS can name",
    ),
    "a text inside that is none": (
        lambda folder: packed(folder, {"labels.txt": b"\0\1\2"}),
        "m.tflite",
        "labels.txt inside is no text; it takes one label per line, in UTF-8; REEF_LABELS can",
    ),
    "two labels of three, with ids": (
        lambda folder: with_labels(colour_model.write(folder / "m.tflite"), b"0 red\n1 green"),
        "labels.txt",
        "has 2 labels, the last for class 1, but the model has 3 classes, 0 to 2; call those",
    ),
    "labels counted from one": (
        lambda folder: with_labels(
            colour_model.write(folder / "m.tflite"), b"1 red\n2 green\n3 blue"
        ),
        "labels.txt",
        "has a label for class 3, but the model has 3 classes (for ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD_MODELS))
def test_a_bad_model_stops_the_start_with_its_setting_and_file_and_a_remedy(
    case: str, tmp_path: Path
) -> None:
    arrange, file, words = BAD_MODELS[case]
    told = arrange(tmp_path)
    line = refusal(**told)
    assert line.startswith(tuple(f"REEF_{setting.upper()}: " for setting in told))
    assert f"{file}: " in line
    assert words in line
    if "labels" in told:
        assert line.startswith("REEF_LABELS: ")


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"models_dir": "/gone"}, "REEF_MODELS_DIR: no such folder '/gone'; mount it"),
        (
            {"model_cpu": DEFAULT},
            "REEF_MODEL_CPU: is the counterpart of REEF_MODEL; set that too",
        ),
    ],
)
def test_settings_that_cannot_be_meant_stop_the_start(told: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**told)
    assert str(caught.value) == line


def test_labels_that_the_model_does_not_have_are_told_with_those_it_has() -> None:
    with pytest.raises(SettingsError) as caught:
        load(only_labels=("persn", "person", "bycicle"))
    (line,) = caught.value.problems
    head, _, shown = line.partition("; it has: ")
    assert head == f"REEF_ONLY_LABELS: model {DEFAULT} has no label 'persn', 'bycicle'"
    listed = shown.split(", ")
    assert listed[0] == "person"
    assert "bicycle" in listed[:5]
    assert set(listed) == load().default.labels


def test_of_many_or_long_labels_some_are_listed() -> None:
    variant = load().default.variants["cpu"]
    labels = tuple(f"{number:03}" + "x" * 5000 for number in range(300))
    wide = Model("wide", {"cpu": replace(variant, labels=labels)}, None)
    line = models.no_such_labels(wide, ["y" * 9000] * 300)
    assert line.endswith(" and 200 more")
    assert len(line) < 10_000


def test_everything_that_is_wrong_with_the_models_is_told_at_once(tmp_path: Path) -> None:
    gone = [str(tmp_path / f"{name}.tflite") for name in ("a", "b")]
    with pytest.raises(StartError) as caught:
        load(extra_models=tuple(gone), only_labels=("persn",), model_cpu=DEFAULT)
    problems = caught.value.problems
    beginnings = [problem.partition(" ")[0] for problem in problems]
    assert beginnings == [
        *("REEF_MODEL_CPU:", "REEF_ONLY_LABELS:", "REEF_EXTRA_MODELS:", "REEF_EXTRA_MODELS:")
    ]
    assert all(any(path in problem for problem in problems) for path in gone)


def test_a_thousand_damaged_files_are_refused_in_words_or_described(tmp_path: Path) -> None:
    data, path = colour_model.build(), tmp_path / "m.tflite"
    chance = random.Random(5)
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            models._variant("m", path, None, None, None)
        except ModelError as error:
            said = str(error)
            assert said.startswith(f"{path}: "), said


def test_a_model_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path) -> None:
    path = colour_model.write(tmp_path / "colour.tflite")
    manifest = yaml.safe_load(MANIFEST)
    entry = manifest["models"][DEFAULT]
    entry["files"]["cpu"] = {
        "path": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    loader = models._Loader(tmp_path, Manifest.model_validate(manifest))
    with pytest.raises(ModelError, match=r"takes Layout\(width=32.*but the manifest says") as error:
        loader.model(DEFAULT, "REEF_MODEL")
    assert f"{path}: " in str(error.value)


def _edited(data: bytes, edit: Callable[[Any], None]) -> bytes:
    """The model in `data`, changed and packed again, without its zip."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    edit(model)
    packer = flatbuffers.Builder(4096)
    packer.Finish(model.Pack(packer), file_identifier=b"TFL3")
    return bytes(packer.Output())


def _without_post_process(data: bytes) -> bytes:
    def edit(model: Any) -> None:
        for code in model.operatorCodes:
            if code.customCode:
                code.customCode = b"Something_Else"

    return _edited(data, edit)


def _with_input(shape: tuple[int, ...]) -> bytes:
    def edit(model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].shape = list(shape)

    return _edited(colour_model.build(), edit)


# ---------------------------------------------------------------------------- labels

LABEL_FILES = [
    # lines, the model's classes, names by class id
    (["a", "b", "c"], 3, ("a", "b", "c")),
    (["a", "b", "c"], None, ("a", "b", "c")),
    (["???", "a", "b", "c"], 3, ("a", "b", "c")),
    (["background", "a", "b", "c"], 3, ("a", "b", "c")),
    (["Background", "a", "b", "c"], 3, ("a", "b", "c")),
    (["???", "a", "b"], 3, ("???", "a", "b")),
    (["background", "a", "b"], None, ("background", "a", "b")),
    (["0 a", "1 b", "2 c"], 3, ("a", "b", "c")),
    (["0  a", "1: b", "2, c"], 3, ("a", "b", "c")),
    (["2 c", "0 a"], 3, ("a", "???", "c")),
    (["2 c", "0 a"], None, ("a", "???", "c")),
    (["0 traffic light", "1 fire hydrant"], 2, ("traffic light", "fire hydrant")),
    (["  a  ", "b\t", "c", "", ""], 3, ("a", "b", "c")),
    (["4wd", "2 door car"], 2, ("4wd", "2 door car")),
    (["", "b", "c"], 3, ("???", "b", "c")),
    (["a", "", "c"], 3, ("a", "???", "c")),
    (["a", "b", ""], 3, ("a", "b", "???")),
    (["a", "b", "", ""], 3, ("a", "b", "???")),
    (["", "a", "b", "c"], 3, ("a", "b", "c")),
    (["a", "", "c", ""], None, ("a", "???", "c")),
    (["0 a", "", "2 c"], 3, ("a", "???", "c")),
    (["0 a", "1 b", "2 ???"], 3, ("a", "b", "???")),
    (
        [f"{number} x" for number in range(90) if number % 9],
        90,
        tuple("x" if number % 9 else "???" for number in range(90)),
    ),
]


@pytest.mark.parametrize(("lines", "classes", "names"), LABEL_FILES)
def test_label_files_of_every_form_are_read(
    lines: list[str], classes: int | None, names: tuple[str, ...]
) -> None:
    assert parse_labels(lines, classes) == names


@pytest.mark.parametrize(
    ("lines", "classes", "words"),
    [
        ([], 3, "holds no labels"),
        (["", " "], 3, "holds no labels"),
        (["a", "b"], 3, "has 2 labels, but the model has 3 classes"),
        (["a", "b", "c", "d"], 3, "has 4 labels, but the model has 3 classes"),
        (["???", "a", "b", "c", "d"], 3, "has 5 labels, but the model has 3 classes"),
        (["1 a", "2 b", "3 c"], 3, "has a label for class 3, but the model has 3 classes"),
        (["0 person", "1 car"], 90, "has 2 labels, the last for class 1, but .* has 90 classes"),
        (["0 person", "89 car"], 90, "has 2 labels, the last for class 89, but .* 90 classes"),
        ([f"{number} x" for number in range(80)], 90, "has 80 labels, the last for class 79"),
        (["0 person", "0 car", "1 cat"], 2, "has several labels for one class"),
        (["0 person", "1 car", "2 cat", "3 dog"], 3, "has a label for class 3"),
    ],
)
def test_label_files_that_cannot_be_right_are_refused(
    lines: list[str], classes: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        parse_labels(lines, classes)


def test_labels_of_the_manifest_may_leave_out_any_classes() -> None:
    assert parse_labels(["0 a", "1 b"], 4, vouched=True) == ("a", "b", "???", "???")
