"""What the container image says of itself; a checkout has no such record."""

import json
from pathlib import Path

RECORD = Path(__file__).parent.parent / "image.json"


def notes(record: Path = RECORD) -> tuple[str, ...]:
    """What whoever runs the image should know, in whole sentences. The build wrote them."""
    if not record.is_file():
        return ()
    return tuple(json.loads(record.read_text())["notes"])
