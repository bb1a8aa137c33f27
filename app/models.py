"""The models served: which files, what they take and give, and what their classes are called.

Everything is checked here, once, before the first request; nothing is guessed later. The manifest
(`models/manifest.yaml`) describes the models that Reef knows; a `.tflite` file of the user's own
is described by what it declares.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from app import tflite
from app.download import Checksum
from app.errors import ModelError, SettingsError, UnknownModel
from app.settings import EMBEDDED_MODELS, Settings
from app.tflite import TFLiteFile

Kind = Literal["cpu", "edgetpu"]
Resize = Literal["stretch", "letterbox"]

# A float model without metadata takes pixels from -1 to 1, as TensorFlow's detectors do.
DEFAULT_NORMALISATION = (127.5, 127.5)
UNNAMED = "???"
MAX_CLASSES = 100_000  # of a model that does not say how many it has


@dataclass(frozen=True)
class Layout:
    """How a model wants its picture: uint8 RGB of shape (1, height, width, 3)."""

    width: int
    height: int
    resize: Resize


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


# ---------------------------------------------------------------------------- the manifest


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestFile(_Strict):
    """One file of a model; `url` is where it can be had when it is not embedded.

    Where nobody has published a SHA-256, the id that git gives the file verifies it.
    """

    path: str
    sha256: str | None = None
    git_blob: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _is_verifiable(self) -> Self:
        if not (self.sha256 or self.git_blob):
            raise ValueError(f"{self.path} has neither sha256 nor git_blob")
        return self

    @property
    def checksum(self) -> Checksum:
        """What its bytes must have."""
        return Checksum(self.sha256, self.git_blob)

    @property
    def checksum_kind(self) -> str:
        """What verifies it, for people."""
        return "sha256" if self.sha256 else "git blob id"


class ManifestInput(_Strict):
    """The input layout that the files must have."""

    width: int
    height: int
    resize: Resize


class ManifestSelfTest(_Strict):
    """A picture beside the manifest and the class that must be found in it."""

    picture: str
    expect: str


class ManifestModel(_Strict):
    """One model of the manifest."""

    about: str
    licence: str
    input: ManifestInput
    labels: str
    selftest: ManifestSelfTest | None = None
    files: Mapping[Kind, ManifestFile]


class Manifest(_Strict):
    """`models/manifest.yaml`."""

    default: Mapping[Kind, str]
    models: Mapping[str, ManifestModel]


def read_manifest(folder: Path = EMBEDDED_MODELS) -> Manifest:
    """The manifest in `folder`. Raises ModelError naming the file and what is wrong with it."""
    path = folder / "manifest.yaml"
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_bytes()))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; restore it from Reef's sources") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ModelError(f"{path}: {' '.join(str(error).split())[:300]}") from error


def locate(name: str, models_dir: Path) -> Path:
    """Where a file of the manifest is: in `models_dir`, else embedded; where it belongs if not."""
    own, embedded = models_dir / name, EMBEDDED_MODELS / name
    return embedded if embedded.exists() and not own.exists() else own


# ---------------------------------------------------------------------------- loading


def load(settings: Settings) -> Catalogue:
    """Find, check and describe every model that the settings ask for.

    Raises ModelError naming the file and the remedy, or SettingsError.
    """
    if not settings.models_dir.is_dir():
        raise SettingsError(f"REEF_MODELS_DIR: no such folder '{settings.models_dir}'; mount it")
    if settings.model_cpu and not settings.model:
        raise SettingsError("REEF_MODEL_CPU: is the counterpart of REEF_MODEL; set that too")
    loader = _Loader(settings.models_dir, read_manifest())
    default = loader.default(settings)
    if unknown := default.unknown_label(settings.only_labels):
        raise SettingsError(f"REEF_ONLY_LABELS: {unknown}")
    models = [default, *(loader.model(name, "REEF_EXTRA_MODELS") for name in settings.extra_models)]
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
        variants = self._variants(name, entry, self._find(entry.labels))
        if not variants:
            wanted = entry.files.get("cpu") or next(iter(entry.files.values()))
            raise ModelError(
                f"{self.models_dir / wanted.path}: missing; `reef models pull {name}` fetches it "
                f"from {wanted.url}"
            )
        given = self._variants(name, entry, labels) if labels else variants
        return Model(name, given, self._selftest(entry, variants, given))

    def _variants(self, name: str, entry: ManifestModel, labels: Path) -> dict[Kind, Variant]:
        layout = Layout(**entry.input.model_dump())
        return {
            kind: _variant(name, self._find(file.path), labels, layout, file.checksum)
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
        if not picture.is_file():
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
            if path.is_file():
                return path
        if name.endswith(".tflite") or "/" in name:
            raise ModelError(f"{name}: no such file; mount it or correct the path")
        known = ", ".join(sorted(self.manifest.models))
        raise ModelError(f"{name}: is neither a file nor in the manifest, which has: {known}")

    def _find(self, name: str) -> Path:
        return locate(name, self.models_dir)

    def _present(self, name: str, kind: Kind) -> bool:
        file = self.manifest.models[name].files.get(kind)
        return file is not None and self._find(file.path).exists()


def _variant(
    name: str, path: Path, labels: Path | None, layout: Layout | None, checksum: Checksum | None
) -> Variant:
    """Check and describe one file. `layout` and `checksum` are what the manifest promises."""
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
        labels=_labels(file, path, labels),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; mount it or correct the path") from error


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


def _labels(file: TFLiteFile, path: Path, given: Path | None) -> tuple[str, ...]:
    beside = path.with_suffix(".txt")
    source = given or (None if file.labels else beside if beside.is_file() else None)
    if source is None and file.labels is None:
        raise ModelError(
            f"{path}: has no labels inside and there is no {beside.name} beside it; put it there "
            "(REEF_LABELS can name the default model's)"
        )
    where = source or path
    try:
        lines = source.read_text("utf-8-sig").splitlines() if source else file.labels or ()
    except OSError as error:
        setting = "REEF_LABELS: " if given else ""
        raise ModelError(f"{setting}{where}: {error.strerror}; correct the path") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: is no text; it takes one label per line") from error
    try:
        return parse_labels(lines, file.classes)
    except ValueError as error:
        raise ModelError(f"{where}: {error} (for {path})") from error


def parse_labels(lines: Iterable[str], classes: int | None) -> tuple[str, ...]:
    """The name of each class id, from lines `name` or `id name`.

    `classes` is how many the model tells apart, None if it doesn't say. A first line `???` or
    `background` beyond that number stands for no class, as in TensorFlow's label maps.
    Raises ValueError if the number of labels can't be right.
    """
    texts = [line.strip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    if not texts:
        raise ValueError("holds no labels; it takes one per line")
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(\S.*)", text) for text in texts if text]
    if all(numbered):
        names = {int(match[1]): match[2] for match in numbered if match}
        if max(names) >= (classes or MAX_CLASSES):
            most = classes or f"at most {MAX_CLASSES}"
            raise ValueError(
                f"has a label for class {max(names)}, but the model has {most} classes"
            )
        return tuple(names.get(i, UNNAMED) for i in range(classes or max(names) + 1))
    if len(texts) - 1 == classes and texts[0].lower() in (UNNAMED, "background"):
        texts = texts[1:]
    if classes is not None and len(texts) != classes:
        raise ValueError(f"has {len(texts)} labels, but the model has {classes} classes")
    return tuple(texts)
