"""Measure the accuracy of a running server: post every photo of the accuracy set, and score.

    python -m bench.accuracy --url http://127.0.0.1:5000 --data DIR --min-map 27.5 --min-person 31.7

Exits with 1 when a score is below what was asked, or when nothing could be measured.
"""

import argparse
import http.client
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.coco import AccuracySet, Detection, Photo, Scores

# Everything the model finds: average precision needs the unlikely boxes too.
QUERY = "min_score=0&max_results=100"
TIMEOUT_S = 60.0  # the first answer may wait for a device to start


class CannotMeasure(Exception):
    """The server is not there, or does not answer as it should."""


class Server:
    """A running server, asked over one connection."""

    def __init__(self, url: str, key: str = "") -> None:
        """`key`: its API key, where it wants one."""
        address = urlsplit(url)
        if address.scheme != "http" or not address.hostname:
            raise CannotMeasure(f"--url: {url!r} is not like http://127.0.0.1:5000")
        self.url = url
        self._headers = {"X-API-Key": key} if key else {}
        self._target = f"{address.path.rstrip('/')}/predict?{QUERY}"
        self._connection = http.client.HTTPConnection(
            address.hostname, address.port, timeout=TIMEOUT_S
        )

    def predict(self, picture: Path) -> dict[str, Any]:
        """The server's answer to the picture; CannotMeasure if it gives none."""
        body, content_type = multipart(picture)
        try:
            headers = {**self._headers, "Content-Type": content_type}
            self._connection.request("POST", self._target, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise CannotMeasure(f"no answer from {self.url}, is Reef running? ({error})") from error
        if response.status != http.client.OK:
            raise CannotMeasure(
                f"{picture.name}: {self.url} answered {response.status} "
                f"{content[:200].decode(errors='replace')}"
            )
        answer: dict[str, Any] = json.loads(content)
        return answer


def multipart(picture: Path) -> tuple[bytes, str]:
    """A form with the picture as its field `image`: the body and its content type."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="image"; filename="{picture.name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + picture.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def detections(photo: Photo, answer: dict[str, Any]) -> Iterator[Detection]:
    """What the server found in the photo."""
    for found in answer["predictions"]:
        yield Detection(photo, found["class"], tuple(found["bbox"]), found["score"])


def with_progress(photos: list[Photo]) -> Iterator[Photo]:
    """The photos, counted on stderr if someone watches."""
    for number, photo in enumerate(photos, 1):
        if sys.stderr.isatty():
            end = "\n" if number == len(photos) else ""
            print(f"\r{number}/{len(photos)} photos", end=end, file=sys.stderr, flush=True)
        yield photo


def table(rows: Iterable[tuple[str, float, float | None]]) -> str:
    """Lines of name, percent measured and, where asked for, the least percent allowed."""
    lines = [f"{'':12}{'measured':>9}{'at least':>9}"]
    for name, measured, least in rows:
        lines.append(f"{name:12}{measured:9.1f}" + ("" if least is None else f"{least:9.1f}"))
    return "\n".join(lines)


def measure(server: Server, data: AccuracySet) -> tuple[Scores, set[str]]:
    """The scores over all photos, and the models and devices that answered."""
    found: list[Detection] = []
    answered: set[str] = set()
    for photo in with_progress(data.photos):
        answer = server.predict(photo.path)
        found += detections(photo, answer)
        answered.add(f"{answer['model']} on {answer['device']}")
    return data.score(found), answered


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Measure the accuracy of a running server.",
        epilog="The server's API key, where it has one, is taken from REEF_API_KEY.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the server (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="the accuracy set's directory")
    parser.add_argument("--min-map", type=float, metavar="PERCENT", help="least mAP")
    parser.add_argument("--min-person", type=float, metavar="PERCENT", help="least person AP")
    arguments = parser.parse_args()

    try:
        data = AccuracySet(arguments.data)
        server = Server(arguments.url, os.environ.get("REEF_API_KEY", ""))
        scores, answered = measure(server, data)
    except (FileNotFoundError, CannotMeasure) as error:
        print(error, file=sys.stderr)
        return 1

    rows = [
        ("mAP", scores.map, arguments.min_map),
        ("AP50", scores.ap50, None),
        ("person AP", scores.person, arguments.min_person),
        ("person AP50", scores.person50, None),
    ]
    print(f"{len(data.photos)} photos, {', '.join(sorted(answered))}, percent:")
    print(table(rows))
    missed = [name for name, measured, least in rows if least is not None and measured < least]
    if missed:
        print(f"below what was asked: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
