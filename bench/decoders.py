"""Compare ways from a JPEG's bytes to the model's tensor: time, memory, threads, accuracy.

    pip install opencv-python-headless simplejpeg pycocotools
    python -m bench.decoders --data DIR

Prints two markdown tables; docs/decoding.md has them, and what follows from them.
"""

import argparse
import io
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from bench.coco import AccuracySet, Detection, Photo, Scores
from bench.decoding import DECODERS, REFERENCE, Decoder, Pixels

MODELS = Path(__file__).parent.parent / "models"
CAMERAS = ((640, 480), (1920, 1080), (3840, 2160))
TILE = (640, 480)
QUALITY = 85
# Most photos are 640x480: only enlarged ones make a decoder scale, and only reduced ones are
# smaller than the model's input.
ENLARGED = (2.0, 3.0, 4.0)
REDUCED = (0.4, 0.5)
MIB = 1 << 20


@dataclass(frozen=True)
class Speed:
    """Medians for one picture: milliseconds of wall clock and CPU, ratio to the reference."""

    wall_ms: float
    cpu_ms: float
    ratio: float


def camera_picture(photos: list[Photo], size: tuple[int, int]) -> bytes:
    """A JPEG as a camera sends it, with detail down to the pixel: photos side by side."""
    width, height = size
    picture = Image.new("RGB", size)
    spots = [(x, y) for y in range(0, height, TILE[1]) for x in range(0, width, TILE[0])]
    for spot, photo in zip(spots, photos, strict=False):
        with Image.open(photo.path) as tile:
            picture.paste(tile.convert("RGB").resize(TILE, Resampling.LANCZOS), spot)
    return jpeg(picture)


def resized(photo: Photo, times: float) -> bytes:
    """The photo's own JPEG, or one of it enlarged or reduced."""
    if times == 1:
        return photo.path.read_bytes()
    with Image.open(photo.path) as picture:
        size = (round(picture.width * times), round(picture.height * times))
        return jpeg(picture.convert("RGB").resize(size, Resampling.BICUBIC))


def jpeg(picture: Image.Image) -> bytes:
    """The picture as a JPEG with colours at half resolution (4:2:0), as cameras have them."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def speeds(picture: bytes, rounds: int) -> dict[str, Speed]:
    """Each decoder once per round, so that noise of the machine meets all of them alike."""
    wall: dict[str, list[float]] = {name: [] for name in DECODERS}
    cpu: dict[str, list[float]] = {name: [] for name in DECODERS}
    for decode in DECODERS.values():
        decode(picture)
    for _ in range(rounds):
        for name, decode in DECODERS.items():
            cpu_start, start = time.thread_time(), time.perf_counter()
            decode(picture)
            wall[name].append(1000 * (time.perf_counter() - start))
            cpu[name].append(1000 * (time.thread_time() - cpu_start))
    return {
        name: Speed(
            wall_ms=statistics.median(wall[name]),
            cpu_ms=statistics.median(cpu[name]),
            ratio=statistics.median(
                one / reference for one, reference in zip(wall[name], wall[REFERENCE], strict=True)
            ),
        )
        for name in DECODERS
    }


def thread_gains(picture: bytes, rounds: int) -> dict[str, float]:
    """How many times as many pictures two threads decode as one does: 2 without a GIL.

    From the best of the rounds: a neighbour on the machine takes a core, and never gives one.
    """
    pictures = [picture] * 8
    best: dict[str, list[float]] = {name: [math.inf, math.inf] for name in DECODERS}
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        for _ in range(rounds):
            for name, decode in DECODERS.items():
                for index, threads in enumerate((one, two)):
                    start = time.perf_counter()
                    list(threads.map(decode, pictures))
                    best[name][index] = min(best[name][index], time.perf_counter() - start)
    return {name: alone / together for name, (alone, together) in best.items()}


def peak_memory(name: str, small: bytes, picture: bytes) -> float:
    """MiB that decoding the picture takes at its peak; to be called in a fresh process."""
    DECODERS[name](small)  # what is loaded once is not the picture's
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    before = resident_bytes("VmRSS")
    DECODERS[name](picture)
    return (resident_bytes("VmHWM") - before) / MIB


def resident_bytes(field: str) -> int:
    """A figure of /proc/self/status: VmRSS is what is resident now, VmHWM the most it was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def peak_memories(small: bytes, picture: bytes) -> dict[str, float]:
    """Peak memory of each decoder, each in a process of its own."""
    count = len(DECODERS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
        peaks = fresh.map(peak_memory, DECODERS, [small] * count, [picture] * count)
        return dict(zip(DECODERS, peaks, strict=True))


class Model:
    """The embedded default model on one thread: on two, its suppression leaves a class out."""

    def __init__(self) -> None:
        self._labels = (MODELS / "coco_labels.txt").read_text().splitlines()
        self._interpreter = Interpreter(str(MODELS / "efficientdet_lite0.tflite"), num_threads=1)
        self._interpreter.allocate_tensors()
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def detect(self, pixels: Pixels) -> Iterator[tuple[str, NDArray[np.float32], float]]:
        """Class name, box [y1, x1, y2, x2] in units of the picture, clamped to it, and score."""
        self._interpreter.set_tensor(0, pixels[np.newaxis])
        self._interpreter.invoke()
        boxes, classes, scores, count = map(self._interpreter.get_tensor, self._outputs)
        for index in range(int(count[0])):
            name = self._labels[int(classes[0, index])]
            yield name, boxes[0, index].clip(0, 1), float(scores[0, index])


def accuracy(
    decode: Decoder, data: AccuracySet, pictures: dict[Photo, bytes], model: Model, *, mirror: bool
) -> Scores:
    """COCO's scores when the decoder reads the pictures, and mirrors them if told to."""
    found: list[Detection] = []
    for photo, picture in pictures.items():
        width, height = Image.open(photo.path).size
        pixels = decode(picture)
        for name, (y1, x1, y2, x2), score in model.detect(pixels[:, ::-1] if mirror else pixels):
            left, right = (1 - x2, 1 - x1) if mirror else (x1, x2)
            box = (left * width, y1 * height, right * width, y2 * height)
            found.append(Detection(photo, name, box, score))
    return data.score(found)


def accuracies(data: AccuracySet, times: tuple[float, ...]) -> dict[str, list[Scores]]:
    """Scores of each decoder for the photos resized by these factors, mirrored and not.

    One score moves by half a percent when equal scores change places; the mean of several does
    not.
    """
    model = Model()
    scores: dict[str, list[Scores]] = {name: [] for name in DECODERS}
    for factor in times:
        pictures = {photo: resized(photo, factor) for photo in data.photos}
        for name, decode in DECODERS.items():
            tell(f"accuracy, photos x{factor}: {name}")
            scores[name] += [
                accuracy(decode, data, pictures, model, mirror=mirror) for mirror in (False, True)
            ]
    return scores


def mean(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def row(cells: list[str]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(cells)} |"


def print_table(head: list[str], body: dict[str, list[str]]) -> None:
    """A markdown table with the decoders' names first."""
    print(row(["decoder", *head]))
    print(row(["---", *["---:"] * len(head)]))
    for name, cells in body.items():
        print(row([name, *cells]))
    print()


def tell(text: str) -> None:
    """Progress, for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare ways from a JPEG to the model's tensor.")
    parser.add_argument("--data", type=Path, required=True, help="the accuracy set's directory")
    parser.add_argument("--rounds", type=int, default=50, help="per measurement (%(default)s)")
    arguments = parser.parse_args()
    try:
        data = AccuracySet(arguments.data)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1

    cv2.setNumThreads(1)
    cameras = {size: camera_picture(data.photos, size) for size in CAMERAS}
    speed = {}
    for (width, height), picture in cameras.items():
        tell(f"speed, {width}x{height}, {len(picture) // 1024} KiB")
        speed[f"{width}x{height}"] = speeds(picture, arguments.rounds)
    print_table(
        [f"{size}, ms (CPU), ratio" for size in speed],
        {
            name: [
                f"{one.wall_ms:.1f} ({one.cpu_ms:.1f}) {one.ratio:.2f}"
                for one in (by_decoder[name] for by_decoder in speed.values())
            ]
            for name in DECODERS
        },
    )

    small, hd, uhd = cameras.values()
    tell("threads, memory")
    gains = thread_gains(hd, max(1, arguments.rounds // 2))
    peaks = peak_memories(small, uhd)
    own = accuracies(data, (1.0,))
    larger = accuracies(data, ENLARGED)
    smaller = accuracies(data, REDUCED)
    print_table(
        ["2 threads / 1", "peak MiB at 4K", "mAP", "mAP enlarged", "mAP reduced", "person AP"],
        {
            name: [
                f"{gains[name]:.2f}",
                f"{peaks[name]:.1f}",
                mean([score.map for score in own[name]]),
                mean([score.map for score in larger[name]]),
                mean([score.map for score in smaller[name]]),
                mean([score.person for score in own[name] + larger[name]]),
            ]
            for name in DECODERS
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
