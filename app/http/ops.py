"""What operators and programs ask: alive? ready? on what devices, with which models, how well?"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.devices.status import DeviceStatus
from app.http import openapi
from app.http.reply import json_response
from app.labels import UNNAMED
from app.models import Model
from app.service import Service


def blueprint(service: Service) -> Blueprint:
    """The routes."""
    routes = Blueprint("ops", __name__)

    @routes.get("/health")
    def health() -> Response:
        return json_response({"status": "ok"})

    @routes.get("/ready")
    def ready() -> Response:
        readiness = service.readiness()
        return json_response(asdict(readiness), 200 if readiness.ready else 503)

    @routes.get("/devices")
    def devices() -> Response:
        return json_response({"devices": [_device(status) for status in service.pool.status()]})

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
        return Response(generate_latest(service.metrics.registry), content_type=CONTENT_TYPE_LATEST)

    @routes.get("/openapi.json")
    def description() -> Response:
        return Response(openapi.as_json(), mimetype="application/json")

    return routes


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
