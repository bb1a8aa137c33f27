"""What a model's classes are called."""

import re
from collections.abc import Iterable
from pathlib import Path

from app.errors import ModelError
from app.tflite import TFLiteFile

UNNAMED = "???"
MAX_CLASSES = 100_000  # of a model that does not say how many it has


def labels_of(file: TFLiteFile, path: Path, given: Path | None) -> tuple[str, ...]:
    """The name of each class id of the model in `path`: from `given`, else packed into the model,
    else from the text file beside it. Raises ModelError naming the file and the remedy."""
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
