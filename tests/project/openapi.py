"""The API's description, and how an answer is held against it."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator

from app.http.openapi import document

Schema = Mapping[str, Any]

DOCUMENT = document()

# Headers that mean something to clients: one that is sent must be described.
TELLING = {
    "Retry-After",
    "Allow",
    "WWW-Authenticate",
    "Server-Timing",
    "X-Request-ID",
    "X-Reef-Degraded",
}


def _strict(node: Any) -> Any:
    """The same schemas, but an object has no properties beside those described."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items()}
    if strict.get("type") == "object" and "properties" in strict:
        strict.setdefault("additionalProperties", False)
    return strict


COMPONENTS = _strict(copy.deepcopy(DOCUMENT["components"]))


def check(schema: Schema, value: object) -> None:
    """Fail unless a value is what a schema says, and nothing more."""
    Draft202012Validator({**schema, "components": COMPONENTS}).validate(value)


def response(path: str, method: str, status: int) -> dict[str, Any]:
    """What is written about an answer; fails if nothing is."""
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    assert str(status) in responses, f"{method} {path} {status} is not described"
    return resolve(responses[str(status)])


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """A node, or the component that it refers to."""
    if "$ref" not in node:
        return node
    _, _, kind, name = node["$ref"].split("/")
    found: dict[str, Any] = DOCUMENT["components"][kind][name]
    return found


def responses() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Operation, status and description of every answer there is."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            for status, described in operation["responses"].items():
                yield f"{method.upper()} {path}", status, resolve(described)


def examples(media: Schema) -> Iterator[object]:
    """The examples of a media type."""
    if "example" in media:
        yield media["example"]
    for example in media.get("examples", {}).values():
        yield example["value"]


def codes(media: Schema) -> set[str]:
    """The error codes that a schema of the kind `Error` allows."""
    (error, narrowed) = media["schema"]["allOf"]
    assert error == {"$ref": "#/components/schemas/Error"}
    code = narrowed["properties"]["code"]
    return {code["const"]} if "const" in code else set(code["enum"])
