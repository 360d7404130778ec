"""The OpenAPI 3.1 description that the service gives of itself."""

from __future__ import annotations

from typing import Any

from mcfhe import __version__
from mcfhe.service.settings import MAX_KEY_BYTES, ServiceSettings
from mcfhe.wording import SECURITY_LINE

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
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
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


def describe(settings: ServiceSettings) -> dict[str, Any]:
    """The description, with this service's limits."""
    text, json = "text/plain", "application/json"
    free: dict[str, Any] = {"security": []}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mcfhe", "version": __version__, "description": SECURITY_LINE},
        "security": [{"bearer": []}],
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, "Program": _PROGRAM},
        },
        "paths": {
            "/healthz": {"get": {"summary": "Alive", **free, "responses": {"200": _answer("Alive", json, {})}}},
            "/readyz": {
                "get": {
                    "summary": "Requests are taken in",
                    **free,
                    "responses": {"200": _answer("Ready", json, {}), **_refusals("503")},
                }
            },
            "/metrics": {"get": {"summary": "Prometheus", **free, "responses": {"200": _answer("Metrics", text, {})}}},
            "/openapi.json": {
                "get": {"summary": "This document", **free, "responses": {"200": _answer("OpenAPI", json, {})}}
            },
            "/v1/programs": {
                "get": {
                    "summary": "The programs this server runs",
                    "responses": {
                        "200": _answer(
                            "Programs",
                            json,
                            {
                                "type": "object",
                                "required": ["programs"],
                                "properties": {
                                    "programs": {"type": "array", "items": {"$ref": "#/components/schemas/Program"}}
                                },
                            },
                        ),
                        **_refusals("401"),
                    },
                }
            },
            "/v1/programs/{program_id}/spec": {
                "parameters": [_PROGRAM_ID],
                "get": {
                    "summary": "What a client needs to know of a program",
                    "responses": {"200": _answer("Client spec", json, {}), **_refusals("401", "404")},
                },
            },
            "/v1/keys": {
                "post": {
                    "summary": "Register an evaluation key for a session",
                    "requestBody": _body("A container of kind evaluation-key", MAX_KEY_BYTES),
                    "responses": {
                        "201": _answer(
                            "Registered",
                            json,
                            {
                                "type": "object",
                                "required": ["key_id", "expires_in_s"],
                                "properties": {"key_id": _HEX64, "expires_in_s": {"type": "number"}},
                            },
                        ),
                        **_refusals("400", "401", "408", "409", "413", "415", "429", "503"),
                    },
                }
            },
            "/v1/programs/{program_id}/evaluate": {
                "parameters": [_PROGRAM_ID],
                "post": {
                    "summary": "Run the program on encrypted images",
                    "requestBody": _body("A container of kind request or keyed-request", settings.max_body_bytes),
                    "responses": {
                        "200": _answer(
                            "A container of kind response",
                            "application/octet-stream",
                            {"type": "string", "format": "binary"},
                        ),
                        **_refusals("400", "401", "404", "408", "409", "410", "413", "415", "422", "429", "503"),
                    },
                },
            },
        },
    }
