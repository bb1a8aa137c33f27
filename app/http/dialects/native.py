"""The native dialect: `POST /predict`, answered as JSON."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flask import Blueprint, Request, Response, g

from app.errors import (
    BadParameter,
    ImageAmbiguous,
    ImageMissing,
    RequestError,
    UnsupportedType,
)
from app.http import form
from app.http.body import Limits, read_body
from app.http.dialect import Dialect, Line, Sent
from app.http.form import Part
from app.http.reply import json_response
from app.models import Model
from app.service import Answer, Query
from app.settings import MAX_RESULTS, Settings

NAME = "native"
FIELD = "image"
ADVICE = f"post it as the multipart field '{FIELD}', or as the body with 'Content-Type: image/jpeg'"
TEXTS = ("text/", "application/json", "application/x-www-form-urlencoded")  # how types begin

DECIMAL = re.compile(r"(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)
WHOLE = re.compile(r"\d{1,9}", re.ASCII)


def encode_error(error: RequestError, request_id: str) -> Response:
    """A refusal as JSON."""
    body = {"error": str(error), "code": error.code, "request_id": request_id}
    return json_response(body, error.status)


def blueprint(line: Line) -> Blueprint:
    """The route."""
    routes = Blueprint(NAME, __name__)
    service = line.service

    def read(request: Request, limits: Limits) -> Sent:
        picture, fields = read_picture(request, limits)
        parameters = read_parameters(request.args.to_dict(flat=False), fields)
        model = service.catalogue.get(parameters.get("model"))
        return Sent(picture, read_query(parameters, model, service.settings, g.client))

    def encode(answer: Answer, timings: dict[str, float]) -> Response:
        return json_response(prediction(answer, timings, g.request_id))

    @routes.post("/predict", strict_slashes=False)
    def predict() -> Response:
        return line.answer(read, encode)

    return routes


def prediction(answer: Answer, timings: dict[str, float], request_id: str) -> dict[str, Any]:
    """The body of `/predict`. `predictions` and `inference_time` were promised and stay."""
    return {
        "predictions": [
            {
                "bbox": list(detection.box),
                "class": detection.label,
                "score": round(detection.score, 4),
            }
            for detection in answer.detections
        ],
        "inference_time": timings["inference"],
        "model": answer.model,
        "device": answer.device,
        "degraded": answer.degraded,
        "image": {"width": answer.width, "height": answer.height},
        "timings": timings,
        "request_id": request_id,
    }


def read_picture(request: Request, limits: Limits) -> tuple[bytes, dict[str, list[str]]]:
    """The picture in a request's body, and the texts of its form by name.

    Raises ImageMissing, ImageAmbiguous, UnsupportedType, and what `read_body` raises.
    """
    kind = request.mimetype
    raw = kind.startswith("image/") or kind == "application/octet-stream"
    if not raw and kind != "multipart/form-data":
        if not kind and not request.content_length and "Transfer-Encoding" not in request.headers:
            raise ImageMissing(f"the request has no body; {ADVICE}")
        bytes_alone = ", as bytes and not as base64" if kind.startswith(TEXTS) else ""
        raise UnsupportedType(
            f"can't take a picture from {kind[:80] or 'no Content-Type'!r}; {ADVICE}{bytes_alone}"
        )
    picture, fields = read_body(request, limits), dict[str, list[str]]()
    if not raw:
        picture, fields = _from_form(form.parse(picture, request.content_type or "", ADVICE))
    if not picture:
        raise ImageMissing(f"the picture is empty; {ADVICE}")
    return picture, fields


def _from_form(parts: Sequence[Part]) -> tuple[bytes, dict[str, list[str]]]:
    pictures = [part.content for part in parts if part.name == FIELD]
    fields = form.texts(part for part in parts if part.name != FIELD)
    if not pictures:
        raise ImageMissing(f"the form has no field '{FIELD}'; {ADVICE}")
    if len(pictures) > 1:
        raise ImageAmbiguous(f"the form has {len(pictures)} fields '{FIELD}'; send one picture")
    return pictures[0], fields


def read_parameters(*sources: Mapping[str, list[str]]) -> dict[str, str]:
    """The known parameters of a request, from its query and its form.

    Raises BadParameter for one that was sent twice, wherever: which one holds would be a guess.
    """
    parameters: dict[str, str] = {}
    for name in ("min_score", "max_results", "labels", "model"):
        sent = [value.strip() for source in sources for value in source.get(name, ())]
        values = [value for value in sent if value]  # an HTML form sends what was left empty
        if len(values) > 1:
            raise BadParameter(f"{name} was sent {len(values)} times; send it once")
        if values:
            parameters[name] = values[0]
    return parameters


def read_query(
    parameters: Mapping[str, str], model: Model, defaults: Settings, client: str = ""
) -> Query:
    """The parameters' values. Raises BadParameter naming the parameter and what it takes."""
    return Query(
        model=model,
        min_score=_min_score(parameters.get("min_score"), defaults.min_score),
        max_results=_max_results(parameters.get("max_results"), defaults.max_results),
        only=_labels(parameters.get("labels"), model, defaults.only_labels),
        client=client,
    )


def _min_score(text: str | None, default: float) -> float:
    if text is None:
        return default
    if not DECIMAL.fullmatch(text) or not 0 <= (value := float(text)) <= 1:
        raise BadParameter(f"min_score takes a number from 0 to 1, as in 0.5, not {text[:40]!r}")
    return value


def _max_results(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not WHOLE.fullmatch(text) or not 1 <= (value := int(text)) <= MAX_RESULTS:
        raise BadParameter(
            f"max_results takes a whole number from 1 to {MAX_RESULTS}, not {text[:40]!r}"
        )
    return value


def _labels(text: str | None, model: Model, default: tuple[str, ...]) -> frozenset[str]:
    if text is None:
        return frozenset(default) & model.labels  # another model may know none of them
    wanted = frozenset(label.strip() for label in text.split(",") if label.strip())
    if unknown := model.unknown_label(sorted(wanted)):
        raise BadParameter(f"labels: {unknown}")
    return wanted


DIALECT = Dialect(NAME, blueprint, encode_error, Path(__file__).with_suffix(".yaml"))
