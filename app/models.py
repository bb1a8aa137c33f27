"""The models served: which files, what they take and give, and what their classes are called.

Everything is checked here, once, before the first request; nothing is guessed later. The manifest
(`models/manifest.yaml`) describes the models that Reef knows; a `.tflite` file of the user's own
is described by what it declares.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from app import tflite
from app.advice import HERE, unreadable
from app.download import Checksum
from app.errors import ModelError, Problems, SettingsError, UnknownModel
from app.labels import UNNAMED, labels_of
from app.manifest import (
    Kind,
    Manifest,
    ManifestModel,
    Resize,
    is_there,
    locate,
    read_manifest,
)
from app.settings import Settings
from app.tflite import TFLiteFile

# A float model without metadata takes pixels from -1 to 1, as TensorFlow's detectors do.
DEFAULT_NORMALISATION = (127.5, 127.5)

LABELS_SHOWN, LABEL_SHOWN = 100, 40  # in a message: so many, each with so many characters


@dataclass(frozen=True)
class Layout:
    """How a model wants its picture: uint8 RGB of shape (1, height, width, 3)."""

    width: int
    height: int
    resize: Resize

    @property
    def tensor_shape(self) -> tuple[int, int, int, int]:
        """Of the tensor."""
        return (1, self.height, self.width, 3)


@dataclass(frozen=True)
class Variant:
    """One file that one kind of device runs, checked and described."""

    name: str
    kind: Kind
    path: Path
    sha256: str
    layout: Layout
    normalisation: tuple[float, float]
    """(mean, deviation) of a pixel, for a float32 input."""
    outputs: tuple[int, ...]
    """Positions of boxes, classes, scores and count among the file's outputs."""
    detections: int
    """How many detections the outputs have room for."""
    regular_nms: bool
    """Overlaps are suppressed by TFLite_Detection_PostProcess, within each class."""
    labels: tuple[str, ...]
    """The name of each class id; UNNAMED where it has none."""

    def label(self, class_id: int) -> str:
        """The name of a class: `person`, or `class_11` where it has none."""
        named = 0 <= class_id < len(self.labels) and self.labels[class_id] != UNNAMED
        return self.labels[class_id] if named else f"class_{class_id}"


@dataclass(frozen=True)
class SelfTestPicture:
    """A picture in which a model must find an object with one of the labels `expect`."""

    path: Path
    expect: frozenset[str]


@dataclass(frozen=True, eq=False)
class Model:
    """What clients ask for by name; one variant per kind of device that can run it."""

    name: str
    variants: Mapping[Kind, Variant]
    selftest: SelfTestPicture | None

    @cached_property
    def layouts(self) -> frozenset[Layout]:
        """Every layout that a device may want a picture in; nearly always one."""
        return frozenset(variant.layout for variant in self.variants.values())

    @cached_property
    def labels(self) -> frozenset[str]:
        """Every label that an answer may have."""
        return frozenset(
            variant.label(class_id)
            for variant in self.variants.values()
            for class_id in range(len(variant.labels))
        )

    def unknown_label(self, names: Iterable[str]) -> str | None:
        """What is wrong with the first of these names that is no label of the model, in words."""
        for name in names:
            if name not in self.labels:
                close = difflib.get_close_matches(name, sorted(self.labels), n=1)
                hint = f"did you mean {close[0]!r}?" if close else "GET /models lists them"
                return f"model {self.name} has no label {name[:40]!r}; {hint}"
        return None


@dataclass(frozen=True)
class Catalogue:
    """The models served, by name, and which of them is the default."""

    default: Model
    by_name: Mapping[str, Model]

    def get(self, name: str | None) -> Model:
        """The model of that name, or the default; raises UnknownModel."""
        if not name:
            return self.default
        try:
            return self.by_name[name]
        except KeyError:
            served = ", ".join(sorted(self.by_name))
            raise UnknownModel(
                f"no model {name[:80]!r} is served here; there is: {served}"
            ) from None

    @property
    def all(self) -> tuple[Model, ...]:
        """Each model once, the default first."""
        return tuple(dict.fromkeys([self.default, *self.by_name.values()]))


# ---------------------------------------------------------------------------- loading


def load(settings: Settings) -> Catalogue:
    """Find, check and describe every model that the settings ask for.

    Raises ModelError naming the file and the remedy, or SettingsError.
    """
    if not os.path.isdir(settings.models_dir):
        raise SettingsError(f"REEF_MODELS_DIR: no such folder '{settings.models_dir}'; mount it")
    problems, models = Problems(), []
    loader = _Loader(settings.models_dir, read_manifest())
    with problems.collecting():
        if settings.model_cpu and not settings.model:
            raise SettingsError("REEF_MODEL_CPU: is the counterpart of REEF_MODEL; set that too")
    with problems.collecting():
        default = loader.default(settings)
        models.append(default)
        if unknown := [name for name in settings.only_labels if name not in default.labels]:
            raise SettingsError(f"REEF_ONLY_LABELS: {no_such_labels(default, unknown)}")
    for name in settings.extra_models:
        with problems.collecting():
            models.append(loader.model(name, "REEF_EXTRA_MODELS"))
    problems.raise_all()
    by_name: dict[str, Model] = {}
    files: dict[tuple[Kind, str], Variant] = {}
    for model in models:
        for kind, variant in model.variants.items():
            first = files.setdefault((kind, variant.name), variant)
            alike = (first.sha256, first.labels) == (variant.sha256, variant.labels)
            if first.path != variant.path and not alike:
                raise ModelError(
                    f"{variant.path}: is called {variant.name!r} like {first.path}; rename either"
                )
        by_name.setdefault(model.name, model)
    for kind, variant in default.variants.items():  # a mixed default's CPU twin has its own name
        by_name.setdefault(variant.name, Model(variant.name, {kind: variant}, default.selftest))
    return Catalogue(default, by_name)


def no_such_labels(model: Model, names: Sequence[str]) -> str:
    """That a model has no such labels, and those it has: the likely ones first, then in order."""
    close = [like for name in names for like in difflib.get_close_matches(name, model.labels, n=3)]
    labels = list(dict.fromkeys([*close, *sorted(model.labels)]))
    unknown = ", ".join(repr(name[:LABEL_SHOWN]) for name in names[:LABELS_SHOWN])
    shown = ", ".join(label[:LABEL_SHOWN] for label in labels[:LABELS_SHOWN])
    more = f" and {len(labels) - LABELS_SHOWN} more" if len(labels) > LABELS_SHOWN else ""
    return f"model {model.name} has no label {unknown}; it has: {shown}{more}"


class _Loader:
    def __init__(self, models_dir: Path, manifest: Manifest) -> None:
        self.models_dir = models_dir
        self.manifest = manifest

    def default(self, settings: Settings) -> Model:
        if settings.model:
            return self.model(settings.model, "REEF_MODEL", settings.labels, settings.model_cpu)
        names = self.manifest.default
        cpu = self._from_manifest(names["cpu"], settings.labels)
        if "edgetpu" not in names or not self._present(names["edgetpu"], "edgetpu"):
            return cpu
        edgetpu = self._from_manifest(names["edgetpu"], settings.labels)
        variants: dict[Kind, Variant] = {
            "cpu": cpu.variants["cpu"],
            "edgetpu": edgetpu.variants["edgetpu"],
        }
        return Model(edgetpu.name, variants, edgetpu.selftest)

    def model(self, name: str, setting: str, labels: Path | None = None, cpu: str = "") -> Model:
        """The model that `setting` calls `name`."""
        try:
            if name in self.manifest.models:
                return self._from_manifest(name, labels)
            return self._from_files(name, labels, cpu)
        except ModelError as error:
            message = str(error)
            raise ModelError(
                message if message.startswith("REEF_") else f"{setting}: {message}"
            ) from error

    def _from_manifest(self, name: str, labels: Path | None) -> Model:
        entry = self.manifest.models[name]
        variants = self._variants(name, entry, self._find(entry.labels), vouched=True)
        if not variants:
            wanted = entry.files.get("cpu") or next(iter(entry.files.values()))
            raise ModelError(
                f"{self.models_dir / wanted.path}: missing; `{HERE.pull(name)}` fetches it from "
                f"{wanted.url}"
            )
        given = self._variants(name, entry, labels) if labels else variants
        return Model(name, given, self._selftest(entry, variants, given))

    def _variants(
        self, name: str, entry: ManifestModel, labels: Path, vouched: bool = False
    ) -> dict[Kind, Variant]:
        layout = Layout(**entry.input.model_dump())
        return {
            kind: _variant(name, self._find(file.path), labels, layout, file.checksum, vouched)
            for kind, file in entry.files.items()
            if self._present(name, kind)
        }

    def _selftest(
        self, entry: ManifestModel, ours: Mapping[Kind, Variant], given: Mapping[Kind, Variant]
    ) -> SelfTestPicture | None:
        """The self-test's picture; what it shows by the labels `given`, not by the manifest's."""
        if entry.selftest is None:
            return None
        picture = self._find(entry.selftest.picture)
        if not is_there(picture):
            raise ModelError(f"{picture}: missing; restore it from Reef's sources")
        expect = (
            given[kind].label(class_id)
            for kind, variant in ours.items()
            for class_id, label in enumerate(variant.labels)
            if label == entry.selftest.expect
        )
        return SelfTestPicture(picture, frozenset(expect))

    def _from_files(self, name: str, labels: Path | None, cpu: str) -> Model:
        path = self._own(name)
        variant = _variant(path.stem, path, labels, None, None)
        variants: dict[Kind, Variant] = {variant.kind: variant}
        if cpu:
            own = cpu not in self.manifest.models
            twin = self.model(cpu, "REEF_MODEL_CPU", labels if own else None)
            if "cpu" not in twin.variants:
                raise ModelError(
                    f"{cpu}: is compiled for the Edge TPU; REEF_MODEL_CPU takes one that is not"
                )
            variants["cpu"] = twin.variants["cpu"]
        return Model(path.stem, variants, None)

    def _own(self, name: str) -> Path:
        for path in (Path(name), self.models_dir / name):
            if is_there(path):
                return path
        if name.endswith(".tflite") or "/" in name:
            raise ModelError(f"{name}: no such file; mount it or correct the path")
        known = ", ".join(sorted(self.manifest.models))
        raise ModelError(f"{name}: is neither a file nor in the manifest, which has: {known}")

    def _find(self, name: str) -> Path:
        return locate(name, self.models_dir)

    def _present(self, name: str, kind: Kind) -> bool:
        file = self.manifest.models[name].files.get(kind)
        return file is not None and is_there(self._find(file.path))


def _variant(
    name: str,
    path: Path,
    labels: Path | None,
    layout: Layout | None,
    checksum: Checksum | None,
    vouched: bool = False,
) -> Variant:
    """Check and describe one file. `layout` and `checksum` are what the manifest promises; the
    labels too where they are `vouched` for."""
    data = _read(path)
    actual = hashlib.sha256(data).hexdigest()
    if checksum and (objection := checksum.objection(data)):
        raise ModelError(f"{path}: {objection}; restore or fetch it again")
    try:
        file = tflite.read(data)
    except ValueError as error:
        raise ModelError(f"{path}: {error}; fetch it again") from error
    found = _layout(file, path, layout.resize if layout else "stretch")
    if layout and found != layout:
        raise ModelError(f"{path}: takes {found}, but the manifest says {layout}; correct either")
    outputs, detections = _outputs(file, path)
    return Variant(
        name=name,
        kind="edgetpu" if file.for_edgetpu else "cpu",
        path=path,
        sha256=actual,
        layout=found,
        normalisation=file.normalisation or DEFAULT_NORMALISATION,
        outputs=outputs,
        detections=detections,
        regular_nms=file.regular_nms,
        labels=labels_of(file, path, labels, vouched),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {unreadable(path, error)}") from error


def _layout(file: TFLiteFile, path: Path, resize: Resize) -> Layout:
    tensors = [(tensor.dtype, tensor.shape) for tensor in file.inputs]
    match tensors:
        case [("uint8" | "int8" | "float32", (1, height, width, 3))] if height > 0 and width > 0:
            return Layout(width, height, resize)
    raise ModelError(
        f"{path}: takes {tensors}; Reef feeds one uint8, int8 or float32 tensor of shape "
        "(1, height, width, 3)"
    )


# The names that TensorFlow's exporters give the four outputs of a detector.
OUTPUT_NAMES = (
    re.compile(r"boxes|location|PostProcess(:0)?$", re.IGNORECASE),
    re.compile(r"classes|category|PostProcess:1$", re.IGNORECASE),
    re.compile(r"scores|PostProcess:2$", re.IGNORECASE),
    re.compile(r"num_detections|number|count|PostProcess:3$", re.IGNORECASE),
)


def _outputs(file: TFLiteFile, path: Path) -> tuple[tuple[int, ...], int]:
    """Positions of boxes, classes, scores and count; and how many detections they hold."""
    order = file.post_process or _order_by_name([tensor.name for tensor in file.outputs])
    if order is None:
        raise ModelError(
            f"{path}: which of its outputs {[tensor.name for tensor in file.outputs]} are boxes, "
            "classes, scores and count can't be told; export it with TFLite_Detection_PostProcess"
        )
    shape = file.outputs[order[0]].shape
    detections = file.detections or (shape[1] if len(shape) == 3 else 0)
    wanted = [(1, detections, 4), (1, detections), (1, detections), (1,)]
    for position, want in zip(order, wanted, strict=True):
        tensor = file.outputs[position]
        if tensor.dtype != "float32" or tensor.shape not in ((), want):
            raise ModelError(
                f"{path}: output {tensor.name!r} is {tensor.dtype} {tensor.shape}; a detector's "
                f"are float32 {wanted}"
            )
    return order, detections


def _order_by_name(names: list[str]) -> tuple[int, ...] | None:
    if len(names) != 4:
        return None
    found = [[i for i, name in enumerate(names) if like.search(name)] for like in OUTPUT_NAMES]
    order = tuple(positions[0] for positions in found if len(positions) == 1)
    return order if len(set(order)) == 4 else None
