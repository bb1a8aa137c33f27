"""Post pictures to a running Reef and draw what it finds. It made docs/detection.jpg:

    python docs/draw_detection.py models/selftest_person.jpg \\
        tests/pictures/chelsea.png tests/pictures/coffee.png --output docs/detection.jpg
"""

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

HEIGHT = 264  # of every picture in the output, in pixels
GAP = 6
COLOUR = (64, 224, 255)


def predict(url: str, picture: Path) -> dict[str, Any]:
    """Reef's answer: the picture is the body, so its bytes are all there is to send."""
    request = urllib.request.Request(
        f"{url}/predict", picture.read_bytes(), {"Content-Type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def draw(picture: Path, answer: dict[str, Any]) -> Image.Image:
    """The picture, HEIGHT pixels high, with a box and a caption for each prediction."""
    original = Image.open(picture).convert("RGB")
    scale = HEIGHT / original.height
    drawn = original.resize((round(original.width * scale), HEIGHT), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=14)
    for found in answer["predictions"]:
        left, top, right, bottom = (round(edge * scale) for edge in found["bbox"])
        canvas.rectangle((left, top, right, bottom), outline=COLOUR, width=2)
        caption = f"{found['class']} {found['score']:.2f}"
        place = (left + 4, top + 3)
        canvas.rectangle((left, top, place[0] + font.getlength(caption) + 3, top + 21), COLOUR)
        canvas.text(place, caption, "black", font)
    return drawn


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw what a running Reef finds in pictures.")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the server (%(default)s)")
    parser.add_argument("--output", type=Path, default="detection.jpg", help="(%(default)s)")
    arguments = parser.parse_args()

    drawn = [draw(picture, predict(arguments.url, picture)) for picture in arguments.pictures]
    width = sum(each.width for each in drawn) + GAP * (len(drawn) - 1)
    sheet = Image.new("RGB", (width, HEIGHT), "white")
    left = 0
    for each in drawn:
        sheet.paste(each, (left, 0))
        left += each.width + GAP
    sheet.save(arguments.output, quality=82, optimize=True)


if __name__ == "__main__":
    main()
