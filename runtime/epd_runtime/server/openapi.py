"""The OpenAPI document, made from the routes themselves and the structs that decode their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from epd_runtime.server.info import VERSION

REF = "#/components/schemas/{name}"
STATUSES = {
    200: "The answer; server-sent events when the body asks for a stream.",
    400: "The request is wrong; the error names the field.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body stalled.",
    413: "The body is too large.",
    500: "The engine failed on this request.",
    502: "Another server failed.",
    503: "The server is full, starting or leaving; Retry-After says when to come back.",
    504: "A deadline passed.",
}


class Described(Protocol):
    """What the document says of a route."""

    @property
    def path(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...
    @property
    def summary(self) -> str: ...
    @property
    def body(self) -> type[msgspec.Struct] | None: ...
    @property
    def path_parameter(self) -> str | None: ...


def openapi_document(endpoints: Sequence[Described], with_keys: bool) -> dict[str, Any]:
    """The document as JSON values. with_keys: requests need a bearer token."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    refs, schemas = msgspec.json.schema_components(bodies, ref_template=REF)
    schema_of = dict(zip(bodies, refs, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        for method in endpoint.methods:
            operation: dict[str, Any] = {"summary": endpoint.summary, "responses": _responses(endpoint)}
            if endpoint.body is not None:
                content = {"application/json": {"schema": schema_of[endpoint.body]}}
                operation["requestBody"] = {"required": True, "content": content}
            if endpoint.path_parameter is not None:
                operation["parameters"] = [
                    {"name": endpoint.path_parameter, "in": "path", "required": True, "schema": {"type": "string"}}
                ]
            paths.setdefault(endpoint.path.replace(":path}", "}"), {})[method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "epd_runtime", "version": VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _responses(endpoint: Described) -> dict[str, Any]:
    statuses = STATUSES if endpoint.body is not None else {code: STATUSES[code] for code in (200, 401, 404, 503)}
    return {str(code): {"description": text} for code, text in statuses.items()}
