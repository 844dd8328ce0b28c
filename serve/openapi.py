"""The description of the service, in OpenAPI 3.1, made of the options that it takes."""

from typing import Any

import click

from uid import __version__
from uid.runtime.media.formats import WRITTEN
from uid.runtime.pipeline import Pipeline
from uid.serve.parameters import PARAMETERS
from uid.serve.requests import PROGRESS
from uid.serve.settings import ServeSettings

KINDS = {click.IntRange: "integer", click.FloatRange: "number"}
FILE = {"type": "string", "format": "binary"}


def description(pipeline: Pipeline | None, settings: ServeSettings) -> dict[str, Any]:
    """The document of ``GET /api``; ``x-uid`` has the model, None where it is not loaded yet, and the limits."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "uid-serve", "version": __version__, "description": "Sharpen blurred photos."},
        "paths": {
            "/api/deblur": {"post": _deblur()},
            "/v1/images/edits": {"post": _edit()},
            "/healthz": {"get": _state("Whether the server is alive.")},
            "/readyz": {"get": _state("200: the model is loaded, and work is taken; else 503.")},
            "/metrics": {"get": _state("Counters for Prometheus.")},
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [] if settings.token is None else [{"token": []}],
        "x-uid": _limits(settings) | _model(pipeline, settings),
    }


def _limits(settings: ServeSettings) -> dict[str, Any]:
    return {"max_bytes": settings.max_bytes, "max_pixels": settings.max_pixels, "formats": WRITTEN}


def _model(pipeline: Pipeline | None, settings: ServeSettings) -> dict[str, Any]:
    if pipeline is None:
        return {"model": None}
    bundle = pipeline.bundle
    model = {"name": bundle.name, "trained": bundle.trained, "backend": pipeline.backend, "modes": list(bundle.modes)}
    return {"model": model | {"presets": list(bundle.presets), "preset": settings.preset or bundle.preset}}


def _deblur() -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "query", "description": one.help, "schema": _schema(one)}
        for name, one in PARAMETERS.items()
    ]
    form = {"type": "object", "properties": {"image": FILE} | {name: _schema(one) for name, one in PARAMETERS.items()}}
    images: dict[str, Any] = {f"image/{name}": {} for name in WRITTEN}
    return {
        "summary": "The image, sharpened. Options are those of uid-run, in the query or as fields of the form.",
        "parameters": parameters,
        "requestBody": {"content": {"image/*": {"schema": FILE}, "multipart/form-data": {"schema": form}}},
        "responses": {"200": {"description": "The image.", "content": {**images, PROGRESS: {}}}, **_refusals()},
    }


def _edit() -> dict[str, Any]:
    form = {"type": "object", "required": ["image"], "properties": {"image": FILE, "prompt": {"type": "string"}}}
    return {
        "summary": "The same in the form of OpenAI's image edits; the prompt is not needed.",
        "requestBody": {"content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": {"description": "b64_json"}, **_refusals()},
    }


def _state(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary}}}


def _refusals() -> dict[str, Any]:
    told = {
        "400": "An option or the form is wrong.",
        "401": "The token is missing or wrong.",
        "408": "The upload is too slow.",
        "413": "The request has too many bytes.",
        "422": "The image cannot be read, or has too many pixels.",
        "429": "The queue is full; Retry-After says when to ask again.",
        "503": "The server is stopping, or the image took too long.",
    }
    return {status: {"description": text} for status, text in told.items()}


def _schema(option: click.Option) -> dict[str, Any]:
    if option.is_flag:
        return {"type": "boolean"}
    if isinstance(option.type, click.Choice):
        return {"type": "string", "enum": list(option.type.choices)}
    kind = next((name for known, name in KINDS.items() if isinstance(option.type, known)), "string")
    return {"type": kind}
