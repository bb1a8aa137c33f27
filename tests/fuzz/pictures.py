"""Posts mutated pictures to the application: `python -m tests.fuzz.pictures [COUNT [SEED]]`.

Every answer must be one of STATUSES, and the process must not grow. The pictures are small ones of
every format with everything that they may hold, and what the corpus has.
"""

import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import psutil

from app.http import create_app
from app.memory import give_memory_back
from tests import colour_model
from tests.corpus import make, mutate
from tests.support import encode, exif, make_settings, noise, running

COUNT, SEED = 100_000, 34
STATUSES = {200, 400, 413, 415, 422}
"""400: what was cut down to nothing."""

LARGEST_SEED = 60_000  # bytes; of the corpus, what is larger would only take long
SETTLED = 0.2  # share of the run after which the process must have its final size
MOST_GROWTH = 48 * 1024 * 1024
REPORT_EVERY = 10_000


def seeds() -> list[bytes]:
    """The pictures that are damaged."""
    small = noise((32, 24))
    kinds = [encode(small, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")]
    more = [
        encode(small, "JPEG", progressive=True),
        encode(small, "JPEG", exif=exif(6)),
        encode(small.convert("CMYK"), "JPEG"),
        encode(small.convert("P"), "PNG"),
        encode(small.convert("LA"), "PNG"),
        encode(small, "WEBP", lossless=True),
        encode(small, "WEBP", exif=exif(6)),
    ]
    corpus = [sample.make() for sample in make.CORPUS if not sample.name.startswith("jpeg_81")]
    return kinds * 4 + more * 2 + [file for file in corpus if 0 < len(file) < LARGEST_SEED]


def main(count: int = COUNT, seed: int = SEED) -> int:
    """See above; returns the exit status."""
    give_memory_back()  # as the server does
    with tempfile.TemporaryDirectory() as folder:
        path = colour_model.write(Path(folder) / "colour.tflite")
        with running(make_settings(model=str(path), run_dir=folder, log_level="error")) as service:
            client = create_app(service).test_client()
            process = psutil.Process()
            statuses: Counter[int] = Counter()
            settled = 0
            began = time.monotonic()
            pictures = enumerate(mutate.mutations(seeds(), count, seed), start=1)
            for number, picture in islice(pictures, count):
                answer = client.post("/predict", data=picture, content_type="image/jpeg")
                statuses[answer.status_code] += 1
                if answer.status_code not in STATUSES:
                    failed = Path(f"build/fuzz-picture-{seed}-{number}.bin")
                    failed.parent.mkdir(exist_ok=True)
                    failed.write_bytes(picture)
                    print(f"{failed}: {answer.status_code} {answer.text}", flush=True)
                if number == int(count * SETTLED):
                    settled = process.memory_info().rss
                if number % REPORT_EVERY == 0:
                    held = process.memory_info().rss / 1024**2
                    line = f"{number} of {count}: {dict(statuses)}, {held:.1f} MiB"
                    print(line, file=sys.stderr, flush=True)
            growth = process.memory_info().rss - settled
            assert client.get("/ready").status_code == 200
    print(
        f"{count} mutated pictures, seed {seed}, {time.monotonic() - began:.0f} s: "
        f"{dict(sorted(statuses.items()))}; memory {growth / 1024**2:+.1f} MiB "
        f"after the first {SETTLED:.0%}"
    )
    return 0 if set(statuses) <= STATUSES and growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
