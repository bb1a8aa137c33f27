"""The API's description, from the part that all dialects share and the part of each."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from app import __version__
from app.http.dialects import DIALECTS

SHARED = Path(__file__).with_name("openapi.yaml")


def document() -> dict[str, Any]:
    """The whole description, as OpenAPI 3.1 has it."""
    parts = [yaml.safe_load(dialect.description.read_bytes()) for dialect in DIALECTS]
    whole: dict[str, Any] = yaml.safe_load(SHARED.read_bytes())
    whole["info"]["version"] = __version__
    shared_paths, whole["paths"] = whole["paths"], {}
    for part in parts:
        whole["paths"].update(part["paths"])
        for kind, components in part["components"].items():
            whole["components"].setdefault(kind, {}).update(components)
    whole["paths"].update(shared_paths)
    return whole


@cache
def as_json() -> bytes:
    """The same as JSON."""
    return json.dumps(document()).encode()
