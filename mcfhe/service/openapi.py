"""The OpenAPI 3.1 description that the service gives of itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mcfhe import __version__
from mcfhe.service.settings import MAX_KEY_BYTES, ServiceSettings
from mcfhe.wording import LATTICE_LINE, SECURITY_LINE

_JSON = "application/json"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "One line: what is wrong and what to do."}},
}
_HEX64 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_PROGRAM = {
    "type": "object",
    "required": ["program_id", "input_shape", "labels", "spec_sha256"],
    "properties": {
        "program_id": _HEX64,
        "input_shape": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3},
        "labels": {"type": "array", "items": {"type": "string"}},
        "spec_sha256": _HEX64,
    },
}
_STATUSES = {
    "400": "Not a valid message",
    "401": "No valid token",
    "404": "No such program",
    "408": "The body came too slowly",
    "409": "Ids that do not belong together, or a request id used again for another content",
    "410": "The evaluation key is not registered or its session has expired",
    "413": "The body is too large",
    "415": "Not application/octet-stream",
    "422": "A valid message that this program cannot answer",
    "429": "Busy",
    "503": "Not finished in time, or shutting down",
}
_PROGRAM_ID = {"name": "program_id", "in": "path", "required": True, "schema": _HEX64}


def _refusals(*statuses: str) -> dict[str, Any]:
    answers = {}
    for status in statuses:
        answers[status] = {
            "description": _STATUSES[status],
            "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        if status in ("429", "503"):
            answers[status]["headers"] = {
                "Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}
            }
    return answers


def _answer(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _body(description: str, limit: int) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary", "maxLength": limit}}
    return {"required": True, "description": description, "content": {"application/octet-stream": binary}}


def _key_path(largest_key: int) -> dict[str, Any]:
    registered = {
        "type": "object",
        "required": ["key_id", "expires_in_s"],
        "properties": {"key_id": _HEX64, "expires_in_s": {"type": "number"}},
    }
    return {
        "post": {
            "summary": "Register an evaluation key for a session",
            "requestBody": _body("A container of kind evaluation-key or lattice-evaluation-key", largest_key),
            "responses": {
                "201": _answer("Registered", _JSON, registered),
                **_refusals("400", "401", "408", "409", "413", "415", "429", "503"),
            },
        }
    }


def _program_paths(max_body_bytes: int) -> dict[str, Any]:
    programs = {
        "type": "object",
        "required": ["programs"],
        "properties": {"programs": {"type": "array", "items": {"$ref": "#/components/schemas/Program"}}},
    }
    binary = {"type": "string", "format": "binary"}
    return {
        "/v1/programs": {
            "get": {
                "summary": "The programs this server runs",
                "responses": {"200": _answer("Programs", _JSON, programs), **_refusals("401")},
            }
        },
        "/v1/programs/{program_id}/spec": {
            "parameters": [_PROGRAM_ID],
            "get": {
                "summary": "What a client needs to know of a program",
                "responses": {"200": _answer("Client spec", _JSON, {}), **_refusals("401", "404")},
            },
        },
        "/v1/programs/{program_id}/evaluate": {
            "parameters": [_PROGRAM_ID],
            "post": {
                "summary": "Run the program on encrypted images",
                "requestBody": _body(
                    "A container of kind request, keyed-request, lattice-request or keyed-lattice-request",
                    max_body_bytes,
                ),
                "responses": {
                    "200": _answer(
                        "A container of kind response or lattice-response", "application/octet-stream", binary
                    ),
                    **_refusals("400", "401", "404", "408", "409", "410", "413", "415", "422", "429", "503"),
                },
            },
        },
    }


def describe(
    settings: ServiceSettings, largest_key: int = MAX_KEY_BYTES, schemes: Collection[str] = ("modular",)
) -> dict[str, Any]:
    """The description, with this service's limits and what its schemes are worth."""
    free: dict[str, Any] = {"security": []}
    worth = [line for scheme, line in (("modular", SECURITY_LINE), ("lattice", LATTICE_LINE)) if scheme in schemes]
    return {
        "openapi": "3.1.0",
        "info": {"title": "mcfhe", "version": __version__, "description": " ".join(worth)},
        "security": [{"bearer": []}],
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, "Program": _PROGRAM},
        },
        "paths": {
            "/healthz": {"get": {"summary": "Alive", **free, "responses": {"200": _answer("Alive", _JSON, {})}}},
            "/readyz": {
                "get": {
                    "summary": "Requests are taken in",
                    **free,
                    "responses": {"200": _answer("Ready", _JSON, {}), **_refusals("503")},
                }
            },
            "/metrics": {
                "get": {"summary": "Prometheus", **free, "responses": {"200": _answer("Metrics", "text/plain", {})}}
            },
            "/openapi.json": {
                "get": {"summary": "This document", **free, "responses": {"200": _answer("OpenAPI", _JSON, {})}}
            },
            "/v1/keys": _key_path(largest_key),
            **_program_paths(settings.max_body_bytes),
        },
    }
