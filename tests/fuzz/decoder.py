"""Coverage-guided fuzzing of the decoder: `python -m tests.fuzz.decoder [RUNS]`.

atheris follows which lines of app.imaging, app.formats and Pillow's Python parts a picture
reaches, and changes those that reach new ones. Whatever is not a refusal ends the run with the picture in
build/. (Pillow's C code is fuzzed by Pillow itself, in OSS-Fuzz.)
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app.imaging", "app.formats", "PIL"]):
    from app import imaging
    from app.errors import RequestError
    from app.models import Layout

from tests.fuzz.pictures import seeds

RUNS = 200_000
LARGEST = 64 * 1024  # bytes
MAX_PIXELS = 1_000_000  # smaller than in service, so that more pictures are decoded in a second
LAYOUT = Layout(32, 32, "letterbox")


def decode(data: bytes) -> None:
    """A picture is seen, or refused."""
    try:
        picture = imaging.decode(data, (LAYOUT.width, LAYOUT.height), MAX_PIXELS)
    except RequestError:
        return
    tensor, _ = imaging.fit(picture, LAYOUT)
    assert tensor.shape == (1, LAYOUT.height, LAYOUT.width, 3)


def main(runs: int = RUNS) -> None:
    """See above; libFuzzer ends the process."""
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        options = [f"-runs={runs}", f"-max_len={LARGEST}", "-seed=34", "-timeout=10"]
        options += ["-rss_limit_mb=1024", "-artifact_prefix=build/", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, folder], decode)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
