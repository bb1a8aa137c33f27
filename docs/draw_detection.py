"""Post pictures to a running Reef and draw what it finds.

It needs Pillow, which `make run` installs into .venv.
It made docs/detection.jpg:

    .venv/bin/python docs/draw_detection.py models/selftest_person.jpg \\
        tests/pictures/chelsea.png tests/pictures/coffee.png --output docs/detection.jpg
"""

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

try:
    from PIL import Image, ImageDraw, ImageFont, ImageOps
except ImportError:
    sys.exit("there is no Pillow in this Python: pip install pillow")

HEIGHT = 264  # of every picture in the output, in pixels
GAP = 6
COLOUR = (64, 224, 255)
TIMEOUT_S = 60


def predict(url: str, key: str, picture: Path) -> dict[str, Any]:
    """Reef's answer: the picture is the body, so its bytes are all there is to send."""
    headers = {"Content-Type": "application/octet-stream"}
    if key:
        headers["X-API-Key"] = key
    request = urllib.request.Request(f"{url}/predict", picture.read_bytes(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{picture}: {error.code}: {reason(error.read())}")
    except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        sys.exit(f"no Reef answers at {url}: {getattr(error, 'reason', error)}")
    return answer


def reason(body: bytes) -> str:
    """What a refusal says."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return "what answers there is not Reef"


def draw(picture: Path, answer: dict[str, Any]) -> Image.Image:
    """The picture, upright and HEIGHT pixels high, with a box and a caption for each prediction."""
    with Image.open(picture) as file:
        # Cameras store a picture as they were held; Reef's boxes are those of the upright one.
        upright = ImageOps.exif_transpose(file).convert("RGB")
    scale = HEIGHT / upright.height
    drawn = upright.resize((round(upright.width * scale), HEIGHT), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=14)
    for prediction in answer["predictions"]:
        left, top, right, bottom = (round(edge * scale) for edge in prediction["bbox"])
        canvas.rectangle((left, top, right, bottom), outline=COLOUR, width=2)
        caption = f"{prediction['class']} {prediction['score']:.2f}"
        place = (left + 4, top + 3)
        canvas.rectangle((left, top, place[0] + font.getlength(caption) + 3, top + 21), COLOUR)
        canvas.text(place, caption, "black", font)
    return drawn


def beside_each_other(pictures: list[Image.Image]) -> Image.Image:
    """One picture of several, on white."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw what a running Reef finds in pictures.")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the server (%(default)s)")
    parser.add_argument(
        "--key", default=os.environ.get("REEF_API_KEY", ""), help="the API key ($REEF_API_KEY)"
    )
    parser.add_argument("--output", type=Path, default="detection.jpg", help="(%(default)s)")
    options = parser.parse_args()
    if not (options.key.isascii() and options.key.isprintable()):
        parser.error("a key has ASCII characters only, and no line end")
    url = options.url.rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    try:
        drawn = [draw(path, predict(url, options.key, path)) for path in options.pictures]
        beside_each_other(drawn).save(options.output, quality=82, optimize=True)
    except (OSError, ValueError) as error:  # a file that can't be read, opened or written
        sys.exit(str(error))


if __name__ == "__main__":
    main()
