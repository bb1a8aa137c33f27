"""`POST /predict`, the native dialect."""

import re
import time
from collections.abc import Mapping

from flask import Blueprint, Response, g, request

from app.errors import BadParameter
from app.http import upload, wire
from app.metrics import Metrics
from app.models import Model
from app.service import Query, Service
from app.settings import MAX_RESULTS, Settings

DECIMAL = re.compile(r"(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)
WHOLE = re.compile(r"\d{1,9}", re.ASCII)


def blueprint(service: Service, metrics: Metrics) -> Blueprint:
    """The route."""
    routes = Blueprint("predict", __name__)

    @routes.post("/predict", strict_slashes=False)
    def predict() -> Response:
        stages = g.stages
        deadline = time.monotonic() + service.settings.deadline_s
        with service.admit(g.client):
            with stages.measure("read"):
                sent = upload.read(request, service.settings.max_upload_bytes, deadline)
            given = parameters(request.args.to_dict(flat=False), sent.fields)
            model = service.catalogue.get(given.get("model"))
            query = read_query(given, model, service.settings, g.client)
            answer = service.detect(sent.image, query, stages, deadline)
        metrics.predicted(answer.device, stages, degraded=answer.degraded)
        timings = stages.milliseconds()
        response = wire.json_response(wire.prediction(answer, timings, g.request_id))
        response.headers["Server-Timing"] = wire.server_timing(timings)
        response.headers.update(wire.degraded(answer))
        return response

    return routes


def parameters(*sources: Mapping[str, list[str]]) -> dict[str, str]:
    """The known parameters of a request, from its query and its form.

    Raises BadParameter for one that was sent twice, wherever: which one holds would be a guess.
    """
    given: dict[str, str] = {}
    for name in ("min_score", "max_results", "labels", "model"):
        sent = [value.strip() for source in sources for value in source.get(name, ())]
        values = [value for value in sent if value]  # an HTML form sends what was left empty
        if len(values) > 1:
            raise BadParameter(f"{name} was sent {len(values)} times; send it once")
        if values:
            given[name] = values[0]
    return given


def read_query(
    given: Mapping[str, str], model: Model, defaults: Settings, client: str = ""
) -> Query:
    """The parameters' values. Raises BadParameter naming the parameter and what it takes."""
    return Query(
        model=model,
        min_score=_min_score(given.get("min_score"), defaults.min_score),
        max_results=_max_results(given.get("max_results"), defaults.max_results),
        only=_labels(given.get("labels"), model, defaults.only_labels),
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
