"""What a model's classes are called: one reader, for files and for what is packed into a model."""

import re
from collections.abc import Iterable
from pathlib import Path

from app.advice import unreadable
from app.errors import ModelError
from app.manifest import is_there
from app.tflite import TFLiteFile

UNNAMED = "???"
MAX_CLASSES = 100_000  # of a model that does not say how many it has

# With a byte order mark, as some editors write it; else UTF-8, which other text hardly ever is by
# chance, or else what Windows has used in Western Europe.
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
CHARSETS = ("utf-8", "cp1252")
LINE_END = re.compile("\r\n|\r|\n")
NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
NUMBERED = re.compile(r"(\d{1,9})[\s:,]+(\S.*)", re.ASCII)


def labels_of(
    file: TFLiteFile, path: Path, chosen: Path | None, vouched: bool = False
) -> tuple[str, ...]:
    """The name of each class id of the model in `path`: from the file `chosen`, else packed into
    the model, else from the text file beside it.

    Those `vouched` for may leave out as many classes as they like. Raises ModelError naming the
    file and the remedy.
    """
    beside = path.with_suffix(".txt")
    if chosen:
        return _read(chosen, file, path, "REEF_LABELS: ", vouched)
    if file.texts:
        try:
            return _packed(file, path)
        except ModelError:
            if not is_there(beside):
                raise
    if is_there(beside):
        return _read(beside, file, path)
    raise ModelError(
        f"{path}: has no labels inside and there is no {beside.name} beside it; put it there "
        "(REEF_LABELS can name the default model's)"
    )


def _read(
    source: Path, file: TFLiteFile, path: Path, setting: str = "", vouched: bool = False
) -> tuple[str, ...]:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ModelError(f"{setting}{source}: {unreadable(source, error)}") from error
    try:
        return parse_labels(lines_of(data), file.classes, vouched)
    except ValueError as error:
        raise ModelError(f"{setting}{source}: {error} (for {path})") from error


def _packed(file: TFLiteFile, path: Path) -> tuple[str, ...]:
    """From the text file in the model that the metadata name, or else the only one that can be."""
    named = [name for name in file.label_files if name in file.texts]
    called = [name for name in file.texts if "label" in name.rpartition("/")[2].lower()]
    names = named[:1] or (called if len(called) == 1 else list(file.texts))
    fitting: dict[str, tuple[str, ...]] = {}
    objections: list[str] = []
    for name in names:
        try:
            fitting[name] = parse_labels(lines_of(file.texts[name]), file.classes)
        except ValueError as error:
            objections.append(f"{name} inside {error}")
    different = set(fitting.values())
    if len(different) == 1:
        return different.pop()
    if different:
        objections = [f"which text file inside has its labels can't be told: {', '.join(fitting)}"]
    why = "; ".join(objections)
    raise ModelError(f"{path}: {why}; REEF_LABELS can name the default model's")


def lines_of(data: bytes) -> list[str]:
    """The lines of a text in UTF-8, in UTF-16 with its mark, or in Windows-1252, whatever ends
    them. Raises ValueError for what is no text."""
    marked = [charset for mark, charset in MARKS if data.startswith(mark)]
    for charset in marked or CHARSETS:
        try:
            text = data.decode(charset)
        except UnicodeDecodeError:
            continue
        if not NO_TEXT.search(text):
            return LINE_END.split(text)
    raise ValueError("is no text; it takes one label per line, in UTF-8")


def parse_labels(
    lines: Iterable[str], classes: int | None, vouched: bool = False
) -> tuple[str, ...]:
    """The name of each class id, from lines `name` or `id name`; UNNAMED for an empty line.

    `classes` is how many the model tells apart, None if it doesn't say. A first line `???` or
    `background` beyond that number stands for no class, as in TensorFlow's label maps.
    Raises ValueError if the labels can't be the model's: without ids by their number; with ids,
    which may leave classes out, if they don't end with the last class or leave out most; unless
    somebody has `vouched` for them.
    """
    texts = [line.strip() for line in lines]
    while texts and not texts[-1] and len(texts) != classes:
        texts.pop()
    if not any(texts):
        raise ValueError("holds no labels; it takes one per line")
    numbered = [NUMBERED.fullmatch(text) for text in texts if text]
    if all(numbered):
        return _numbered(
            [(int(match[1]), match[2]) for match in numbered if match], classes, vouched
        )
    texts = [text or UNNAMED for text in texts]
    if len(texts) - 1 == classes and texts[0].lower() in (UNNAMED, "background"):
        texts = texts[1:]
    if classes is not None and len(texts) != classes:
        raise ValueError(f"has {len(texts)} labels, but the model has {classes} classes")
    return tuple(texts)


def _numbered(labels: list[tuple[int, str]], classes: int | None, vouched: bool) -> tuple[str, ...]:
    names = dict(labels)
    last = max(names)
    if len(names) < len(labels):
        raise ValueError("has several labels for one class")
    if last >= (classes or MAX_CLASSES):
        most = classes or f"at most {MAX_CLASSES}"
        raise ValueError(f"has a label for class {last}, but the model has {most} classes")
    if classes and not vouched and (last < classes - 1 or len(names) < classes / 2):
        raise ValueError(
            f"has {len(names)} labels, the last for class {last}, but the model has {classes} "
            f"classes, 0 to {classes - 1}; call those without a name {UNNAMED}"
        )
    return tuple(names.get(i, UNNAMED) for i in range(classes or last + 1))
