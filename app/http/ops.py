"""What operators and programs ask: alive? ready? on what devices, with which models, how well?"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import __version__
from app.devices.status import DeviceStatus
from app.http.wire import json_response
from app.labels import UNNAMED
from app.metrics import Metrics
from app.models import Model
from app.service import Service

OPENAPI = Path(__file__).with_name("openapi.yaml")


def blueprint(service: Service, metrics: Metrics) -> Blueprint:
    """The routes."""
    routes = Blueprint("ops", __name__)

    @routes.get("/health")
    def health() -> Response:
        return json_response({"status": "ok"})

    @routes.get("/ready")
    def ready() -> Response:
        body = readiness(service)
        return json_response(body, 200 if body["ready"] else 503)

    @routes.get("/devices")
    def devices() -> Response:
        return json_response({"devices": [_device(each) for each in service.pool.status()]})

    @routes.get("/models")
    def models() -> Response:
        catalogue, devices = service.catalogue, service.pool.status()
        return json_response(
            {
                "default": catalogue.default.name,
                "models": [_model(model, devices) for model in catalogue.all],
            }
        )

    @routes.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return Response(_openapi(), mimetype="application/json")

    return routes


def readiness(service: Service) -> dict[str, Any]:
    """The body of `/ready`: whether a picture would be answered now, and if not, why."""
    devices = service.pool.status()
    default = service.catalogue.default
    ready = service.pool.is_ready(default)
    degraded = ""
    if service.draining:
        ready, reason = False, "Reef is being stopped"
    elif ready:
        reason = degraded = service.pool.why_degraded(default)
    else:
        reason = service.pool.why_none(default)
    warnings = [warning for device in devices for warning in device.warnings]
    refusals = [
        f"{device.id} does not serve {name}: {why}"
        for device in devices
        for name, why in device.refused.items()
    ]
    return {
        "ready": ready,
        "degraded": bool(degraded),
        "reason": reason,
        "devices": [
            {"id": each.id, "state": each.state, "reason": each.reason} for each in devices
        ],
        "notes": [*service.notes(), *refusals, *warnings],
    }


def _device(status: DeviceStatus) -> dict[str, Any]:
    body = asdict(status)
    body["median_ms"] = {
        name: round(1000 * seconds, 2) for name, seconds in body.pop("median_s").items()
    }
    age = body["answered_s_ago"]
    body["answered_s_ago"] = None if age is None else round(age, 1)
    for name in ("slowdown", "busy_s", "utilisation"):
        body[name] = round(body[name], 3)
    telemetry = body.pop("telemetry")
    body["telemetry"] = {**telemetry, "throttle_level": status.telemetry.throttle_level}
    return body


def _model(model: Model, devices: Sequence[DeviceStatus]) -> dict[str, Any]:
    variants = [
        {
            "device_kind": kind,
            "name": variant.name,
            "sha256": variant.sha256,
            "input": asdict(variant.layout),
            "labels": [label for label in variant.labels if label != UNNAMED],
            "refused": {
                device.id: device.refused[variant.name]
                for device in devices
                if variant.name in device.refused
            },
        }
        for kind, variant in model.variants.items()
    ]
    return {"name": model.name, "variants": variants}


@cache
def _openapi() -> bytes:
    document = yaml.safe_load(OPENAPI.read_bytes())
    document["info"]["version"] = __version__
    return json.dumps(document).encode()
